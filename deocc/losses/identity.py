"""The task loss: cross-entropy on identities over cosine logits, with an optional margin.

With cos theta_k = <e, w_k> of unit vectors, scale gamma and y the true identity,

    L = -log softmax(gamma z)_y,  z_k = cos theta_k for k != y,

    z_y = cos theta_y (softmax),  cos theta_y - m (cosface),  cos(theta_y + m) (arcface; cos theta_y - m sin m where theta_y + m > pi).

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385: a task loss on identity labels. Its form was not readable; margins
    are OURS.
[1] Wang et al., "CosFace", CVPR 2018.
[2] Deng et al., "ArcFace", CVPR 2019; beyond pi as in the authors' code, github.com/deepinsight/insightface, so that z_y keeps falling.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.losses.distances import widen

MARGIN_TYPES = ("softmax", "cosface", "arcface")

SMALLEST_SQUARED_SINE = 1e-7
"""Float32's own rounding of a cosine near 1; below it the sine's slope, cos / sin, would grow without bound."""


def margin_logits(cosine: Tensor, identity: Tensor, margin_type: str, margin: float) -> Tensor:
    """Cosines with the margin taken from each sample's own identity.

    Args:
        cosine: (B, K) in [-1, 1], up to rounding.
        identity: (B,) int64, 0 <= identity < K.
        margin_type: softmax (no margin), cosface or arcface.
        margin: a cosine for cosface, radians below pi / 2 for arcface; softmax ignores it.

    Returns:
        (B, K), not yet scaled.

    Raises:
        ValueError: unknown margin type, a margin out of range, or shapes that do not fit.
    """
    check_margin(margin_type, margin)
    if cosine.ndim != 2 or identity.shape != cosine.shape[:1]:
        raise ValueError(
            f"expected cosines (B, K) and identities (B,), got {tuple(cosine.shape)} and {tuple(identity.shape)}"
        )
    cosine = widen(cosine)
    if margin_type == "softmax":
        return cosine
    index = identity[:, None]
    own = cosine.gather(1, index)
    return cosine.scatter(1, index, margin_cosine(own, margin_type, margin))


def margin_cosine(cosine: Tensor, margin_type: str, margin: float) -> Tensor:
    """z_y: cosines of any shape between samples and their own identities, with the margin taken from them.

    Raises:
        ValueError: unknown margin type, or a margin out of range.
    """
    check_margin(margin_type, margin)
    if margin_type == "softmax":
        return cosine
    return cosine - margin if margin_type == "cosface" else _add_angle(cosine, margin)


def identity_loss(
    cosine: Tensor,
    identity: Tensor,
    margin_type: str = "softmax",
    margin: float = 0.0,
    scale: float = 64.0,
    share: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of scaled cosine logits, mean over the batch.

    Args:
        cosine: (B, K) in [-1, 1].
        identity: (B,) int64, 0 <= identity < K; with shares (B, T), the people that a blended face is made of. OURS.
        margin_type: softmax, cosface or arcface.
        margin: see `margin_logits`.
        scale: gamma > 0; 64 is ArcFace's [2].
        share: (B, T), by which shares, or None: the loss is then the people's own losses in these shares.

    Returns:
        Scalar.

    Raises:
        ValueError: as `margin_logits`, shares and identities that differ in shape, or the scale is not positive.
    """
    check_scale(scale)
    if share is None:
        return F.cross_entropy(scale * margin_logits(cosine, identity, margin_type, margin), identity)
    if identity.ndim != 2 or share.shape != identity.shape:
        raise ValueError(
            f"expected identities and shares of one shape (B, T), got {tuple(identity.shape)} and {tuple(share.shape)}"
        )
    losses = [
        F.cross_entropy(scale * margin_logits(cosine, one, margin_type, margin), one, reduction="none")
        for one in identity.T
    ]
    return (torch.stack(losses, 1) * share).sum(1).mean()


class IdentityLoss(nn.Module):
    """`identity_loss` with its classifier: one weight vector an identity, compared by cosine.

    Args:
        num_identities: K, people in the training set.
        dim: D, the embedding's dimension.
        margin_type: softmax, cosface or arcface.
        margin: see `margin_logits`.
        scale: gamma > 0.

    Raises:
        ValueError: as `identity_loss`, or a count is not positive.
    """

    def __init__(
        self, num_identities: int, dim: int, margin_type: str = "softmax", margin: float = 0.0, scale: float = 64.0
    ) -> None:
        super().__init__()
        if num_identities < 1 or dim < 1:
            raise ValueError(f"num_identities and dim must be positive, got {num_identities} and {dim}")
        check_margin(margin_type, margin)
        check_scale(scale)
        self.margin_type, self.margin, self.scale = margin_type, margin, scale
        self.weight = nn.Parameter(torch.empty(num_identities, dim))
        nn.init.normal_(self.weight)  # directions only: the length never matters

    def initialise(self, centers: Tensor) -> None:
        """Start the classifier from the (K, D) identity centres, so that a student near its teacher starts near its optimum. OURS.

        Raises:
            ValueError: the centres' shape is not (K, D).
        """
        if centers.shape != self.weight.shape:
            raise ValueError(
                f"expected identity centres of shape {tuple(self.weight.shape)}, got {tuple(centers.shape)}"
            )
        with torch.no_grad():
            self.weight.copy_(centers)

    def cosine(self, embedding: Tensor) -> Tensor:
        """Cosines (B, K) of embeddings (B, D) and identities, in float32 or better whatever the autocast state."""
        weight = widen(self.weight)
        with torch.autocast(embedding.device.type, enabled=False):
            return F.linear(F.normalize(embedding.to(weight.dtype), dim=1), F.normalize(weight, dim=1))

    def forward(self, embedding: Tensor, identity: Tensor, share: Tensor | None = None) -> Tensor:
        """The scalar loss of embeddings (B, D); identities and shares as in `identity_loss`."""
        return identity_loss(self.cosine(embedding), identity, self.margin_type, self.margin, self.scale, share)


def _add_angle(cosine: Tensor, margin: float) -> Tensor:
    """cos(theta + margin), with a bounded slope and falling over all of [0, pi]."""
    sine = (1 - cosine.square()).clamp_min(SMALLEST_SQUARED_SINE).sqrt()
    rotated = cosine * math.cos(margin) - sine * math.sin(margin)
    within = cosine > math.cos(math.pi - margin)  # theta + margin < pi
    return torch.where(within, rotated, cosine - margin * math.sin(margin))


def check_margin(margin_type: str, margin: float) -> None:
    """Raise ValueError for an unknown margin type or a margin out of its range."""
    if margin_type not in MARGIN_TYPES:
        raise ValueError(f"unknown margin_type {margin_type!r}: choose one of {', '.join(MARGIN_TYPES)}")
    largest = math.pi / 2 if margin_type == "arcface" else math.inf
    if not 0 <= margin < largest:
        raise ValueError(f"{margin_type} needs a margin in [0, {largest:.4g}), got {margin}")


def check_scale(scale: float) -> None:
    """Raise ValueError unless the scale is positive."""
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
