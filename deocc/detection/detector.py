"""What a face detector is, and what it says of a face."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Detection:
    """One face. Coordinates name pixel centres of the image that was given; they may lie beyond its border.

    Attributes:
        box: (4,) x0, y0, x1, y1 in pixels.
        landmarks: (5, 2) x, y in pixels: eye, eye, nose, mouth corner, mouth corner, left to right in the image.
        score: the higher the surer. Its scale is the detector's own.
    """

    box: NDArray[np.float64]
    landmarks: NDArray[np.float64]
    score: float


class Detector(ABC):
    """Finds upright faces. A new one is a subclass with `name` and `_find`, and a line of `deocc.detection.registry`.

    Args:
        weights: path of its weights file; None for the one that an installed package ships, where there is one.

    Raises:
        ImportError: a package is not installed.
        FileNotFoundError: there is no such weights file.
        ValueError: the weights file is damaged or not of this detector.
    """

    name: str

    @abstractmethod
    def __init__(self, weights: str | None = None) -> None: ...

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        """All faces of an image, the highest score first; the size of a face has no part in the order.

        Args:
            image: (H, W, 3) RGB.

        Raises:
            ValueError: the image has another shape or type.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"expected an RGB image of shape (H, W, 3) and type uint8, got {image.shape} of {image.dtype}")
        return sorted(self._find(np.ascontiguousarray(image)), key=lambda found: -found.score)

    @abstractmethod
    def _find(self, image: NDArray[np.uint8]) -> Iterable[Detection]:
        """The faces of an image (H, W, 3) of contiguous memory, in any order."""


def shrink(image: NDArray[np.uint8], longest: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The image, no side above `longest` pixels, and the factors (2,) of x and y by which it became smaller, 1 where it fits already."""
    height, width = image.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smaller = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(smaller, dtype=np.uint8), np.array([width / size[0], height / size[1]])


def enlarge(points: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (..., 2) of the shrunk image in pixels of the image itself."""
    return (points + 0.5) * factors - 0.5
