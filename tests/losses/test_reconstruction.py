"""What compares images and masks: masked l1, the perceptual loss, mask segmentation."""

import math

import pytest
import torch
from torch import Tensor, nn

from deocc.losses import (
    MaskedL1Loss,
    MaskSegmentationLoss,
    PerceptualLoss,
    feature_distance,
    mask_segmentation_loss,
    masked_l1_loss,
    perceptual_loss,
)
from tests import oracles


def images(seed: int, *shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def masks(seed: int, *shape: int) -> Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


@pytest.mark.parametrize(("covered_weight", "visible_weight"), [(1.0, 0.1), (0.0, 2.0)])
def test_masked_l1_equals_the_loop_over_pixels(covered_weight: float, visible_weight: float) -> None:
    generated, face, mask = images(0, 4, 3, 5, 6), images(1, 4, 3, 5, 6), masks(2, 4, 1, 5, 6)
    mask[1], mask[2] = 0, 1
    found = MaskedL1Loss(covered_weight, visible_weight)(generated, face, mask)
    assert float(found) == pytest.approx(
        oracles.masked_l1(generated, face, mask, covered_weight, visible_weight), rel=1e-5
    )


def test_a_small_mask_counts_as_much_as_a_big_one() -> None:
    face, mask = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    mask[0, :, 0, 0], mask[1, :, :7] = 1, 1
    small, big = face.clone(), face.clone()
    small[0], big[1] = 0.5 * mask[0], 0.5 * mask[1]
    assert float(masked_l1_loss(small, face, mask)) == pytest.approx(0.25)
    assert float(masked_l1_loss(big, face, mask)) == pytest.approx(0.25)


@pytest.mark.parametrize("covered", [0.0, 1.0])
def test_a_batch_of_empty_or_full_masks_gives_a_finite_loss_and_gradient(covered: float) -> None:
    generated, face = images(3, 2, 3, 4, 4).requires_grad_(), images(4, 2, 3, 4, 4)
    loss = masked_l1_loss(generated, face, torch.full((2, 1, 4, 4), covered))
    expected = (1.0 if covered else 0.1) * (generated - face).abs().mean()
    torch.testing.assert_close(loss, expected)
    (slope,) = torch.autograd.grad(loss, generated)
    assert slope.isfinite().all()


def test_visible_pixels_of_a_completed_face_add_nothing() -> None:
    generated, face, mask = images(5, 2, 3, 4, 4), images(6, 2, 3, 4, 4), masks(7, 2, 1, 4, 4)
    completed = (1 - mask) * face + mask * generated
    torch.testing.assert_close(masked_l1_loss(completed, face, mask), masked_l1_loss(generated, face, mask, 1.0, 0.0))


def test_one_image_and_a_bool_mask_are_taken() -> None:
    generated, face, mask = images(13, 1, 3, 4, 4), images(14, 1, 3, 4, 4), masks(15, 1, 1, 4, 4)
    expected = oracles.masked_l1(generated, face, mask, 1.0, 0.1)
    assert float(MaskedL1Loss()(generated, face, mask.bool())) == pytest.approx(expected, rel=1e-5)


def test_masked_l1_refuses_shapes_that_do_not_fit() -> None:
    face = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\), \(2, 3, 4, 4\), \(2, 3, 4, 4\)"):
        masked_l1_loss(face, face, face)
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\), \(2, 3, 4, 4\)"):
        masked_l1_loss(face[:1], face, face[:, :1])


def test_the_perceptual_loss_is_the_mean_over_maps_of_the_squared_distance_of_unit_channels() -> None:
    face, completed = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    face[:, 0], completed[:, 1] = 5, 0.1
    assert float(perceptual_loss(lambda image: image, completed, face)) == pytest.approx(2)
    assert float(perceptual_loss(lambda image: [image, image[:, :1] + 1], completed, face)) == pytest.approx(1)
    assert float(perceptual_loss(lambda image: image, 3 * face, face)) == 0


def test_the_perceptual_network_is_frozen_and_stays_in_evaluation_mode() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    loss = PerceptualLoss(network).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    completed = images(8, 2, 3, 6, 6).requires_grad_()
    loss(completed, images(9, 2, 3, 6, 6)).backward()
    assert completed.grad is not None
    assert completed.grad.any()
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_the_perceptual_loss_refuses_faces_of_different_shape() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\) and \(2, 3, 4, 4\)"):
        perceptual_loss(lambda image: image, torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4))


def test_feature_maps_that_do_not_fit_are_refused() -> None:
    one, other = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)
    for completed, clean in (([], []), ([one], [other]), ([one, one], [one])):
        with pytest.raises(ValueError, match="feature maps of equal shapes"):
            feature_distance(completed, clean)


def _slow_segmentation(logits: Tensor, mask: Tensor) -> float:
    """The loss image by image: the mean cross-entropy of the worst quarter of the pixels, and Dice where there is a mask."""
    losses = []
    for image_logits, image_mask in zip(logits, mask, strict=True):
        pixels = [
            (1 / (1 + math.exp(-x)), m)
            for x, m in zip(image_logits.flatten().tolist(), image_mask.flatten().tolist(), strict=True)
        ]
        errors = sorted((-m * math.log(p) - (1 - m) * math.log(1 - p) for p, m in pixels), reverse=True)[
            : len(pixels) // 4
        ]
        loss = sum(errors) / len(errors)
        if any(m > 0 for _, m in pixels):
            loss += 1 - (2 * sum(p * m for p, m in pixels) + 1) / (
                sum(p for p, _ in pixels) + sum(m for _, m in pixels) + 1
            )
        losses.append(loss)
    return sum(losses) / len(losses)


def test_mask_segmentation_has_its_hand_made_value() -> None:
    logits, mask = torch.tensor([[[[0.0, math.log(3.0)]]]]), torch.tensor([[[[0.0, 1.0]]]])
    hardest = math.log(2)  # of ln 2 and ln 4/3
    dice = 1 - (2 * 0.75 + 1) / (0.5 + 0.75 + 1 + 1)
    assert float(MaskSegmentationLoss()(logits, mask)) == pytest.approx(hardest + dice)


def test_mask_segmentation_equals_the_loop() -> None:
    logits, mask = 3 * images(13, 4, 1, 6, 6), masks(14, 4, 1, 6, 6)
    mask[2] = 0
    assert float(mask_segmentation_loss(logits, mask)) == pytest.approx(_slow_segmentation(logits, mask), rel=1e-5)


def test_segmentation_of_a_bare_face_has_no_dice() -> None:
    logits = torch.full((1, 1, 4, 4), math.log(3.0))
    assert float(mask_segmentation_loss(logits, torch.zeros(1, 1, 4, 4))) == pytest.approx(math.log(4))
    one_pixel = torch.zeros(1, 1, 4, 4)
    one_pixel[..., 0, 0] = 1
    assert float(mask_segmentation_loss(logits, one_pixel)) > math.log(4) + 0.5


def test_segmentation_trains_the_hardest_quarter() -> None:
    logits = torch.arange(16.0).view(1, 1, 4, 4).requires_grad_()
    mask_segmentation_loss(logits, torch.zeros(1, 1, 4, 4)).backward()
    assert logits.grad is not None
    assert logits.grad.flatten().nonzero().flatten().tolist() == [12, 13, 14, 15]


def test_a_perfect_mask_costs_nothing_also_where_it_is_empty() -> None:
    mask = masks(10, 3, 1, 6, 6)
    mask[0] = 0
    assert float(mask_segmentation_loss(200 * mask - 100, mask)) == pytest.approx(0, abs=1e-6)
    assert float(mask_segmentation_loss(100 - 200 * mask, mask)) > 50


def test_mask_segmentation_passes_gradcheck_and_refuses_unequal_shapes() -> None:
    logits, mask = images(11, 2, 1, 3, 3).double().requires_grad_(), masks(12, 2, 1, 3, 3)
    mask[1] = 0
    assert torch.autograd.gradcheck(lambda x: mask_segmentation_loss(x, mask), logits)
    with pytest.raises(ValueError, match=r"\(2, 1, 3, 3\) and \(2, 3, 3\)"):
        mask_segmentation_loss(logits, mask[:, 0])
