"""Hinge and WGAN-GP adversarial losses.

With D(y) the logits of clean faces and D(c) those of completed faces:

    hinge             discriminator  mean max(0, 1 - D(y)) + mean max(0, 1 + D(c)),  generator  -mean D(c)
    wgan              discriminator  mean D(c) - mean D(y),                          generator  -mean D(c)
    gradient penalty  mean (|grad D(u)| - 1)^2,  u = a y + (1 - a) c,  a uniform in [0, 1] per image

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385. Trains adversarially against the clean face; the
    form of the loss is not known and is our choice.
[1] Lim and Ye, "Geometric GAN", 2017 (hinge).
[2] Arjovsky et al., "Wasserstein GAN", ICML 2017; Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS
    2017 (penalty).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.losses.distances import widen

KINDS = ("hinge", "wgan")


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: str) -> Tensor:
    """Loss of the discriminator.

    Args:
        real_logits: logits of clean faces, one per image or per patch.
        fake_logits: logits of completed faces detached from the generator.
        kind: "hinge" [1] or "wgan" [2].

    Returns:
        Scalar loss.

    Raises:
        ValueError: `kind` is unknown.
    """
    _check_kind(kind)
    real, fake = widen(real_logits), widen(fake_logits)
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return fake.mean() - real.mean()


def generator_loss(fake_logits: Tensor, kind: str) -> Tensor:
    """Loss of the generator, the same for both kinds; arguments and errors as for `discriminator_loss`."""
    _check_kind(kind)
    return -widen(fake_logits).mean()


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """Gradient penalty of WGAN-GP between clean and completed faces [2].

    Runs outside autocast because squared gradient norms overflow half precision. The discriminator must not mix images
    (no batch normalisation), otherwise the penalty is not defined per image [2].

    Args:
        discriminator: maps images (B, C, H, W) to logits of any shape.
        real: clean faces (B, C, H, W); detached.
        fake: completed faces (B, C, H, W); detached.
        share: interpolation weights (B,), drawn uniformly in [0, 1] [2]; 1 = clean.

    Returns:
        Scalar penalty, differentiable with respect to the discriminator's parameters.

    Raises:
        ValueError: the shapes do not match.
    """
    if real.shape != fake.shape or share.shape != real.shape[:1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (real, fake, share))
        raise ValueError(f"expected clean and completed faces (B, C, H, W) of one shape and shares (B,), got {shapes}")
    real, fake = real.detach(), fake.detach()
    weight = share.to(real).view(-1, *[1] * (real.ndim - 1))
    interpolated = torch.lerp(fake.to(real), real, weight).requires_grad_()
    with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(discriminator(interpolated).sum(), interpolated, create_graph=True)
        norm: Tensor = torch.linalg.vector_norm(widen(gradient).flatten(1), dim=1)
        penalty: Tensor = (norm - 1).square().mean()
        return penalty


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown adversarial kind {kind!r}: choose one of {', '.join(KINDS)}")
