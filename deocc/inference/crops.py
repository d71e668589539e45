"""Cut canonical crops out of a photo, and paste crops back."""

from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.geometry import invert_transform, transform_points, warp

_MARGIN: Final = 3.0  # crop pixels around the crop, so that antialiasing sees the neighbours
_MAX_REFINEMENT: Final = 1.5  # crops that are finer than the photo by more are averaged first, as in `geometry.warp`
_BAND: Final = 256  # rows pasted at once: a face may fill a photo of 100 million pixels


def cut(photo: NDArray[np.uint8], matrix: Tensor, size: int) -> Tensor:
    """Cut a crop out of a photo; outside the photo its edge pixels are repeated.

    Args:
        photo: (H, W, 3) RGB.
        matrix: (2, 3) photo pixels to crop pixels.
        size: side of the crop in pixels.

    Returns:
        (3, size, size) in [-1, 1].
    """
    rows, columns = _crop_window(matrix, size, photo.shape, _MARGIN)
    window, matrix = _reduce(photo[rows, columns], _shift_origin(matrix, columns.start, rows.start))
    pixels = torch.tensor(window).permute(2, 0, 1)[None].float() / 127.5 - 1
    return warp(pixels, matrix, size)[0].clamp(-1, 1)


def paste_back(photo: NDArray[np.uint8], crop: Tensor, matrix: Tensor, weight: Tensor) -> NDArray[np.uint8]:
    """Return a copy of the photo with the crop in its place, unchanged wherever `weight_in_photo` is 0.

    Args:
        photo: (H, W, 3) RGB.
        crop: (3, S, S) in [-1, 1].
        matrix: (2, 3) photo pixels to crop pixels.
        weight: (1, S, S) opacity of the crop in [0, 1], such as a mask.

    Returns:
        (H, W, 3) RGB.
    """
    rows, columns = _crop_window(matrix, crop.shape[-1], photo.shape)
    pasted = photo.copy()
    for top in range(rows.start, rows.stop, _BAND):
        band = slice(top, min(top + _BAND, rows.stop)), columns
        colours = (_sample(crop, matrix, band, cv2.BORDER_REPLICATE) + 1) * 127.5
        opacity = _sample(weight, matrix, band, cv2.BORDER_CONSTANT)[..., None]
        mixed = photo[band] * (1 - opacity) + colours * opacity
        pasted[band] = np.where(opacity > 0, mixed.round().clip(0, 255).astype(np.uint8), photo[band])
    return pasted


def weight_in_photo(weight: Tensor, matrix: Tensor, height: int, width: int) -> NDArray[np.float32]:
    """Return the opacity of a crop, (1, S, S) in [0, 1], at each pixel of a photo, (height, width); 0 outside it."""
    rows, columns = _crop_window(matrix, weight.shape[-1], (height, width))
    opacity = np.zeros((height, width), np.float32)
    opacity[rows, columns] = _sample(weight, matrix, (rows, columns), cv2.BORDER_CONSTANT)
    return opacity


def _crop_window(matrix: Tensor, size: int, shape: tuple[int, ...], margin: float = 0.0) -> tuple[slice, slice]:
    """Return the rows and columns of a photo that a crop with a margin touches, at least one of each."""
    low, high = -1.0 - margin, size + margin
    corners = torch.tensor([(low, low), (high, low), (low, high), (high, high)])
    points = transform_points(corners, invert_transform(matrix))
    window = []
    first, last = points.amin(0).floor().tolist(), points.amax(0).ceil().tolist()
    for axis, length in ((1, shape[0]), (0, shape[1])):
        start = int(min(max(first[axis], 0), length - 1))
        window.append(slice(start, int(max(min(last[axis] + 1, length), start + 1))))
    return window[0], window[1]


def _shift_origin(matrix: Tensor, left: int, top: int) -> Tensor:
    """Return the matrix for a window of the photo that starts at (left, top)."""
    shift = torch.tensor([left, top], dtype=torch.float32)
    return torch.cat([matrix[:, :2], (matrix[:, 2] + matrix[:, :2] @ shift)[:, None]], 1)


def _reduce(window: NDArray[np.uint8], matrix: Tensor) -> tuple[NDArray[np.uint8], Tensor]:
    """Average a window that is much finer than the crop down to twice the crop's resolution, to save memory."""
    factor = int(0.5 / max(float(torch.linalg.det(matrix[:, :2]).abs().sqrt()), 1e-6))
    height, width = (side // max(factor, 1) for side in window.shape[:2])
    if factor < 2 or height < 2 or width < 2:
        return window, matrix
    factors = torch.tensor([window.shape[1] / width, window.shape[0] / height])
    small = np.asarray(cv2.resize(window, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    # Pixel centres: old = factor * new + (factor - 1) / 2.
    shift = matrix[:, 2] + matrix[:, :2] @ ((factors - 1) / 2)
    return small, torch.cat([matrix[:, :2] * factors, shift[:, None]], 1)


def _sample(crop: Tensor, matrix: Tensor, window: tuple[slice, slice], border: int) -> NDArray[np.float32]:
    """Sample a crop (C, S, S) at the pixels of a window of the photo: (h, w, C), or (h, w) if C is 1."""
    rows, columns = window
    pixels = crop.detach().cpu().float().permute(1, 2, 0).numpy()
    matrix = matrix.float()
    size = len(pixels)
    scale = float(torch.linalg.det(invert_transform(matrix)[:, :2]).abs().sqrt())  # photo pixels per crop pixel
    side = max(2, round(size * scale))
    if scale < 1 / _MAX_REFINEMENT and side < size:
        pixels = np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), dtype=np.float32)
        centre = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5]])
        matrix = (matrix + centre) * (side / size) - centre  # pixel centres: new = (old + 0.5) * factor - 0.5
    to_crop = _shift_origin(matrix, columns.start, rows.start).double().numpy()
    return np.asarray(
        cv2.warpAffine(
            pixels,
            to_crop,
            (columns.stop - columns.start, rows.stop - rows.start),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=border,
        ),
        dtype=np.float32,
    )
