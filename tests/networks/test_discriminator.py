"""Discriminators: the local crop, and training."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.networks.discriminator import LOCAL_MARGIN, GlobalLocalDiscriminator, crop_to_mask
from tests.networks.images import box_mask, random_faces


def coordinates(height: int, width: int) -> Tensor:
    """Image (1, 2, height, width) of its own pixel coordinates, x and y."""
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([columns, rows])[None]


@pytest.mark.parametrize(
    ("box", "left", "top", "side"),
    [
        ((20, 24, 36, 40), 18, 22, 20),  # a square is enlarged around its centre
        ((20, 24, 28, 40), 14, 22, 20),  # a tall box becomes a square
        ((0, 0, 16, 16), 0, 0, 20),  # at the border the crop moves inwards
        ((44, 48, 64, 64), 39, 39, 25),
        ((30, 30, 32, 32), 23, 23, 16),  # at least a quarter of the side
        ((2, 3, 62, 63), 0, 0, 64),  # at most the image
        ((0, 0, 0, 0), 0, 0, 64),  # no mask: the whole image
    ],
)
def test_local_crop_position(box: tuple[int, int, int, int], left: int, top: int, side: int) -> None:
    assert LOCAL_MARGIN == 1.25  # assumed by the expected values
    image = coordinates(64, 64)
    crop = crop_to_mask(image, box_mask(image, *box), 32)
    centres = (torch.arange(32) + 0.5) * side / 32 - 0.5
    assert torch.allclose(crop[0, 0, 16], (left + centres).clamp(0, 63), atol=1e-3)
    assert torch.allclose(crop[0, 1, :, 16], (top + centres).clamp(0, 63), atol=1e-3)


def test_local_crop_of_oblong_image() -> None:
    image = coordinates(32, 64)
    crop = crop_to_mask(image, box_mask(image, 10, 0, 50, 32), 50)  # side 40 * 1.25 = 50
    assert torch.allclose(crop[0, 0, 25], torch.arange(5.0, 55.0), atol=1e-3)
    assert crop[0, 1].min() == 0 and crop[0, 1].max() == 31


def test_local_logits_depend_on_mask_area_only() -> None:
    face = random_faces(1, 64, 64).requires_grad_()
    _, local = GlobalLocalDiscriminator(8)(face, box_mask(face.detach(), 20, 24, 36, 40))
    gradient = torch.autograd.grad(local.sum(), face)[0].abs().sum((0, 1))
    assert gradient[24:40, 20:36].min() > 0
    gradient[21:43, 17:39] = 0  # the crop, and one pixel of bilinear sampling
    assert gradient.max() == 0


def test_discriminator_learns() -> None:
    discriminator, real = GlobalLocalDiscriminator(8), random_faces()
    mask = box_mask(real, 4, 6, 20, 22)
    fake = torch.where(mask.bool(), torch.zeros_like(real), real)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3, betas=(0.5, 0.99))
    for _ in range(20):
        pairs = zip(discriminator(real, mask), discriminator(fake, mask), strict=True)
        margins = torch.stack([r.mean() - f.mean() for r, f in pairs])
        optimizer.zero_grad()
        F.softplus(-margins).sum().backward()
        optimizer.step()
    assert bool((margins > 0.1).all())
