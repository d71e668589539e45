"""Perceptual loss: completed and clean face compared by a frozen network's features.

With f_l the feature maps, each divided by its length over channels at every place,

    L = mean_l mean |f_l(c) - f_l(y)|

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385, names no such term: it is OURS and optional.
[1] Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016.
[2] Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018: channels of unit length.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.losses.precision import widen

Features = Callable[[Tensor], Sequence[Tensor] | Tensor]


def perceptual_loss(features: Features, completed_face: Tensor, face: Tensor) -> Tensor:
    """Mean l1 distance of channel-normalised features, each map of equal weight.

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
        raise ValueError(f"expected completed and clean faces of one shape, got {tuple(completed_face.shape)} and {tuple(face.shape)}")
    with torch.no_grad():
        targets = _maps(features, face)
    pairs = zip(_maps(features, completed_face), targets, strict=True)
    return torch.stack([F.l1_loss(ours, target) for ours, target in pairs]).mean()


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


def _maps(features: Features, image: Tensor) -> list[Tensor]:
    """The image's feature maps, each of unit length over its channels."""
    output = features(image)
    return [F.normalize(widen(item), dim=1) for item in ([output] if isinstance(output, Tensor) else output)]
