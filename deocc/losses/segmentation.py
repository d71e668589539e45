"""Mask segmentation: cross-entropy a pixel, plus a soft Dice term that does not fade for small masks.

With p = sigmoid(logits), M the mask (1 = covered) and sums over an image's pixels,

    L = mean BCE(p, M) + mean_images (1 - (2 sum p M + 1) / (sum p + sum M + 1))

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385, is given its masks: predicting them is OURS.
[1] Milletari et al., "V-Net", 3DV 2016: soft Dice; the added 1, in pixels, keeps it defined for an empty mask.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from deocc.losses.precision import widen


def mask_segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice of a predicted mask.

    Args:
        logits: (B, 1, H, W), positive = covered.
        mask: (B, 1, H, W) in [0, 1], 1 = covered.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes differ.
    """
    if logits.shape != mask.shape:
        raise ValueError(f"expected logits and mask of one shape (B, 1, H, W), got {tuple(logits.shape)} and {tuple(mask.shape)}")
    logits = widen(logits)
    mask = mask.to(logits.dtype)
    predicted, covered = logits.sigmoid().flatten(1), mask.flatten(1)
    overlap = (2 * (predicted * covered).sum(1) + 1) / (predicted.sum(1) + covered.sum(1) + 1)
    return F.binary_cross_entropy_with_logits(logits, mask) + (1 - overlap).mean()


class MaskSegmentationLoss(nn.Module):
    """`mask_segmentation_loss` as a module."""

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """See `mask_segmentation_loss`."""
        return mask_segmentation_loss(logits, mask)
