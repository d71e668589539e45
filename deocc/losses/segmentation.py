"""Mask segmentation: cross-entropy of the hardest pixels, and soft Dice where there is a mask.

With p = sigmoid(logits), M the mask (1 = covered), sums over an image's pixels and "hardest" the quarter of its pixels of the largest BCE,

    L = mean_images (mean_hardest BCE(p, M) + [M > 0 somewhere] (1 - (2 sum p M + 1) / (sum p + sum M + 1)))

Dice has next to no gradient on an image without a mask, so a bare face is left to the cross-entropy. [0] Li et al., "Look Through Masks",
ACM MM 2020, arXiv 2409.12385, is given its masks; predicting them and this loss are our choice.

[1] Milletari et al., "V-Net", 3DV 2016: soft Dice; the added 1, in pixels, keeps it defined for a small mask.
[2] Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from deocc.losses.distances import widen

HARDEST = 0.25
"""Share of an image's pixels that the cross-entropy is averaged over."""


def mask_segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the hardest pixels plus soft Dice of a predicted mask.

    Args:
        logits: (B, 1, H, W), positive = covered.
        mask: (B, 1, H, W) in [0, 1], 1 = covered; an image whose mask is 0 everywhere is bare.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes differ.
    """
    if logits.shape != mask.shape:
        raise ValueError(
            f"expected logits and mask of one shape (B, 1, H, W), got {tuple(logits.shape)} and {tuple(mask.shape)}"
        )
    logits = widen(logits).flatten(1)
    mask = mask.to(logits.dtype).flatten(1)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    hardest = cross_entropy.topk(max(1, round(HARDEST * mask.shape[1])), dim=1).values.mean()
    predicted = logits.sigmoid()
    dice = 1 - (2 * (predicted * mask).sum(1) + 1) / (predicted.sum(1) + mask.sum(1) + 1)
    return hardest + (dice * mask.any(1)).mean()


class MaskSegmentationLoss(nn.Module):
    """`mask_segmentation_loss` as a module."""

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """See `mask_segmentation_loss`."""
        return mask_segmentation_loss(logits, mask)
