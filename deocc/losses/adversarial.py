"""Adversarial losses: what a discriminator and the generator play for.

With D(y) the logits of clean faces and D(c) those of completed ones,

    hinge  discriminator mean max(0, 1 - D(y)) + mean max(0, 1 + D(c)),   generator -mean D(c)
    wgan   discriminator mean D(c) - mean D(y),                           generator -mean D(c)
    gradient penalty  mean (|grad D(u)| - 1)^2,  u = a y + (1 - a) c,  a uniform in [0, 1] for each image

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385: adversarial training against the clean face; the form is OURS.
[1] Lim and Ye, "Geometric GAN", 2017 (hinge).
[2] Arjovsky et al., "Wasserstein GAN", ICML 2017; Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017 (penalty).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.losses.distances import widen

KINDS = ("hinge", "wgan")


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: str) -> Tensor:
    """What the discriminator minimises.

    Args:
        real_logits: any shape (one logit an image, or one a patch), of clean faces.
        fake_logits: any shape, of completed faces detached from the generator.
        kind: hinge or wgan.

    Returns:
        Scalar.

    Raises:
        ValueError: unknown kind.
    """
    _check_kind(kind)
    real, fake = widen(real_logits), widen(fake_logits)
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return fake.mean() - real.mean()


def generator_loss(fake_logits: Tensor, kind: str) -> Tensor:
    """What the generator minimises: the same for both kinds, which differ in the discriminator's part.

    Args:
        fake_logits: any shape, of completed faces.
        kind: hinge or wgan.

    Returns:
        Scalar.

    Raises:
        ValueError: unknown kind.
    """
    _check_kind(kind)
    return -widen(fake_logits).mean()


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, share: Tensor | None = None
) -> Tensor:
    """How far the discriminator's slope is from 1 between clean and completed faces [2].

    Runs outside autocast, since a squared gradient norm soon leaves half precision's range. The discriminator must treat images one by one
    (no batch normalisation), or the penalty has no meaning [2].

    Args:
        discriminator: images (B, C, H, W) to logits of any shape.
        real: (B, C, H, W).
        fake: (B, C, H, W); neither it nor `real` takes a gradient.
        share: (B,) in [0, 1], where between the two (0: completed); None draws it from torch's own generator.

    Returns:
        Scalar, differentiable with respect to the discriminator's parameters.

    Raises:
        ValueError: the shapes differ.
    """
    if real.shape != fake.shape:
        raise ValueError(
            f"expected clean and completed faces of one shape, got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    real, fake = real.detach(), fake.detach()
    share = torch.rand(len(real), device=real.device) if share is None else share
    between = torch.lerp(fake.to(real), real, share.to(real).view(-1, *[1] * (real.ndim - 1))).requires_grad_()
    with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
        (slope,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
        lengths: Tensor = torch.linalg.vector_norm(widen(slope).flatten(1), dim=1)
        penalty: Tensor = (lengths - 1).square().mean()
        return penalty


class DiscriminatorLoss(nn.Module):
    """`discriminator_loss` of one kind.

    Raises:
        ValueError: unknown kind.
    """

    def __init__(self, kind: str = "hinge") -> None:
        super().__init__()
        _check_kind(kind)
        self.kind = kind

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """See `discriminator_loss`."""
        return discriminator_loss(real_logits, fake_logits, self.kind)


class GeneratorLoss(nn.Module):
    """`generator_loss` of one kind.

    Raises:
        ValueError: unknown kind.
    """

    def __init__(self, kind: str = "hinge") -> None:
        super().__init__()
        _check_kind(kind)
        self.kind = kind

    def forward(self, fake_logits: Tensor) -> Tensor:
        """See `generator_loss`."""
        return generator_loss(fake_logits, self.kind)


def _check_kind(kind: str) -> None:
    """Raise ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"unknown adversarial kind {kind!r}: choose one of {', '.join(KINDS)}")
