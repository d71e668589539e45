"""Base class of the face detectors and the result they return."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from deocc.files import expand_user, package_file

REMEDY = 'pip install "deocc[photos]"'


@dataclass(frozen=True, eq=False)
class Detection:
    """One face. Coordinates refer to pixel centres of the given image and may be outside of it.

    The landmarks are eye, eye, nose, mouth corner, mouth corner, left to right in the image. Scores of different
    detectors are not calibrated against each other.
    """

    box: NDArray[np.float64]  # (4,) x0, y0, x1, y1 in pixels
    landmarks: NDArray[np.float64]  # (5, 2) x, y in pixels
    score: float  # confidence in [0, 1]

    @property
    def prominence(self) -> float:
        """Mean side of the box in pixels times the score, so that large, certain faces rank first. Our choice."""
        return float(np.sqrt((self.box[2:] - self.box[:2]).clip(0).prod())) * self.score


class Detector(ABC):
    """Finds upright faces. A new detector is a subclass with `name` and the abstract methods, and a registry line."""

    name: str
    upright_score = 0.9
    """Score from which a face is surely upright. If no face reaches it, the photo may be turned."""
    _sure_score = 0.0  # faces with a lower score are reported only if no face reaches it

    @abstractmethod
    def __init__(self, weights: str | None = None) -> None: ...

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        """Find the faces of an image (H, W, 3) RGB, by descending `Detection.prominence`.

        Faces of low confidence are included only if there is no other face.
        """
        faces = sorted(self._find(np.ascontiguousarray(image)), key=lambda face: -face.prominence)
        return [face for face in faces if face.score >= self._sure_score] or faces

    @abstractmethod
    def smallest_face(self, height: int, width: int) -> int:
        """Return the side in pixels of the smallest face that is looked for in a photo of this size."""

    @abstractmethod
    def _find(self, image: NDArray[np.uint8]) -> Iterable[Detection]:
        """Find the faces of a contiguous image (H, W, 3), in any order."""


def given_file(weights: str) -> Path:
    """Return the path of a weights file, or raise FileNotFoundError if there is none."""
    path = expand_user(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no detector weights at {path.absolute()}: give the path of an existing file")
    return path


def packaged_file(name: str) -> Path:
    """Return `models/NAME` of the package face-recognition-models, or raise ImportError or FileNotFoundError."""
    return package_file("face_recognition_models", f"models/{name}", REMEDY)


def shrink(image: NDArray[np.uint8], longest: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Shrink an image so that no side exceeds `longest` pixels; return it and the factors (2,) in x and y."""
    height, width = image.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smaller = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(smaller, dtype=np.uint8), np.array([width / size[0], height / size[1]])


def enlarge(points: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map points (..., 2) in pixels of a shrunk image to pixels of the original image."""
    return (points + 0.5) * factors - 0.5
