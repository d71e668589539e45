"""Measure the five landmarks of the embedded ORL faces: `python -m bench.orl_landmarks` rewrites `orl_landmarks.csv`.

The detector is MTCNN of the package facenet-pytorch, with its weights (MIT). Its version requirements are old, so
install it with `pip install --no-deps facenet-pytorch==2.6.0`. Nothing else needs it.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deocc.data.images import read_image
from deocc.data.orl import LANDMARKS_FILE, image_paths

_PADDING, _SCALE = 24, 3  # the detector needs a margin and more pixels than the 92 x 112 of an ORL image


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression by OpenCV, since torchvision's compiled operator may not load beside a CPU-only torch."""
    corners = boxes.numpy()
    sized = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
    return torch.as_tensor(
        np.array(cv2.dnn.NMSBoxesBatched(sized, scores.tolist(), groups.int().tolist(), 0.0, threshold), dtype=np.int64)
    )


def measure(path: Path, detector: Any) -> NDArray[np.float64]:
    """Return the five landmarks of an image, (5, 2) x, y in its pixels.

    Raises:
        RuntimeError: no face was found.
    """
    image = np.pad(read_image(path), ((_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)), mode="edge")
    side = (image.shape[1] * _SCALE, image.shape[0] * _SCALE)
    _, scores, points = detector.detect(Image.fromarray(image).resize(side, Image.Resampling.BICUBIC), landmarks=True)
    if points is None:
        raise RuntimeError(f"no face found in {path}")
    found: NDArray[np.float64] = np.asarray(points[int(np.argmax(scores))], dtype=np.float64)
    return (found + 0.5) / _SCALE - 0.5 - _PADDING


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description="Measure and write the landmarks of the ORL faces.").parse_args(argv)
    try:
        from facenet_pytorch import MTCNN
        from facenet_pytorch.models.utils import detect_face
    except ImportError as error:
        raise SystemExit("facenet-pytorch is needed: pip install --no-deps facenet-pytorch==2.6.0") from error
    detect_face.batched_nms = _suppress
    detector = MTCNN(min_face_size=60, post_process=False)
    with LANDMARKS_FILE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *(f"{axis}{point}" for point in range(5) for axis in "xy")])
        for path in image_paths():
            points = measure(path, detector)
            writer.writerow([f"{path.parent.name}/{path.stem}", *(f"{value:.2f}" for value in points.reshape(-1))])
    print(f"wrote {LANDMARKS_FILE}")


if __name__ == "__main__":
    main()
