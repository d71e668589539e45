"""Which detector finds faces under masks, and how exactly: `python bench/detectors.py` prints one table.

The photographs are the embedded ORL faces with padded edges, three times as large, once bare and once under an occluder, the kinds in turn.
A face counts as found where a box's centre lies within an eye distance of the face's centre; every other box is a false alarm. Errors are
medians over found faces, in eye distances, against `orl_landmarks.csv`, which is what MTCNN measured on the bare faces.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from deocc.data import OrlFaces
from deocc.detection import Detection, Detector, create_detector, list_detectors
from deocc.masking import list_kinds, render

PADDING, SCALE = 24, 3


class Photograph(NamedTuple):
    """An image (H, W, 3) RGB and the face's true landmarks (5, 2) in its pixels."""

    image: NDArray[np.uint8]
    landmarks: NDArray[np.float64]


class Outcome(NamedTuple):
    """What a detector made of one photograph: errors (5,) in eye distances or None, false alarms, seconds."""

    errors: NDArray[np.float64] | None
    false_alarms: int
    seconds: float


def photographs(number: int) -> list[Photograph]:
    """So many bare faces, spread evenly over the people."""
    faces = OrlFaces()
    chosen = np.linspace(0, len(faces), number, endpoint=False).astype(int).tolist()
    return [Photograph(enlarged(faces.image(index)), (faces.landmarks[index] + PADDING + 0.5) * SCALE - 0.5) for index in chosen]


def enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image with repeated edges, three times as large."""
    padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="edge")
    return np.asarray(cv2.resize(padded, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def masked(bare: list[Photograph]) -> list[Photograph]:
    """The photographs under occluders, the kinds in turn."""
    return [photograph._replace(image=covered(photograph, number)) for number, photograph in enumerate(bare)]


def covered(photograph: Photograph, number: int) -> NDArray[np.uint8]:
    """The image under the occluder of this number; the number is also its seed."""
    face = torch.tensor(photograph.image).permute(2, 0, 1)[None] / 127.5 - 1
    landmarks = torch.tensor(photograph.landmarks, dtype=torch.float32)[None]
    face, _ = render(face, landmarks, torch.tensor([number % len(list_kinds())]), torch.tensor([number]))
    return face[0].add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()


def look(detector: Detector, photograph: Photograph) -> Outcome:
    """Detect once and compare with the truth."""
    start = time.perf_counter()
    faces = detector.detect(photograph.image)
    seconds = time.perf_counter() - start
    truth = photograph.landmarks
    eyes = float(np.linalg.norm(truth[1] - truth[0]))
    near = [face for face in faces if np.linalg.norm(centre(face) - truth.mean(0)) <= eyes]
    errors = np.linalg.norm(near[0].landmarks - truth, axis=1) / eyes if near else None
    return Outcome(errors, len(faces) - len(near), seconds)


def centre(face: Detection) -> NDArray[np.float64]:
    """(2,) the middle of the box."""
    return np.asarray(face.box.reshape(2, 2).mean(0))


def row(outcomes: list[Outcome]) -> Iterator[str]:
    """The cells of a line of the table."""
    errors = [outcome.errors for outcome in outcomes if outcome.errors is not None]
    yield f"{len(errors)} of {len(outcomes)}"
    yield str(sum(outcome.false_alarms for outcome in outcomes))
    for points in (slice(0, 2), slice(2, 3), slice(3, 5), slice(0, 5)):
        yield f"{np.median(np.array(errors)[:, points]):.3f}" if errors else ""
    yield f"{1000 * statistics.median(outcome.seconds for outcome in outcomes):.1f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare the face detectors on bare and masked ORL faces.")
    parser.add_argument("--images", type=int, default=400, help="faces to look at, spread over the people (default: all 400)")
    parser.add_argument("--yunet", metavar="FILE", help="the weights of yunet, which is left out without")
    chosen = parser.parse_args()
    bare = photographs(chosen.images)
    sets = {"bare": bare, "masked": masked(bare)}
    table = Table("detector", "faces", "found", "false alarms", "eyes", "nose", "mouth", "all points", "ms an image")
    for name in list_detectors():
        if name == "yunet" and chosen.yunet is None:
            continue
        detector = create_detector(name, chosen.yunet if name == "yunet" else None)
        detector.detect(bare[0].image)  # what happens at the first call only is not timed
        for what, pictures in sets.items():
            table.add_row(name, what, *row([look(detector, photograph) for photograph in pictures]))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
