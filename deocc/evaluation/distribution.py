"""Distribution distances: are completed faces, as a crowd, like clean ones? Frechet and kernel distance of a given network's features.

The published FID [0] and KID [1] take a certain Inception network's features; these take those of any network that the caller gives, so the
figures compare with none computed by another network. They see whole images: a crowd has no covered pixels in common.

[0] Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017.
[1] Binkowski et al., "Demystifying MMD GANs", ICLR 2018: the kernel (x.y / D + 1)^3 and the unbiased estimate.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel
from torchmetrics.utilities import dim_zero_cat

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
        self.orig_dtype = torch.float64  # of the result; torchmetrics sets it in `update`, which a process without images never calls

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
        restored, face = (dim_zero_cat(features) if len(features) else torch.empty(0, 1) for features in (self.restored, self.face))
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
