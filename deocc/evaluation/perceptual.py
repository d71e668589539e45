"""Distances in the feature space of a given network: perceptual, Frechet and kernel distance.

LPIPS [0], FID [1] and KID [2] use particular networks; the metrics here use any network that the caller provides, so
their values are comparable only for the same network. Frechet and kernel distance use whole images.

[0] Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018:
    d = sum over layers l of mean over positions of |f_l(x) - f_l(y)|^2, features normalised over channels; the
    published weights of the channels belong to other networks and are all 1 here.
[1] Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017.
[2] Binkowski et al., "Demystifying MMD GANs", ICLR 2018: kernel (x.y / D + 1)^3, unbiased estimate.
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

Features = Callable[[Tensor], Sequence[Tensor]]
"""Maps images (B, 3, H, W) in [-1, 1] to feature maps (B, C, h, w)."""

Embed = Callable[[Tensor], Tensor]
"""Maps images (B, 3, H, W) in [-1, 1] to features (B, D)."""

_ROWS = 1024  # rows of a kernel matrix that are held at a time


@torch.no_grad()
def perceptual_distances(features: Features, restored: Tensor, face: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the perceptual distance d [0] per image, without gradient, in float32 from the feature maps on.

    Args:
        features: network in evaluation mode.
        restored: (B, 3, H, W) in [-1, 1].
        face: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W), 1 = covered.

    Returns:
        Two tensors (B,) from 0 to 4 per map: over the whole image, and with positions of a map weighted by the covered
        share of their area; the second is NaN where nothing is covered.

    Raises:
        ValueError: images and mask do not fit each other, or a map is not (B, C, h, w).
    """
    check_images(restored, face, mask)
    whole = covered = torch.zeros(len(face), device=face.device)
    for one, other in zip(features(restored), features(face), strict=True):
        if one.ndim != 4:
            raise ValueError(f"expected feature maps (B, C, h, w), got {tuple(one.shape)}")
        distance = (F.normalize(one.float(), dim=1) - F.normalize(other.float(), dim=1)).square().sum(1)
        share = F.adaptive_avg_pool2d(mask.float(), (one.shape[2], one.shape[3]))[:, 0]
        whole = whole + distance.mean((1, 2))
        covered = covered + (distance * share).sum((1, 2)) / share.sum((1, 2))
    return whole, covered


class PerceptualDistance(KindMeans):
    """Mean of `perceptual_distances` over images.

    >>> metric = PerceptualDistance(lambda images: [images])
    >>> red, green = (torch.eye(3)[i].reshape(1, 3, 1, 1).expand(1, 3, 4, 4) for i in range(2))
    >>> metric.update(red, green, mask=torch.ones(1, 1, 4, 4), kind=torch.tensor([0]))
    >>> metric.compute()["mean"]
    {'perceptual': 2.0, 'perceptual_covered': 2.0}

    Args:
        features: see `perceptual_distances`. A module is moved with the metric; the caller freezes it.
        kwargs: passed to `torchmetrics.Metric`.
    """

    def __init__(self, features: Features, **kwargs: Any) -> None:
        super().__init__(("perceptual", "perceptual_covered"), **kwargs)
        self.features = features

    def update(self, restored: Tensor, face: Tensor, mask: Tensor, kind: Tensor) -> None:
        """Add a batch: images and masks as for `perceptual_distances`, kinds (B,) int64 from -1.

        Raises:
            ValueError: as for `perceptual_distances`, or a kind is out of range.
        """
        scores = torch.stack(perceptual_distances(self.features, restored, face, mask), 1)
        covered = mask.flatten(1).any(1)
        self.add(scores, torch.stack([torch.ones_like(covered), covered], 1), kind)


class FrechetDistance(FrechetInceptionDistance):
    """Frechet distance of Gaussians with the means and covariances of the features of both sets [1].

    It is biased upwards for few images: many times D are needed, and only values of equal numbers of images compare.

    Args:
        network: in evaluation mode. A module is moved with the metric; the caller freezes it.
        dimension: D.
        kwargs: passed to `torchmetrics.Metric`.
    """

    def __init__(self, network: Embed, dimension: int, **kwargs: Any) -> None:
        super().__init__(feature=_DoubleFeatures(network, dimension), **kwargs)
        # torchmetrics sets the dtype of the result in `update`, which a process without images never calls
        self.orig_dtype = torch.float64

    @torch.no_grad()
    def update(self, restored: Tensor, face: Tensor) -> None:  # type: ignore[override]  # both sets at once
        """Add completed and clean faces, each (B, 3, H, W) in [-1, 1]; their numbers may differ."""
        super().update(restored, real=False)
        super().update(face, real=True)

    def compute(self) -> Tensor:
        """Return a float64 scalar, at least 0.

        Raises:
            ValueError: a set has fewer than two images.
        """
        _check_counts(int(self.fake_features_num_samples), int(self.real_features_num_samples))
        return super().compute()


class KernelDistance(Metric):
    """Squared maximum mean discrepancy of the features of both sets with a cubic kernel, unbiased estimate [2].

    All images are used at once (our choice). The published value is a mean over random subsets, which estimates the
    same number with more noise.

    Args:
        network: in evaluation mode. A module is moved with the metric; the caller freezes it.
        kwargs: passed to `torchmetrics.Metric`.
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
        """Add completed and clean faces, each (B, 3, H, W) in [-1, 1]; their numbers may differ."""
        self.restored.append(_double_features(self.network, restored))
        self.face.append(_double_features(self.network, face))

    def compute(self) -> Tensor:
        """Return a float64 scalar, 0 on average for equal distributions, hence sometimes below 0.

        Raises:
            ValueError: a set has fewer than two images.
        """
        restored, face = (
            dim_zero_cat(features) if len(features) else torch.empty(0, 1) for features in (self.restored, self.face)
        )
        _check_counts(len(restored), len(face))
        between = _kernel_sum(restored, face) / (len(restored) * len(face))
        return _mean_kernel_within(restored) + _mean_kernel_within(face) - 2 * between


class _DoubleFeatures(nn.Module):
    """Adapter for torchmetrics: features in float64 and their number."""

    def __init__(self, network: Embed, dimension: int) -> None:
        super().__init__()
        self.network = network
        self.num_features = dimension

    def forward(self, images: Tensor) -> Tensor:
        return _double_features(self.network, images)


def _double_features(network: Embed, images: Tensor) -> Tensor:
    features = network(images)
    if features.ndim != 2 or len(features) != len(images):
        raise ValueError(
            f"expected features (B, D) of {len(images)} images, got {tuple(features.shape)}: "
            "give a network that pools its maps"
        )
    return features.double()


def _mean_kernel_within(features: Tensor) -> Tensor:
    """Return the mean kernel value of two different images of a set."""
    diagonal: Tensor = (features.square().mean(1) + 1).pow(3).sum()
    return (_kernel_sum(features, features) - diagonal) / (len(features) * (len(features) - 1))


def _kernel_sum(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([poly_kernel(rows, second).sum() for rows in first.split(_ROWS)]).sum()


def _check_counts(restored: int, face: int) -> None:
    if min(restored, face) < 2:
        raise ValueError(f"{restored} completed and {face} clean faces were seen: at least two of each are needed")
