"""Distances in the feature space of a given network: perceptual, Frechet and kernel distance.

LPIPS [0], FID [1] and KID [2] use particular networks; the metrics here use any network that the caller provides,
frozen and in evaluation mode, so their values are comparable only for the same network. A module is moved with its
metric. Frechet and kernel distance use whole images.

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

from deocc.evaluation.restoration import KindMeans

Features = Callable[[Tensor], Sequence[Tensor]]  # images (B, 3, H, W) in [-1, 1] to feature maps (B, C, h, w)
Embed = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] to features (B, D)

_ROWS = 1024  # rows of a kernel matrix that are held at a time


class PerceptualDistance(KindMeans):
    """Mean of the perceptual distance d [0] over images: of the whole image, and of covered positions.

    A position of a feature map is weighted by the covered share of its area. Distances are from 0 to 4 per map, and are
    computed in float32 from the feature maps on.
    """

    names = ("perceptual", "perceptual_covered")

    def __init__(self, features: Features, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features = features

    @torch.no_grad()
    def update(self, restored: Tensor, face: Tensor, mask: Tensor, kind: Tensor) -> None:
        """Add a batch: images and masks as for `RestorationMetric`, kinds (B,) int64, `BARE` for a bare face."""
        whole = covered = torch.zeros(len(face), device=face.device)
        for one, other in zip(self.features(restored), self.features(face), strict=True):
            distance = (F.normalize(one.float(), dim=1) - F.normalize(other.float(), dim=1)).square().sum(1)
            share = F.adaptive_avg_pool2d(mask.float(), (one.shape[2], one.shape[3]))[:, 0]
            whole = whole + distance.mean((1, 2))
            covered = covered + (distance * share).sum((1, 2)) / share.sum((1, 2))
        masked = mask.flatten(1).any(1)
        self.add(torch.stack([whole, covered], 1), torch.stack([torch.ones_like(masked), masked], 1), kind)


class FrechetDistance(FrechetInceptionDistance):
    """Frechet distance of Gaussians with the means and covariances of the features of both sets [1], at least 0.

    It is biased upwards for few images: many times D = `dimension`, the number of features, are needed, and only values
    of equal numbers of images compare.
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


class _DoubleFeatures(nn.Module):
    """Adapter for torchmetrics: features in float64 and their number."""

    def __init__(self, network: Embed, dimension: int) -> None:
        super().__init__()
        self.network, self.num_features = network, dimension

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).double()


class KernelDistance(Metric):
    """Squared maximum mean discrepancy of the features of both sets with a cubic kernel, unbiased estimate [2].

    All images are used at once (our choice). The published value is a mean over random subsets, which estimates the
    same number with more noise. It is 0 on average for equal distributions, hence sometimes below 0.
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
        self.restored.append(self.network(restored).double())
        self.face.append(self.network(face).double())

    def compute(self) -> Tensor:
        """Return a float64 scalar.

        Raises:
            ValueError: a set has fewer than two images.
        """
        restored, face = (
            dim_zero_cat(features) if len(features) else torch.empty(0, 1) for features in (self.restored, self.face)
        )
        _check_counts(len(restored), len(face))
        return _mean_kernel(restored, restored) + _mean_kernel(face, face) - 2 * _mean_kernel(restored, face)


def _check_counts(restored: int, face: int) -> None:
    if min(restored, face) < 2:
        raise ValueError("fewer than two faces were embedded: evaluate on at least two images")


def _mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean kernel value of an image of each set, or of two different images of one set."""
    total = torch.stack([poly_kernel(rows, second).sum() for rows in first.split(_ROWS)]).sum()
    if first is not second:
        return total / (len(first) * len(second))
    diagonal = (first.square().mean(1) + 1).pow(3).sum()
    return (total - diagonal) / (len(first) * (len(first) - 1))
