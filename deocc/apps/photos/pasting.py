"""Crops back into their photos."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.apps.photos.cutting import crop_window, moved
from deocc.geometry import invert_transform

_FINEST = 1.5
"""A crop more than so many times finer than the photo is averaged first, since sampling alone would alias; as in `deocc.geometry.warp`."""

_BAND = 256
"""Rows of the photo that are pasted at once: a face may fill a photo of 100 million pixels."""


def paste_back(photo: NDArray[np.uint8], crop: Tensor, matrix: Tensor, weight: Tensor) -> NDArray[np.uint8]:
    """A copy of the photo with the crop in its place, bit-equal to the photo wherever `weight_in_photo` is 0.

    Args:
        photo: (H, W, 3) RGB.
        crop: (3, S, S) in [-1, 1].
        matrix: (2, 3) photo pixels to crop pixels.
        weight: (1, S, S) in [0, 1], how much of the crop shows: a mask, or a soft one.

    Returns:
        (H, W, 3) RGB.
    """
    rows, columns = crop_window(matrix, crop.shape[-1], photo.shape)
    pasted = photo.copy()
    for top in range(rows.start, rows.stop, _BAND):
        band = slice(top, min(top + _BAND, rows.stop)), columns
        colours = _in_window(crop, matrix, band, cv2.BORDER_REPLICATE)
        shown = _in_window(weight, matrix, band, cv2.BORDER_CONSTANT)[..., None]
        mixed = photo[band] * (1 - shown) + (colours + 1) * 127.5 * shown
        pasted[band] = np.where(shown > 0, mixed.round().clip(0, 255).astype(np.uint8), photo[band])
    return pasted


def weight_in_photo(weight: Tensor, matrix: Tensor, height: int, width: int) -> NDArray[np.float32]:
    """How much of a crop shows at each pixel of a photo of this size, (height, width) in [0, 1]; 0 beyond the crop.

    Args:
        weight: (1, S, S) in [0, 1].
        matrix: (2, 3) photo pixels to crop pixels.
        height: of the photo.
        width: of the photo.
    """
    rows, columns = crop_window(matrix, weight.shape[-1], (height, width))
    shown = np.zeros((height, width), np.float32)
    shown[rows, columns] = _in_window(weight, matrix, (rows, columns), cv2.BORDER_CONSTANT)
    return shown


def _in_window(crop: Tensor, matrix: Tensor, window: tuple[slice, slice], border: int) -> NDArray[np.float32]:
    """The crop (C, S, S), sampled at the pixels of a photo's window: (h, w, C), or (h, w) where C is 1."""
    rows, columns = window
    pixels, matrix = _coarser(crop.detach().cpu().float().permute(1, 2, 0).numpy(), matrix.float())
    to_crop = moved(matrix, torch.tensor([columns.start, rows.start], dtype=torch.float32)).double().numpy()
    size = (columns.stop - columns.start, rows.stop - rows.start)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(pixels, to_crop, size, flags=flags, borderMode=border), dtype=np.float32)


def _coarser(pixels: NDArray[np.float32], matrix: Tensor) -> tuple[NDArray[np.float32], Tensor]:
    size = len(pixels)
    scale = float(torch.linalg.det(invert_transform(matrix)[:, :2]).abs().sqrt())
    side = max(2, round(size * scale))
    if scale >= 1 / _FINEST or side >= size:
        return pixels, matrix
    small = np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), dtype=np.float32)
    factor = side / size
    centre = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5]])
    return small, (matrix + centre) * factor - centre  # pixel centres: new = (old + 0.5) * factor - 0.5
