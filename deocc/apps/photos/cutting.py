"""Crops out of photos of any size, without a copy of the whole photo as floating-point numbers."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.geometry import invert_transform, transform_points, warp

_MARGIN = 3.0
"""Pixels of the crop that the window of the photo is wider on every side, so that smoothing sees the neighbours."""


def cut(photo: NDArray[np.uint8], matrix: Tensor, size: int) -> Tensor:
    """The crop of a photo; what lies beyond the photo's border repeats its edge.

    Args:
        photo: (H, W, 3) RGB.
        matrix: (2, 3) photo pixels to crop pixels.
        size: side of the crop in pixels.

    Returns:
        (3, size, size) in [-1, 1].
    """
    rows, columns = crop_window(matrix, size, photo.shape, _MARGIN)
    window = photo[rows, columns]
    shift = torch.tensor([columns.start, rows.start], dtype=torch.float32)
    window, matrix = _halved(window, moved(matrix, shift))
    pixels = torch.tensor(window).permute(2, 0, 1)[None].float() / 127.5 - 1
    return warp(pixels, matrix, size)[0].clamp(-1, 1)


def crop_window(matrix: Tensor, size: int, shape: tuple[int, ...], margin: float = 0.0) -> tuple[slice, slice]:
    """Rows and columns of a photo (H, W, ...) that a crop and `margin` of its pixels around it touch, at least one of each."""
    low, high = -1.0 - margin, size + margin
    corners = torch.tensor([(low, low), (high, low), (low, high), (high, high)])
    points = transform_points(corners, invert_transform(matrix))
    (left, top), (right, bottom) = points.amin(0).floor().tolist(), points.amax(0).ceil().tolist()
    return _within(top, bottom, shape[0]), _within(left, right, shape[1])


def _within(low: float, high: float, length: int) -> slice:
    start = int(min(max(low, 0), length - 1))
    return slice(start, int(max(min(high + 1, length), start + 1)))


def moved(matrix: Tensor, shift: Tensor) -> Tensor:
    """The (2, 3) matrix for a photo's window whose first pixel lies at `shift`, (2,) x, y."""
    return torch.cat([matrix[:, :2], (matrix[:, 2] + matrix[:, :2] @ shift)[:, None]], 1)


def _halved(window: NDArray[np.uint8], matrix: Tensor) -> tuple[NDArray[np.uint8], Tensor]:
    """A window several times finer than its crop, averaged down to about twice as fine before it becomes floating-point numbers."""
    factor = int(0.5 / max(float(torch.linalg.det(matrix[:, :2]).abs().sqrt()), 1e-6))
    height, width = (side // max(factor, 1) for side in window.shape[:2])
    if factor < 2 or height < 2 or width < 2:
        return window, matrix
    factors = torch.tensor([window.shape[1] / width, window.shape[0] / height])
    small = np.asarray(cv2.resize(window, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    shifted = moved(matrix, (factors - 1) / 2)
    return small, torch.cat([shifted[:, :2] * factors, shifted[:, 2:]], 1)
