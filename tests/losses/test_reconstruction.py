"""Masked l1 loss, local chroma loss and feature distance."""

import pytest
import torch
from torch import Tensor

from deocc.losses import feature_distance, local_chroma_loss, masked_l1_loss
from tests import oracles


def images(seed: int, *shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def masks(seed: int, *shape: int) -> Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


_DRAWS = ((images, 3), (images, 3), (masks, 1))  # generated face, face and mask, with their channels


@pytest.mark.parametrize(("weights", "count"), [((1.0, 0.1), 4), ((0.0, 2.0), 4), ((1.0, 0.1), 1)])
def test_masked_l1_equals_oracle(weights: tuple[float, float], count: int) -> None:
    generated, face, mask = images(0, count, 3, 5, 6), images(1, count, 3, 5, 6), masks(2, count, 1, 5, 6)
    mask[1:2], mask[2:3] = 0, 1
    expected = oracles.masked_l1(generated, face, mask, *weights)
    assert float(masked_l1_loss(generated, face, mask, *weights)) == pytest.approx(expected, rel=1e-5)
    assert float(masked_l1_loss(generated, face, mask.bool(), *weights)) == pytest.approx(expected, rel=1e-5)
    default = oracles.masked_l1(generated, face, mask, 1.0, 0.1)
    assert float(masked_l1_loss(generated, face, mask)) == pytest.approx(default, rel=1e-5)


def test_masked_l1_weighs_masks_equally() -> None:
    face, mask = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    mask[0, :, 0, 0], mask[1, :, :7] = 1, 1
    for image in (0, 1):  # a small mask counts as much as a large one
        generated = face.clone()
        generated[image] = 0.5 * mask[image]
        assert float(masked_l1_loss(generated, face, mask)) == pytest.approx(0.25)


@pytest.mark.parametrize("covered", [0.0, 1.0])
def test_masked_l1_empty_and_full_masks(covered: float) -> None:
    generated, face = images(3, 2, 3, 4, 4).requires_grad_(), images(4, 2, 3, 4, 4)
    loss = masked_l1_loss(generated, face, torch.full((2, 1, 4, 4), covered))
    torch.testing.assert_close(loss, (1.0 if covered else 0.1) * (generated - face).abs().mean())
    assert torch.autograd.grad(loss, generated)[0].isfinite().all()


def test_masked_l1_of_completed_face() -> None:
    generated, face, mask = images(5, 2, 3, 4, 4), images(6, 2, 3, 4, 4), masks(7, 2, 1, 4, 4)
    completed = (1 - mask) * face + mask * generated
    torch.testing.assert_close(masked_l1_loss(completed, face, mask), masked_l1_loss(generated, face, mask, 1.0, 0.0))


def test_masked_l1_bad_shapes() -> None:
    face = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\), \(2, 3, 4, 4\), \(2, 4, 4\)"):
        masked_l1_loss(face, face, face[:, 0])
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\), \(2, 3, 4, 4\)"):
        masked_l1_loss(face[:1], face, face[:, :1])


@pytest.mark.parametrize(("count", "height", "width"), [(4, 16, 20), (1, 8, 8)])
def test_local_chroma_equals_oracle(count: int, height: int, width: int) -> None:
    generated, face, mask = (draw(i, count, c, height, width) for i, (draw, c) in enumerate(_DRAWS))
    mask[1:2], mask[2:3] = 0, 1
    expected = oracles.local_chroma(generated, face, mask)
    assert float(local_chroma_loss(generated, face, mask)) == pytest.approx(expected, rel=1e-5)
    assert float(local_chroma_loss(generated, face, mask.bool())) == pytest.approx(expected, rel=1e-5)


def test_local_chroma_ignores_brightness_and_details() -> None:
    face, mask = images(3, 2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    assert float(local_chroma_loss(face + images(4, 2, 1, 16, 16), face, mask)) == pytest.approx(0, abs=1e-6)
    red = torch.tensor([0.3, 0.0, 0.0])[:, None, None]  # chroma 0.2, -0.1 and -0.1
    stripes = torch.tensor([1.0, -1.0]).repeat(8)  # the mean of each cell is 0
    assert float(local_chroma_loss(face + red * stripes, face, mask)) == pytest.approx(0, abs=1e-6)
    assert float(local_chroma_loss(face + red, face, mask)) == pytest.approx(0.4 / 3)
    mask[:, :, :, :3] = 0
    assert float(local_chroma_loss(face + red, face, mask)) == pytest.approx(0.4 / 3)  # means of covered pixels


@pytest.mark.parametrize("covered", [0.0, 1.0])
def test_local_chroma_gradient(covered: float) -> None:
    generated, face = images(4, 2, 3, 16, 16).double().requires_grad_(), images(5, 2, 3, 16, 16).double()
    mask = masks(6, 2, 1, 16, 16).double()
    mask[0] = covered
    assert torch.autograd.gradcheck(lambda image: local_chroma_loss(image, face, mask), generated)
    (gradient,) = torch.autograd.grad(local_chroma_loss(generated, face, mask), generated)
    assert not gradient[(mask == 0).expand_as(gradient)].any()


def test_feature_distance_value_and_gradient() -> None:
    clean, completed = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    clean[:, 0], completed[:, 1] = 5, 0.1  # orthogonal unit vectors: squared distance 2
    assert float(feature_distance([completed], [clean])) == pytest.approx(2)
    assert float(feature_distance([completed, completed[:, :1] + 1], [clean, clean[:, :1] + 1])) == pytest.approx(1)
    assert float(feature_distance([3 * clean], [clean])) == 0
    ours, theirs = images(8, 2, 3, 4).double().requires_grad_(), images(9, 2, 3, 4).double().requires_grad_()
    feature_distance([ours], [theirs]).backward()
    assert theirs.grad is None and ours.grad is not None and ours.grad.any()
    assert torch.autograd.gradcheck(lambda maps: feature_distance([maps], [theirs]), ours)


def test_feature_distance_bad_maps() -> None:
    one, other = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)
    for completed, clean in (([], []), ([one], [other]), ([one, one], [one])):
        with pytest.raises(ValueError, match="feature maps of equal shapes"):
            feature_distance(completed, clean)
