"""Crops out of photos and back: against a slow twin, and bit-equal where nothing was pasted."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deocc.geometry import TEMPLATES, align, similarity_transform
from deocc.inference.faces import cut, paste_back, weight_in_photo

_PHOTO = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def _matrix(scale: float, angle: float, x: float, y: float) -> torch.Tensor:
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return torch.tensor([[cos, -sin, x], [sin, cos, y]], dtype=torch.float32)


def _slow_weight(
    weight: NDArray[np.float32], matrix: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float64]:
    """Bilinear interpolation pixel by pixel, zero beyond the crop."""
    padded = np.pad(weight.astype(np.float64), 2)
    shown = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            x, y = matrix @ np.array([column, row, 1.0])
            if -1 < x < len(weight) and -1 < y < len(weight):
                left, top = int(np.floor(x)), int(np.floor(y))
                across, down = x - left, y - top
                corners = padded[top + 2 : top + 4, left + 2 : left + 4]
                shown[row, column] = np.array([1 - down, down]) @ corners @ np.array([1 - across, across])
    return shown


@pytest.mark.parametrize(
    "matrix", [_matrix(1.0, 0.0, -20, -10), _matrix(0.8, 0.5, -5.3, -21.7), _matrix(0.3, -0.2, 2.5, 9)]
)
def test_the_weight_in_the_photo_is_the_interpolated_one(matrix: torch.Tensor) -> None:
    weight = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0))
    expected = _slow_weight(weight[0].numpy(), matrix.double().numpy(), 60, 90)
    np.testing.assert_allclose(
        weight_in_photo(weight, matrix, 60, 90), expected, atol=0.05
    )  # OpenCV places samples to 1/32 pixel


def test_whole_pixels_come_back_exactly_and_others_do_not_change() -> None:
    crop = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weight = torch.zeros(1, 16, 16)
    weight[:, 3:9, 5:16] = 1
    pasted = paste_back(_PHOTO, crop, _matrix(1.0, 0.0, -30, -20), weight)
    expected = _PHOTO.copy()
    expected[23:29, 35:46] = ((crop[:, 3:9, 5:16].permute(1, 2, 0).numpy() + 1) * 127.5).round()
    np.testing.assert_array_equal(pasted, expected)


def test_a_pasted_crop_of_the_photo_is_the_photo() -> None:
    smooth = np.linspace(0, 200, 60)[:, None, None] + np.linspace(0, 50, 90)[None, :, None] + np.zeros(3)
    photo = smooth.round().astype(np.uint8)
    matrix = _matrix(0.9, 0.4, 10, -12)
    pasted = paste_back(photo, cut(photo, matrix, 40), matrix, torch.ones(1, 40, 40))
    assert np.abs(pasted.astype(int) - photo).max() <= 2


def test_a_tall_crop_is_pasted_without_a_seam() -> None:
    photo = np.zeros((700, 40, 3), np.uint8)
    matrix = _matrix(0.1, 0.0, 4.0, -2.0)
    ramp = torch.linspace(-1, 1, 64)[:, None].expand(3, 64, 64)
    pasted = paste_back(photo, ramp, matrix, torch.ones(1, 64, 64))[30:640, 20, 0]
    expected = (np.arange(30, 640) * 0.1 - 2) / 63 * 255
    assert np.abs(pasted - expected).max() < 1


def test_a_crop_that_lies_beyond_the_photo_changes_nothing() -> None:
    pasted = paste_back(_PHOTO, torch.ones(3, 8, 8), _matrix(1.0, 0.0, 500, 500), torch.ones(1, 8, 8))
    np.testing.assert_array_equal(pasted, _PHOTO)


def test_a_crop_much_finer_than_the_photo_is_averaged() -> None:
    stripes = (torch.arange(64) % 2).float().expand(1, 64, 64) * 2 - 1
    pasted = paste_back(_PHOTO, stripes.expand(3, -1, -1), _matrix(8.0, 0.0, -80.0, -80.0), torch.ones(1, 64, 64))
    assert np.abs(pasted[12:16, 12:16].astype(int) - 128).max() <= 1


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_cut_equals_the_alignment_that_training_used(scale: float) -> None:
    landmarks = (TEMPLATES["canonical"].tensor(40) * scale + torch.tensor([9.0, 4.0])).numpy()
    photo = np.kron(_PHOTO, np.ones((3, 3, 1), np.uint8))
    expected, _ = align(photo, landmarks, 40)
    matrix = similarity_transform(torch.from_numpy(landmarks), TEMPLATES["canonical"].tensor(40))
    tolerance = 1e-4 if scale == 1 else 0.12  # a window is averaged on another grid than the whole photo
    assert float((cut(photo, matrix, 40) - expected).abs().mean()) < tolerance


def test_a_cut_out_of_a_very_fine_photo_keeps_its_place() -> None:
    landmarks = TEMPLATES["canonical"].tensor(40) * 20 + torch.tensor([30.0, 50.0])
    matrix = similarity_transform(landmarks, TEMPLATES["canonical"].tensor(40))
    rows, columns = np.mgrid[:900, :900]
    photo = np.stack([columns / 4, rows / 4, 0 * rows], 2).clip(0, 255).astype(np.uint8)
    crop = (cut(photo, matrix, 40) + 1) * 127.5
    places = torch.arange(40) * 20.0
    assert float((crop[0, 20] - (places + 30) / 4).abs().max()) < 1
    assert float((crop[1, :, 20] - (places + 50) / 4).abs().max()) < 1
