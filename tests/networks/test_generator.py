"""Generator: shapes, what it may see, attention, and pasting back visible pixels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deocc.networks.discriminator import GlobalLocalDiscriminator
from deocc.networks.generator import Generator, compose
from deocc.networks.layers import pad_to_multiple
from tests.networks.images import box_mask, random_faces


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 48), (37, 51), (112, 112)])
def test_generator_shape_and_range(height: int, width: int) -> None:
    generator, face = Generator(8), random_faces(1, height, width)
    mask = box_mask(face, 4, 6, 13, 15)
    assert generator(face, mask).shape == face.shape
    nn.init.constant_(generator.to_image.weight, 50.0)
    assert generator(face, mask).abs().max() <= 1


def test_generator_pads_by_reflection() -> None:
    generator, face = Generator(8).eval(), random_faces(1, 37, 51)
    mask = box_mask(face, 5, 9, 30, 33)
    padded_face, padded_mask = (F.pad(image, (0, 5, 0, 3), mode="reflect") for image in (face, mask))
    assert torch.equal(generator(face, mask), generator(padded_face, padded_mask)[..., :37, :51])


def test_compose_keeps_visible_pixels() -> None:
    generator, face = Generator(8).eval(), random_faces(2, 37, 51)
    mask = box_mask(face, 5, 9, 30, 33)
    generated = generator(face, mask)
    assert torch.equal(compose(face, generated, mask), torch.where(mask.bool(), generated, face))
    assert not torch.equal(compose(face, generated, mask), face)


@pytest.mark.parametrize("size", [40, 37])
def test_generator_ignores_covered_pixels(size: int) -> None:
    generator, face = Generator(8).eval(), random_faces(2, size, size)
    mask = box_mask(face, 5, 9, size, size)
    other = torch.where(mask.bool(), random_faces(2, size, size), face)
    assert not torch.equal(face, other)
    assert torch.equal(generator(face, mask), generator(other, mask))
    assert not torch.equal(generator(face, mask), generator(-face, mask))


def test_grey_face_is_completed_in_grey() -> None:
    face = random_faces()
    face[0] = face[0, :1]
    generated = Generator(8)(face, box_mask(face, 5, 9, 30, 33))
    assert torch.equal(generated[0], generated[0, :1].expand(3, -1, -1))
    assert not torch.allclose(generated[1], generated[1, :1].expand(3, -1, -1), atol=1e-3)


@pytest.mark.parametrize(("box", "size"), [((5, 9, 30, 33), 40), ((8, 8, 9, 9), 40), ((20, 3, 37, 20), 37)])
def test_attention_uses_visible_patches_only(box: tuple[int, int, int, int], size: int) -> None:
    face = random_faces(2, size, size)
    mask = box_mask(face, *box)
    attention = Generator(8).attend(face, mask)
    assert attention.shape == (2, 5, 5, 5, 5)
    assert torch.allclose(attention.sum((3, 4)), torch.ones(2, 5, 5))
    covered = F.max_pool2d(pad_to_multiple(mask, 8), 8)[0, 0].bool()
    assert bool((attention[..., covered] == 0).all()) and bool((attention[..., ~covered] > 0).all())


@pytest.mark.parametrize("covered", [0.0, 1.0])
def test_empty_and_full_masks_are_finite(covered: float) -> None:
    face = random_faces()
    mask = torch.full_like(face[:, :1], covered)
    generator, discriminator = Generator(8), GlobalLocalDiscriminator(8)
    completed = compose(face, generator(face, mask), mask)
    loss = completed.square().mean() + sum(logits.mean() for logits in discriminator(completed, mask))
    loss.backward()
    assert bool(completed.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in generator.parameters() if p.grad is not None)
    assert bool((generator.attend(face, mask).sum((3, 4)) - (1 - covered)).abs().max() < 1e-5)
