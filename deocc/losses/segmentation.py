"""Mask segmentation loss: cross-entropy of the hardest pixels plus soft Dice.

With p = sigmoid(logits), mask M (1 = covered), sums over the pixels of an image, and the hardest quarter of its pixels
by cross-entropy:

    L = mean_images (mean_hardest BCE(p, M) + [M > 0 somewhere] (1 - (2 sum p M + 1) / (sum p + sum M + 1)))

Dice has almost no gradient on an image without a mask, so unmasked faces contribute the cross-entropy only.

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385, takes masks as given. Predicting them is our choice.
[1] Milletari et al., "V-Net", 3DV 2016 (soft Dice; the added 1 pixel keeps it defined for small masks).
[2] Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016.
"""

import torch.nn.functional as F
from torch import Tensor

from deocc.losses.distances import widen

_HARDEST = 0.25  # fraction of an image's pixels over which the cross-entropy is averaged


def mask_segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the hardest pixels [2] plus soft Dice [1].

    Args:
        logits: (B, 1, H, W), positive = covered.
        mask: (B, 1, H, W) in [0, 1], 1 = covered; 0 everywhere for an unmasked face.

    Returns:
        Scalar loss, averaged over images.

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
    hardest = cross_entropy.topk(max(1, round(_HARDEST * mask.shape[1])), dim=1).values.mean()
    predicted = logits.sigmoid()
    dice = 1 - (2 * (predicted * mask).sum(1) + 1) / (predicted.sum(1) + mask.sum(1) + 1)
    return hardest + (dice * mask.any(1)).mean()
