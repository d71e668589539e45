"""Blur and mask noise against slow oracles."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from deocc.networks.layers import gaussian_blur, noisy_mask


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.7])
def test_gaussian_blur_equals_that_of_scipy(sigma: float) -> None:
    face = torch.rand(2, 3, 20, 17, generator=torch.Generator().manual_seed(0)) * 2 - 1
    radius = max(1, round(3 * sigma))
    expected = ndimage.gaussian_filter(
        face.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=radius / sigma
    )
    np.testing.assert_allclose(gaussian_blur(face, sigma).numpy(), expected, rtol=0, atol=1e-5)


def test_gaussian_blur_of_zero_changes_nothing() -> None:
    face = torch.rand(1, 3, 8, 8)
    assert torch.equal(gaussian_blur(face, 0), face)


def _slow_noise(mask: Tensor, steps: int) -> Tensor:
    """The mask grown by so many pixels, or shrunk by -`steps`, where the image's border shrinks nothing."""
    square = np.ones((3, 3), bool)
    if steps < 0:
        return torch.from_numpy(ndimage.binary_erosion(mask.numpy() > 0, square, -steps, border_value=1)).float()
    return torch.from_numpy(ndimage.binary_dilation(mask.numpy() > 0, square, steps)).float() if steps else mask


def test_noisy_mask_shrinks_or_grows_by_its_seed() -> None:
    mask = torch.zeros(8, 1, 16, 16)
    mask[:, :, 5:12, 0:9] = 1
    seed = torch.tensor([3, 0, 1, 2, 7, 4, 2**40 + 1, 6])
    noisy = noisy_mask(mask, seed)
    for number, steps in enumerate([2, -1, 0, 1, 2, -1, 0, 1]):
        assert torch.equal(noisy[number, 0], _slow_noise(mask[number, 0], steps)), number
    assert torch.equal(noisy_mask(mask[3:4], seed[3:4])[0], noisy[3])


def test_noisy_mask_leaves_bare_faces_bare() -> None:
    assert not noisy_mask(torch.zeros(4, 1, 8, 8), torch.arange(4)).any()
