"""Distribution distances: are completed faces, as a crowd, like clean ones? Frechet and kernel distance of a given network's features.

The published FID [0] and KID [1] take a certain Inception network's features; these take those of any network that the caller gives, so the
figures compare with none computed by another network. They see whole images: a crowd has no covered pixels in common.

[0] Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017.
[1] Binkowski et al., "Demystifying MMD GANs", ICLR 2018: the kernel (x.y / D + 1)^3 and the unbiased estimate.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel
from torchmetrics.utilities import dim_zero_cat

from deocc.evaluation.restoration import KindMeans, check_images

Features = Callable[[Tensor], Sequence[Tensor] | Tensor]
"""From images (B, 3, H, W) in [-1, 1] to a feature map (B, C, h, w) or several."""


def perceptual_distance(
    features: Features,
    restored: Tensor,
    face: Tensor,
    mask: Tensor | None = None,
    weights: Sequence[Tensor] | None = None,
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
        (_average(layer, mask) for layer in _layers(features, restored, face, weights)),
        start=torch.zeros(len(face), device=face.device),
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
    if any(maps.ndim != 4 for maps in theirs) or [len(weight) for weight in weights] != [
        maps.shape[1] for maps in theirs
    ]:
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


_ROWS = 1024  # of a kernel matrix that are held at a time

Embed = Callable[[Tensor], Tensor]
"""From images (B, 3, H, W) in [-1, 1] to features (B, D)."""


class FrechetDistance(FrechetInceptionDistance):
    """The Frechet distance of two Gaussians that have the means and covariances of the features of either crowd [0].

    It is biased upwards where images are few: many times D are needed, and only figures of equally many images compare.

    Args:
        network: as `Embed`, in evaluation mode. A module is moved with the metric; whoever gives it freezes it.
        dimension: D.
        kwargs: of `torchmetrics.Metric`.
    """

    def __init__(self, network: Embed, dimension: int, **kwargs: Any) -> None:
        super().__init__(feature=_Double(network, dimension), **kwargs)
        self.orig_dtype = (
            torch.float64
        )  # of the result; torchmetrics sets it in `update`, which a process without images never calls

    @torch.no_grad()
    def update(self, restored: Tensor, face: Tensor) -> None:  # type: ignore[override]  # both crowds at once, as our other metrics take them
        """Add completed faces and clean ones, either (B, 3, H, W) in [-1, 1]; their numbers may differ."""
        super().update(restored, real=False)
        super().update(face, real=True)

    def compute(self) -> Tensor:
        """Scalar float64 from 0.

        Raises:
            ValueError: fewer than two images of either crowd were seen.
        """
        _check(int(self.fake_features_num_samples), int(self.real_features_num_samples))
        return super().compute()


class KernelDistance(Metric):
    """The squared maximum mean discrepancy of either crowd's features under a cubic kernel, by the unbiased estimate [1].

    OURS: over all images at once. The published figure is a mean over random subsets, which estimates the same number with more noise.

    Args:
        network: as `Embed`, in evaluation mode. A module is moved with the metric; whoever gives it freezes it.
        kwargs: of `torchmetrics.Metric`.
    """

    full_state_update = False
    restored: list[Tensor]
    face: list[Tensor]

    def __init__(self, network: Embed, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = network
        self.add_state("restored", default=[], dist_reduce_fx="cat")
        self.add_state("face", default=[], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, restored: Tensor, face: Tensor) -> None:
        """Add completed faces and clean ones, either (B, 3, H, W) in [-1, 1]; their numbers may differ."""
        self.restored.append(_features(self.network, restored))
        self.face.append(_features(self.network, face))

    def compute(self) -> Tensor:
        """Scalar float64, 0 on average where both crowds are alike, so at times below 0.

        Raises:
            ValueError: fewer than two images of either crowd were seen.
        """
        restored, face = (
            dim_zero_cat(features) if len(features) else torch.empty(0, 1) for features in (self.restored, self.face)
        )
        _check(len(restored), len(face))
        return _within(restored) + _within(face) - 2 * _kernel_sum(restored, face) / (len(restored) * len(face))


class _Double(nn.Module):
    """The network as torchmetrics asks for it: it says how many features it has, and yields them in float64."""

    def __init__(self, network: Embed, dimension: int) -> None:
        super().__init__()
        self.network = network
        self.num_features = dimension

    def forward(self, images: Tensor) -> Tensor:
        return _features(self.network, images)


def _features(network: Embed, images: Tensor) -> Tensor:
    features = network(images)
    if features.ndim != 2 or len(features) != len(images):
        raise ValueError(
            f"expected features (B, D) of {len(images)} images, got {tuple(features.shape)}: give a network that pools its maps"
        )
    return features.double()


def _within(features: Tensor) -> Tensor:
    """The mean kernel value of two different images of one crowd."""
    own: Tensor = (features.square().mean(1) + 1).pow(3).sum()
    return (_kernel_sum(features, features) - own) / (len(features) * (len(features) - 1))


def _kernel_sum(first: Tensor, second: Tensor) -> Tensor:
    """The sum of the kernel over all pairs of rows."""
    return torch.stack([poly_kernel(rows, second).sum() for rows in first.split(_ROWS)]).sum()


def _check(restored: int, face: int) -> None:
    if min(restored, face) < 2:
        raise ValueError(f"{restored} completed and {face} clean faces were seen: two of either are needed at least")
