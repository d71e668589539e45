"""dlib's two face detectors, with landmarks by its 68-point predictor.

[0] Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005: "dlib".
[1] King, "Max-Margin Object Detection", arXiv 1502.00046, 2015: "dlib_cnn".
[2] Kazemi and Sullivan, "One Millisecond Face Alignment with an Ensemble of Regression Trees", CVPR 2014: predictor.
[3] Sagonas et al., "300 Faces In-The-Wild Challenge: database and results", Image and Vision Computing, 2016: the
    predictor's training set, whose terms ask for non-commercial use, and the numbering of its points, here from 0.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deocc.detection.detector import REMEDY, Detection, Detector, enlarge, given_file, packaged_file, shrink
from deocc.messages import describe_error

_PREDICTOR_FILE: Final = "shape_predictor_68_face_landmarks.dat"
_CNN_FILE: Final = "mmod_human_face_detector.dat"
_PREDICTOR_POINTS: Final = 68
_SMALLEST_FACE: Final = 80  # pixels, of both detectors
_SMALL: Final = 160  # images with a shorter side than this are doubled; our choice
_LOWEST_MARGIN: Final = -0.5  # dlib's default of 0 rejects more masked faces; our choice
_LARGE: Final = 1600  # longer sides are shrunk to this, which bounds time and memory; our choice


class DlibDetector(Detector):
    """Detector of frontal faces from 80 pixels by linear filters on gradient histograms [0]; fast on a CPU.

    It is part of dlib. The weights are those of the 68-point predictor [2], default the ones of
    face-recognition-models; dlib's 5-point predictor is free of the terms of [3] but has no mouth.
    """

    name = "dlib"
    upright_score = 0.5  # its filters are for upright faces
    _sure_score = 0.5  # of a face at the decision boundary

    def __init__(self, weights: str | None = None) -> None:
        try:
            self._dlib: Any = importlib.import_module("dlib")
        except ImportError as error:
            raise ImportError(
                f"dlib's face detectors need the package dlib-bin, which is not installed: {REMEDY}"
            ) from error
        path = packaged_file(_PREDICTOR_FILE) if weights is None else given_file(weights)
        self._predictor = _read_weights(self._dlib.shape_predictor, path)
        points = self._predictor(np.zeros((8, 8, 3), np.uint8), self._dlib.rectangle(0, 0, 7, 7)).num_parts
        if points != _PREDICTOR_POINTS:
            raise ValueError(f"{path} predicts {points} points, expected {_PREDICTOR_POINTS}: give a {_PREDICTOR_FILE}")
        self._detector: Any = self._dlib.get_frontal_face_detector()

    def smallest_face(self, height: int, width: int) -> int:
        """Return 80 pixels, more in photos that are shrunk, 40 in very small ones."""
        scale = max(1.0, max(height, width) / _LARGE)
        return round(_SMALLEST_FACE * scale / (2 if min(height, width) / scale < _SMALL else 1))

    def _find(self, image: NDArray[np.uint8]) -> Iterator[Detection]:
        smaller, factors = shrink(image, _LARGE)
        for rectangle, margin in self._boxes(smaller, 1 if min(smaller.shape[:2]) < _SMALL else 0):
            corners = [[rectangle.left(), rectangle.top()], [rectangle.right(), rectangle.bottom()]]
            box = enlarge(np.array(corners, dtype=np.float64), factors).reshape(-1)
            # In the image of full size, since the predictor rounds to whole pixels.
            shape = self._predictor(image, self._dlib.rectangle(*(round(side) for side in box.tolist())))
            points = np.array([[point.x, point.y] for point in shape.parts()], dtype=np.float64)
            # An eye is the mean of its six points, the nose its tip; of the mouth the outer corners [3]. Our choice.
            five = np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])
            # The logistic function of the signed distance from the decision boundary; not calibrated.
            yield Detection(box, five, 1 / (1 + math.exp(-margin)))

    def _boxes(self, image: NDArray[np.uint8], upsamplings: int) -> Iterable[tuple[Any, float]]:
        """Return dlib rectangles in pixels of `image` with their scores, after doubling it `upsamplings` times."""
        rectangles, margins, _ = self._detector.run(image, upsamplings, _LOWEST_MARGIN)
        return zip(rectangles, margins, strict=True)


class DlibCnnDetector(DlibDetector):
    """Convolutional detector [1], slow on a CPU; the landmarks and their terms are those of "dlib".

    The weights are an `mmod_human_face_detector.dat`, default the one of face-recognition-models (CC0).
    """

    name = "dlib_cnn"
    _sure_score = 0.0

    def __init__(self, weights: str | None = None) -> None:
        path = packaged_file(_CNN_FILE) if weights is None else given_file(weights)
        super().__init__()
        self._detector = _read_weights(self._dlib.cnn_face_detection_model_v1, path)

    def _boxes(self, image: NDArray[np.uint8], upsamplings: int) -> Iterable[tuple[Any, float]]:
        return [(found.rect, found.confidence) for found in self._detector(image, upsamplings)]


def _read_weights(reader: Callable[[str], Any], path: Path) -> Any:
    try:
        return reader(str(path))
    except RuntimeError as error:
        raise ValueError(
            f"{path} is damaged or not of this dlib detector ({describe_error(error)}): "
            "get it again or give another file"
        ) from None
