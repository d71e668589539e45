"""Interface of the face detectors and the result they return."""

import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

_PACKAGE = "face_recognition_models"
REMEDY = 'pip install "deocc[photos]"'


def given_file(weights: str) -> Path:
    """The file at the path `weights`.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no detector weights at {path.absolute()}: give the path of an existing file")
    return path


def packaged_file(name: str) -> Path:
    """The file `models/NAME` of the package face-recognition-models.

    Raises:
        ImportError: the package is not installed.
        FileNotFoundError: the package lacks the file.
    """
    # Found, not imported: the package's __init__ needs pkg_resources, which new setuptools no longer have.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the package face-recognition-models, which ships {name}, is not installed: {REMEDY}")
    path = Path(spec.submodule_search_locations[0]) / "models" / name
    if not path.is_file():
        raise FileNotFoundError(f"no {name} in {path.parent}: reinstall face-recognition-models")
    return path


@dataclass(frozen=True, eq=False)
class Detection:
    """One face. Coordinates name pixel centres of the given image and may be outside of it.

    Attributes:
        box: (4,) x0, y0, x1, y1 in pixels.
        landmarks: (5, 2) x, y in pixels: eye, eye, nose, mouth corner, mouth corner, left to right in the image.
        score: confidence in [0, 1]. Scores of different detectors are not calibrated against each other.
    """

    box: NDArray[np.float64]
    landmarks: NDArray[np.float64]
    score: float

    @property
    def prominence(self) -> float:
        """Mean side of the box in pixels times the score: large and certain faces come first. Not from a paper; our choice."""
        width, height = (self.box[2:] - self.box[:2]).clip(0).tolist()
        return math.sqrt(width * height) * self.score


class Detector(ABC):
    """Finds upright faces. A new detector is a subclass with `name` and `_find`, and a line in `deocc.detection.registry`.

    Args:
        weights: path of the weights file; None for the file that an installed package ships, if there is one.

    Raises:
        ImportError: a package is not installed.
        FileNotFoundError: there is no such weights file.
        ValueError: the weights file is damaged or belongs to another detector.
    """

    name: str

    _sure_score = 0.0
    """Faces with a lower score are reported only where no face reaches it."""

    @abstractmethod
    def __init__(self, weights: str | None = None) -> None: ...

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        """Find the faces of an image.

        Args:
            image: (H, W, 3) RGB.

        Returns:
            The faces, most prominent first (see `Detection.prominence`). Faces of low confidence are included only where there is no other.

        Raises:
            ValueError: the image has another shape or type.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(
                f"expected an RGB image of shape (H, W, 3) and type uint8, got {image.shape} of {image.dtype}"
            )
        faces = sorted(self._find(np.ascontiguousarray(image)), key=lambda face: -face.prominence)
        return [face for face in faces if face.score >= self._sure_score] or faces

    @abstractmethod
    def _find(self, image: NDArray[np.uint8]) -> Iterable[Detection]:
        """Find the faces of a contiguous image (H, W, 3), in any order."""


def shrink(image: NDArray[np.uint8], longest: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Shrink an image so that no side is above `longest` pixels; also return the factors (2,) in x and y, 1 if it fits already."""
    height, width = image.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smaller = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(smaller, dtype=np.uint8), np.array([width / size[0], height / size[1]])


def enlarge(points: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map points (..., 2) in pixels of a shrunk image to pixels of the original image."""
    return (points + 0.5) * factors - 0.5
