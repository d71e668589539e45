"""Masked l1: covered and visible pixels are averaged apart, so that a small mask counts as much as a big one.

With g the generator's output, y the clean face and M the mask (1 = covered), and every mean over pixels and channels,

    L = w_covered mean_covered |g - y| + w_visible mean_visible |g - y|

where each mean is taken within an image first, then over the images that have such pixels.

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385: trained against the clean face. That it is by l1 is inferred; weights
    and means are OURS.
"""

from torch import Tensor, nn

from deocc.losses.precision import widen


def masked_l1_loss(generated_face: Tensor, face: Tensor, mask: Tensor, covered_weight: float = 1.0, visible_weight: float = 0.1) -> Tensor:
    """Weighted l1 distance of a generated face from the clean one.

    Args:
        generated_face: (B, C, H, W), the generator's raw output or the completed face (whose visible pixels add nothing).
        face: (B, C, H, W).
        mask: (B, 1, H, W) in [0, 1], 1 = covered; fractions share a pixel between both means.
        covered_weight: weight of the covered pixels.
        visible_weight: weight of the visible pixels.

    Returns:
        Scalar; a batch without covered (or without visible) pixels adds 0 for them.

    Raises:
        ValueError: the shapes do not fit.
    """
    if generated_face.shape != face.shape or mask.shape != (len(face), 1, *face.shape[2:]):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (generated_face, face, mask))
        raise ValueError(f"expected faces (B, C, H, W) of one shape and a mask (B, 1, H, W), got {shapes}")
    error = (widen(generated_face) - widen(face)).abs().mean(1, keepdim=True)
    mask = mask.to(error.dtype)
    return covered_weight * _mean_where(error, mask) + visible_weight * _mean_where(error, 1 - mask)


class MaskedL1Loss(nn.Module):
    """`masked_l1_loss` with fixed weights."""

    def __init__(self, covered_weight: float = 1.0, visible_weight: float = 0.1) -> None:
        super().__init__()
        self.covered_weight, self.visible_weight = covered_weight, visible_weight

    def forward(self, generated_face: Tensor, face: Tensor, mask: Tensor) -> Tensor:
        """See `masked_l1_loss`."""
        return masked_l1_loss(generated_face, face, mask, self.covered_weight, self.visible_weight)


def _mean_where(error: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean within each image of (B, 1, H, W), then over the images of some weight; 0 where none has any."""
    amount = weight.flatten(1).sum(1)
    some = amount > 0
    means = (error * weight).flatten(1).sum(1) / amount.where(some, amount.new_ones(()))
    return means.sum() / some.sum().clamp_min(1)
