"""Perceptual distance: how far a completed face is from the clean one in the feature maps of a network that the caller gives.

With f_l the maps of layer l, each divided by its length over channels at every place, and w_l weights of its channels,

    d = sum_l mean_places sum_channels w_l (f_l(restored) - f_l(face))^2

[0] Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018. This is the form of LPIPS. It is
    LPIPS only with the network and the learned weights published there; without weights every channel counts 1, which is OURS.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.evaluation.kind_means import KindMeans
from deocc.evaluation.restoration import check_images

Features = Callable[[Tensor], Sequence[Tensor] | Tensor]
"""From images (B, 3, H, W) in [-1, 1] to a feature map (B, C, h, w) or several."""


def perceptual_distance(
    features: Features, restored: Tensor, face: Tensor, mask: Tensor | None = None, weights: Sequence[Tensor] | None = None
) -> Tensor:
    """The distance d per image, without gradient and in float32 from the feature maps on.

    Args:
        features: the network, in evaluation mode.
        restored: (B, 3, H, W) in [-1, 1].
        face: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W), 1 = covered: a map's places are weighed by the covered share of their area. What they see reaches beyond it.
            None: all places alike.
        weights: (C_l,) for each map; None: all 1.

    Returns:
        (B,) from 0, at most 4 a map without weights; NaN where nothing is covered.

    Raises:
        ValueError: the images, the mask, the maps or the weights do not fit each other.
    """
    check_images(restored, face, mask)
    return sum(
        (_average(layer, mask) for layer in _layers(features, restored, face, weights)), start=torch.zeros(len(face), device=face.device)
    )


class PerceptualDistance(KindMeans):
    """Mean `perceptual_distance` over images, on the whole image and on the covered pixels, in all and by kind of occluder.

    >>> metric = PerceptualDistance(lambda images: images)
    >>> red, green = (torch.eye(3)[i].reshape(1, 3, 1, 1).expand(1, 3, 4, 4) for i in range(2))
    >>> metric.update(red, green, mask=torch.ones(1, 1, 4, 4), kind=torch.tensor([0]))
    >>> metric.compute()["mean"]
    {'perceptual': 2.0, 'perceptual_covered': 2.0}

    Args:
        features: as in `perceptual_distance`. A module is moved with the metric; whoever gives it freezes it.
        weights: as in `perceptual_distance`.
        kwargs: of `torchmetrics.Metric`.
    """

    def __init__(self, features: Features, weights: Sequence[Tensor] | None = None, **kwargs: Any) -> None:
        super().__init__(("perceptual", "perceptual_covered"), **kwargs)
        self.features = features
        self.weights = weights

    def update(self, restored: Tensor, face: Tensor, mask: Tensor, kind: Tensor) -> None:
        """Add a batch: images and masks as in `perceptual_distance`, `kind` (B,) int64 from -1. Uncovered images have no covered score.

        Raises:
            ValueError: as in `perceptual_distance`, or a kind is out of range.
        """
        check_images(restored, face, mask)
        layers = _layers(self.features, restored, face, self.weights)
        scores = [torch.stack([_average(layer, area) for layer in layers]).sum(0) for area in (None, mask)]
        covered = mask.flatten(1).any(1)
        self.add(torch.stack(scores, 1), torch.stack([torch.ones_like(covered), covered], 1), kind)


@torch.no_grad()
def _layers(features: Features, restored: Tensor, face: Tensor, weights: Sequence[Tensor] | None) -> list[Tensor]:
    """For each layer (B, 1, h, w), the weighted squared distance at every place."""
    ours, theirs = (_maps(features(images)) for images in (restored, face))
    weights = [torch.ones(maps.shape[1]) for maps in theirs] if weights is None else weights
    if any(maps.ndim != 4 for maps in theirs) or [len(weight) for weight in weights] != [maps.shape[1] for maps in theirs]:
        shapes = [tuple(maps.shape) for maps in theirs]
        raise ValueError(
            f"expected feature maps (B, C, h, w) and C weights for each, got {shapes} and {[len(weight) for weight in weights]}"
        )
    return [
        torch.einsum("bchw,c->bhw", (_unit(one) - _unit(other)).square(), weight.to(one.device, torch.float32))[:, None]
        for one, other, weight in zip(ours, theirs, weights, strict=True)
    ]


def _maps(output: Sequence[Tensor] | Tensor) -> Sequence[Tensor]:
    return [output] if isinstance(output, Tensor) else output


def _unit(features: Tensor) -> Tensor:
    """Of unit length over the channels."""
    return F.normalize(features.float(), dim=1)


def _average(layer: Tensor, mask: Tensor | None) -> Tensor:
    """(B,) mean over the places of (B, 1, h, w), weighed by how much of each is covered."""
    if mask is None:
        return layer.mean((1, 2, 3))
    share = F.adaptive_avg_pool2d(mask.float(), (layer.shape[2], layer.shape[3]))
    return (layer * share).sum((1, 2, 3)) / share.sum((1, 2, 3))
