"""Mask segmentation loss."""

import math

import pytest
import torch
from torch import Tensor

from deocc.losses import mask_segmentation_loss


def logits_and_masks(count: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, noise = torch.rand(2, count, 1, side, side, generator=generator)
    return 6 * logits - 3, (noise < 0.3).float()


def oracle(logits: Tensor, mask: Tensor) -> float:
    """Compute the loss image by image and pixel by pixel."""
    losses: list[float] = []
    for image_logits, image_mask in zip(logits.flatten(1).tolist(), mask.flatten(1).tolist(), strict=True):
        probabilities = [1 / (1 + math.exp(-x)) for x in image_logits]
        pixels = list(zip(probabilities, image_mask, strict=True))
        errors = sorted((-m * math.log(p) - (1 - m) * math.log(1 - p) for p, m in pixels), reverse=True)
        hardest = errors[: len(pixels) // 4]
        loss = sum(hardest) / len(hardest)
        if any(image_mask):
            overlap = sum(p * m for p, m in pixels)
            loss += 1 - (2 * overlap + 1) / (sum(probabilities) + sum(image_mask) + 1)
        losses.append(loss)
    return sum(losses) / len(losses)


def test_segmentation_equals_oracle() -> None:
    logits, mask = logits_and_masks(4, 6, 13)
    mask[2] = 0
    assert float(mask_segmentation_loss(logits, mask)) == pytest.approx(oracle(logits, mask), rel=1e-5)


def test_segmentation_known_value() -> None:
    logits, mask = torch.tensor([[[[0.0, math.log(3.0)]]]]), torch.tensor([[[[0.0, 1.0]]]])
    hardest = math.log(2)  # of ln 2 and ln 4/3
    dice = 1 - (2 * 0.75 + 1) / (0.5 + 0.75 + 1 + 1)
    assert float(mask_segmentation_loss(logits, mask)) == pytest.approx(hardest + dice)


def test_segmentation_of_unmasked_face() -> None:
    logits, mask = torch.full((1, 1, 4, 4), math.log(3.0)), torch.zeros(1, 1, 4, 4)
    assert float(mask_segmentation_loss(logits, mask)) == pytest.approx(math.log(4))  # no Dice
    mask[..., 0, 0] = 1
    assert float(mask_segmentation_loss(logits, mask)) > math.log(4) + 0.5


def test_segmentation_trains_hardest_quarter() -> None:
    logits = torch.arange(16.0).view(1, 1, 4, 4).requires_grad_()
    mask_segmentation_loss(logits, torch.zeros(1, 1, 4, 4)).backward()
    assert logits.grad is not None
    assert logits.grad.flatten().nonzero().flatten().tolist() == [12, 13, 14, 15]


def test_segmentation_of_perfect_mask() -> None:
    mask = logits_and_masks(3, 6, 10)[1]
    mask[0] = 0
    assert float(mask_segmentation_loss(200 * mask - 100, mask)) == pytest.approx(0, abs=1e-6)
    assert float(mask_segmentation_loss(100 - 200 * mask, mask)) > 50


def test_segmentation_gradcheck_and_bad_shapes() -> None:
    logits, mask = logits_and_masks(2, 3, 11)
    mask[1] = 0
    assert torch.autograd.gradcheck(lambda x: mask_segmentation_loss(x, mask), logits.double().requires_grad_())
    with pytest.raises(ValueError, match=r"\(2, 1, 3, 3\) and \(2, 3, 3\)"):
        mask_segmentation_loss(logits, mask[:, 0])
