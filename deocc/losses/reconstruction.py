"""Perceptual loss: completed and clean face compared by a frozen network's features.

With f_l the feature maps, each divided by its length over channels at every place,

    L = mean_l mean_places |f_l(c) - f_l(y)|^2

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385, names no such term: it is OURS and optional.
[1] Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016.
[2] Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018: channels of unit length, squared
    distances summed over them and averaged over places (there with learned weights a channel, here with equal ones).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.losses.distances import widen


def masked_l1_loss(
    generated_face: Tensor, face: Tensor, mask: Tensor, covered_weight: float = 1.0, visible_weight: float = 0.1
) -> Tensor:
    """Weighted l1 distance of a generated face from the clean one.

    Args:
        generated_face: (B, C, H, W), the generator's raw output or the completed face (whose visible pixels add nothing).
        face: (B, C, H, W).
        mask: (B, 1, H, W) in [0, 1], 1 = covered; fractions share a pixel between both means.
        covered_weight: weight of the covered pixels.
        visible_weight: weight of the visible pixels.

    Returns:
        Scalar; a batch without covered (or without visible) pixels adds 0 for them.

    Raises:
        ValueError: the shapes do not fit.
    """
    if generated_face.shape != face.shape or mask.shape != (len(face), 1, *face.shape[2:]):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (generated_face, face, mask))
        raise ValueError(f"expected faces (B, C, H, W) of one shape and a mask (B, 1, H, W), got {shapes}")
    error = (widen(generated_face) - widen(face)).abs().mean(1, keepdim=True)
    mask = mask.to(error.dtype)
    return covered_weight * _mean_where(error, mask) + visible_weight * _mean_where(error, 1 - mask)


class MaskedL1Loss(nn.Module):
    """`masked_l1_loss` with fixed weights."""

    def __init__(self, covered_weight: float = 1.0, visible_weight: float = 0.1) -> None:
        super().__init__()
        self.covered_weight, self.visible_weight = covered_weight, visible_weight

    def forward(self, generated_face: Tensor, face: Tensor, mask: Tensor) -> Tensor:
        """See `masked_l1_loss`."""
        return masked_l1_loss(generated_face, face, mask, self.covered_weight, self.visible_weight)


def _mean_where(error: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean within each image of (B, 1, H, W), then over the images of some weight; 0 where none has any."""
    amount = weight.flatten(1).sum(1)
    some = amount > 0
    means = (error * weight).flatten(1).sum(1) / amount.where(some, amount.new_ones(()))
    return means.sum() / some.sum().clamp_min(1)


Features = Callable[[Tensor], Sequence[Tensor] | Tensor]


def feature_distance(completed: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
    """Mean over maps and places of the squared distance of channel-normalised features; each map counts the same.

    Args:
        completed: feature maps (B, C_l, ...) of the completed faces; take the gradient.
        clean: those of the clean faces, in the same order; take none.

    Returns:
        Scalar in [0, 4].

    Raises:
        ValueError: no maps, or shapes that differ.
    """
    shapes = [[tuple(item.shape) for item in maps] for maps in (completed, clean)]
    if not completed or shapes[0] != shapes[1]:
        raise ValueError(
            f"expected feature maps of equal shapes of completed and clean faces, got {shapes[0]} and {shapes[1]}"
        )
    pairs = zip(completed, clean, strict=True)
    return torch.stack([(_unit(ours) - _unit(theirs.detach())).square().sum(1).mean() for ours, theirs in pairs]).mean()


def perceptual_loss(features: Features, completed_face: Tensor, face: Tensor) -> Tensor:
    """`feature_distance` through a feature network.

    Args:
        features: images (B, 3, H, W) in [-1, 1] to one feature tensor (B, C, ...) or a sequence of them.
        completed_face: (B, 3, H, W) in [-1, 1]; takes the gradient.
        face: (B, 3, H, W) in [-1, 1]; takes none.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes differ.
    """
    if completed_face.shape != face.shape:
        raise ValueError(
            f"expected completed and clean faces of one shape, got {tuple(completed_face.shape)} and {tuple(face.shape)}"
        )
    with torch.no_grad():
        targets = _listed(features(face))
    return feature_distance(_listed(features(completed_face)), targets)


class PerceptualLoss(nn.Module):
    """`perceptual_loss` through a network that it freezes, and keeps in evaluation mode.

    Args:
        network: see `perceptual_loss`'s `features`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Switch the mode of all but the frozen network."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, completed_face: Tensor, face: Tensor) -> Tensor:
        """See `perceptual_loss`."""
        return perceptual_loss(self.network, completed_face, face)


def _listed(output: Sequence[Tensor] | Tensor) -> Sequence[Tensor]:
    return [output] if isinstance(output, Tensor) else output


def _unit(features: Tensor) -> Tensor:
    """Of unit length over the channels."""
    return F.normalize(widen(features), dim=1)
