"""Identity classification loss: cross-entropy over cosine logits, with an optional margin.

With cos theta_k = <e, w_k> of unit vectors, scale gamma and true identity y:

    L = -log softmax(gamma z)_y,  z_k = cos theta_k for k != y,

    z_y = cos theta_y       (softmax)
          cos theta_y - m   (cosface)
          cos(theta_y + m)  (arcface; cos theta_y - m sin m where theta_y + m > pi)

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385. Uses a task loss on identity labels, whose form was
    not readable. Margins, mixtures of identities and the initialisation from identity centres are our choice.
[1] Wang et al., "CosFace", CVPR 2018.
[2] Deng et al., "ArcFace", CVPR 2019; beyond pi as in the authors' code, github.com/deepinsight/insightface, so that
    z_y keeps decreasing.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.losses.distances import check_positive, widen

MARGIN_TYPES = ("softmax", "cosface", "arcface")
_MIN_SQUARED_SINE = 1e-7  # float32 rounding of a cosine near 1; below it the derivative cos / sin is unbounded


def margin_logits(cosine: Tensor, identity: Tensor, margin_type: str, margin: float) -> Tensor:
    """Apply the margin to the cosine of each sample's true identity.

    Args:
        cosine: (B, K) in [-1, 1], up to rounding.
        identity: (B,) int64 in [0, K).
        margin_type: "softmax" (no margin), "cosface" [1] or "arcface" [2].
        margin: a cosine for cosface, radians below pi / 2 for arcface; ignored by softmax.

    Returns:
        (B, K) logits before scaling.

    Raises:
        ValueError: unknown margin type, margin out of range, or shapes that do not match.
    """
    if cosine.ndim != 2 or identity.shape != cosine.shape[:1]:
        raise ValueError(
            f"expected cosines (B, K) and identities (B,), got {tuple(cosine.shape)} and {tuple(identity.shape)}"
        )
    cosine = widen(cosine)
    index = identity[:, None]
    return cosine.scatter(1, index, margin_cosine(cosine.gather(1, index), margin_type, margin))


def margin_cosine(cosine: Tensor, margin_type: str, margin: float) -> Tensor:
    """Compute z_y from the cosines, of any shape, between samples and their true identities.

    For arcface, z_y decreases over all of [0, pi] with a bounded derivative. Arguments and errors as for
    `margin_logits`.
    """
    check_margin(margin_type, margin)
    if margin_type == "softmax":
        return cosine
    if margin_type == "cosface":
        return cosine - margin
    sine = (1 - cosine.square()).clamp_min(_MIN_SQUARED_SINE).sqrt()
    rotated = cosine * math.cos(margin) - sine * math.sin(margin)
    below_pi = cosine > math.cos(math.pi - margin)  # theta + margin < pi
    return torch.where(below_pi, rotated, cosine - margin * math.sin(margin))


def identity_loss(
    cosine: Tensor,
    identity: Tensor,
    margin_type: str = "softmax",
    margin: float = 0.0,
    scale: float = 64.0,
    share: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of scaled cosine logits.

    Args:
        cosine: (B, K) in [-1, 1].
        identity: (B,) int64 in [0, K); with `share` (B, T), the identities mixed in each face.
        margin_type: see `margin_logits`, also for `margin`.
        margin: size of the margin.
        scale: gamma > 0; 64 as in ArcFace [2].
        share: mixture weights (B, T), by which the losses of the T identities are weighted; None for unmixed faces.

    Returns:
        Scalar loss, averaged over the batch.

    Raises:
        ValueError: as `margin_logits`, `share` and `identity` differ in shape, or `scale` is not positive.
    """
    check_positive(scale=scale)
    if share is None:
        return F.cross_entropy(scale * margin_logits(cosine, identity, margin_type, margin), identity)
    if identity.ndim != 2 or share.shape != identity.shape:
        raise ValueError(
            f"expected identities and shares of one shape (B, T), got {tuple(identity.shape)} and {tuple(share.shape)}"
        )
    losses = [
        F.cross_entropy(scale * margin_logits(cosine, column, margin_type, margin), column, reduction="none")
        for column in identity.T
    ]
    return (torch.stack(losses, 1) * share).sum(1).mean()


class IdentityLoss(nn.Module):
    """Cosine classifier with `identity_loss`.

    Args:
        num_identities: K, the number of training identities.
        dim: D, the embedding dimension.
        margin_type: see `margin_logits`, also for `margin`.
        margin: size of the margin.
        scale: gamma > 0.

    Raises:
        ValueError: as `identity_loss`, or `num_identities` or `dim` is not positive.
    """

    def __init__(
        self, num_identities: int, dim: int, margin_type: str = "softmax", margin: float = 0.0, scale: float = 64.0
    ) -> None:
        super().__init__()
        check_positive(num_identities=num_identities, dim=dim, scale=scale)
        check_margin(margin_type, margin)
        self.margin_type, self.margin, self.scale = margin_type, margin, scale
        self.weight = nn.Parameter(torch.randn(num_identities, dim))  # only the direction of a row matters

    @torch.no_grad()
    def initialise(self, centers: Tensor) -> None:
        """Copy the identity centres (K, D) into the classifier: near-optimal for a student near its teacher.

        Raises:
            ValueError: the shape of `centers` is not (K, D).
        """
        check_centers(centers, self.weight.shape)
        self.weight.copy_(centers)

    def cosine(self, embedding: Tensor) -> Tensor:
        """Compute the cosines (B, K) between embeddings (B, D) and identities, outside autocast."""
        weight = widen(self.weight)
        with torch.autocast(embedding.device.type, enabled=False):
            return F.linear(F.normalize(embedding.to(weight.dtype), dim=1), F.normalize(weight, dim=1))

    def forward(self, embedding: Tensor, identity: Tensor, share: Tensor | None = None) -> Tensor:
        """Return the scalar loss of embeddings (B, D); see `identity_loss` for `identity` and `share`."""
        return identity_loss(self.cosine(embedding), identity, self.margin_type, self.margin, self.scale, share)


def check_centers(centers: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless identity centres have the shape (K, D) of the classifier."""
    if centers.shape != shape:
        raise ValueError(f"expected identity centres of shape {tuple(shape)}, got {tuple(centers.shape)}")


def check_margin(margin_type: str, margin: float) -> None:
    """Raise ValueError for an unknown margin type or a margin out of range."""
    if margin_type not in MARGIN_TYPES:
        raise ValueError(f"unknown margin_type {margin_type!r}: choose one of {', '.join(MARGIN_TYPES)}")
    largest = math.pi / 2 if margin_type == "arcface" else math.inf
    if not 0 <= margin < largest:
        raise ValueError(f"{margin_type} needs a margin in [0, {largest:.4g}), got {margin}")
