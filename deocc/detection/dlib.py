"""dlib's convolutional face detector.

[0] King, "Max-Margin Object Detection", arXiv 1502.00046, 2015.
"""

import importlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deocc.detection.detector import REMEDY, Detection, Detector, enlarge, given_file, packaged_file, shrink

PREDICTOR_FILE: Final = "shape_predictor_68_face_landmarks.dat"
_PREDICTOR_POINTS: Final = 68

_SMALL: Final = 160
"""An image whose shorter side is below this is looked at in double size: the detectors' smallest face is some 80 pixels wide. OURS."""

_LARGE: Final = 1600
"""A longer side is shrunk to this, which bounds time and memory and leaves faces of a twentieth of the picture to be found. OURS."""


def import_dlib() -> Any:
    """The module dlib.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("dlib")
    except ImportError as error:
        raise ImportError(
            f"dlib's face detectors need the package dlib-bin, which is not installed: {REMEDY}"
        ) from error


def read_weights(reader: Callable[[str], Any], path: Path) -> Any:
    """What dlib's `reader` makes of a file.

    Raises:
        ValueError: it cannot read it.
    """
    try:
        return reader(str(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path} is damaged or not of this dlib detector ({reason}): get it again or give another file"
        ) from None


def confidence(margin: float) -> float:
    """Map the signed distance from dlib's decision boundary to [0, 1] by the logistic function; not calibrated."""
    return 1 / (1 + math.exp(-margin))


class DlibDetector(Detector):
    """Boxes by a subclass, five landmarks by the 68-point predictor.

    The eyes are the means of their six points each, the nose is its tip, the mouth's corners are its outer ones [1]. OURS; the 5-point
    predictor, which is free of the training set's terms, has no point of the mouth.
    """

    def __init__(self, predictor: Path | None = None) -> None:
        self._dlib = import_dlib()
        path = predictor or packaged_file(PREDICTOR_FILE)
        self._predictor = read_weights(self._dlib.shape_predictor, path)
        points = self._predictor(np.zeros((8, 8, 3), np.uint8), self._dlib.rectangle(0, 0, 7, 7)).num_parts
        if points != _PREDICTOR_POINTS:
            raise ValueError(f"{path} predicts {points} points, expected {_PREDICTOR_POINTS}: give a {PREDICTOR_FILE}")

    @abstractmethod
    def _boxes(self, image: NDArray[np.uint8], upsamplings: int) -> Iterable[tuple[Any, float]]:
        """dlib rectangles in pixels of the image, however often it is looked at in double size, and their scores."""

    def _find(self, image: NDArray[np.uint8]) -> Iterator[Detection]:
        smaller, factors = shrink(image, _LARGE)
        for rectangle, score in self._boxes(smaller, int(min(smaller.shape[:2]) < _SMALL)):
            corners = np.array(
                [[rectangle.left(), rectangle.top()], [rectangle.right(), rectangle.bottom()]], dtype=np.float64
            )
            box = enlarge(corners, factors).reshape(-1)
            yield Detection(box, self._landmarks(image, box), confidence(score))

    def _landmarks(self, image: NDArray[np.uint8], box: NDArray[np.float64]) -> NDArray[np.float64]:
        """Measured on the image in its full size, since the predictor rounds to whole pixels."""
        shape = self._predictor(image, self._dlib.rectangle(*(round(side) for side in box.tolist())))
        points = np.array([[point.x, point.y] for point in shape.parts()], dtype=np.float64)
        return np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])


class DlibHogDetector(DlibDetector):
    """Fast on a processor; made for frontal faces of 80 pixels and more.

    Args:
        weights: path of a 68-point landmark predictor; default the one of face-recognition-models, whose training set asks for
            non-commercial use (see `deocc.detection.dlib_faces`). The detector itself is part of dlib.
        threshold: lowest signed distance from the decision boundary. dlib uses 0; at -0.5 it finds more masked faces and more false
            ones, so faces below 0 are reported only where no other face is found. Our choice.

    Raises:
        ImportError: dlib or face-recognition-models is not installed.
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or predicts another number of points.
    """

    name = "dlib"

    def __init__(self, weights: str | None = None, threshold: float = -0.5) -> None:
        super().__init__(None if weights is None else given_file(weights))
        self._detector = self._dlib.get_frontal_face_detector()
        self._threshold = threshold
        self._sure_score = confidence(max(threshold, 0.0))

    def _boxes(self, image: NDArray[np.uint8], upsamplings: int) -> Iterable[tuple[Any, float]]:
        rectangles, scores, _ = self._detector.run(image, upsamplings, self._threshold)
        return zip(rectangles, scores, strict=True)


_FILE: Final = "mmod_human_face_detector.dat"


class DlibCnnDetector(DlibDetector):
    """Slow on a processor. Its landmarks come from the same 68-point predictor as those of "dlib", with the same terms.

    Args:
        weights: path of an `mmod_human_face_detector.dat`; default the one of face-recognition-models (CC0).

    Raises:
        ImportError: dlib or face-recognition-models is not installed.
        FileNotFoundError: no such file.
        ValueError: the file is damaged.
    """

    name = "dlib_cnn"

    def __init__(self, weights: str | None = None) -> None:
        path = packaged_file(_FILE) if weights is None else given_file(weights)
        super().__init__()
        self._detector = read_weights(self._dlib.cnn_face_detection_model_v1, path)

    def _boxes(self, image: NDArray[np.uint8], upsamplings: int) -> Iterable[tuple[Any, float]]:
        return [(found.rect, found.confidence) for found in self._detector(image, upsamplings)]
