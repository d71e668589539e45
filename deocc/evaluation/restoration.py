"""Restoration: how near a completed face is to the clean one. PSNR and SSIM per image, on the whole image and on the covered pixels apart.

The visible pixels are pasted back, so whole-image figures flatter whoever covers little: the covered ones compare generators.

[0] Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004: SSIM, window and constants.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from deocc.evaluation.kind_means import KindMeans

PSNR_CAP = 100.0
"""dB, what an identical image gets in place of infinity. OURS; an 8-bit image's rounding alone allows no more than 59."""
SCORES = ("psnr", "ssim", "psnr_covered", "ssim_covered")


def psnr(restored: Tensor, face: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio per image, 10 log10(4 / mean squared error): the range of values is 2.

    Args:
        restored: (B, 3, H, W) in [-1, 1].
        face: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W), 1 = covered: only these pixels count. None: all.

    Returns:
        (B,) dB, at most `PSNR_CAP`; NaN where nothing is covered.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_images(restored, face, mask)
    error = (restored.float() - face.float()).square()
    return (10 * torch.log10(4 / _mean(error, mask))).clamp_max(PSNR_CAP)


def ssim(restored: Tensor, face: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity per image [0], of the images shifted to [0, 1], where its luminance term has the published meaning.

    Args:
        restored: (B, 3, H, W) in [-1, 1], H and W at least 6.
        face: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W), 1 = covered: the similarity map is averaged over these pixels only. Its 11 x 11 windows reach beyond them.

    Returns:
        (B,) at most 1; NaN where nothing is covered.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_images(restored, face, mask)
    return _mean(_ssim_map(restored, face), mask)


def _ssim_map(restored: Tensor, face: Tensor) -> Tensor:
    """(B, 3, H, W) structural similarity of every place."""
    with torch.autocast(restored.device.type, enabled=False):  # variances as differences of squares need float32
        _, similarity_map = structural_similarity_index_measure(
            (restored.float() + 1) / 2, (face.float() + 1) / 2, reduction="none", data_range=1.0, return_full_image=True
        )
    return cast(Tensor, similarity_map)


class RestorationMetric(KindMeans):
    """Mean PSNR and SSIM over images, in all and by kind of occluder; sums reduce across processes.

    >>> metric = RestorationMetric()
    >>> face = torch.zeros(2, 3, 16, 16)
    >>> metric.update(face + 0.2, face, mask=torch.ones(2, 1, 16, 16), kind=torch.tensor([0, 3]))
    >>> scores = metric.compute()
    >>> round(scores["mean"]["psnr_covered"], 3), sorted(scores["per_kind"])
    (20.0, [0, 3])
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(SCORES, **kwargs)

    def update(self, restored: Tensor, face: Tensor, mask: Tensor, kind: Tensor) -> None:
        """Add a batch: images and masks as in `psnr`, `kind` (B,) int64 from -1. Uncovered images count for the whole-image scores only.

        Raises:
            ValueError: the shapes do not fit, or a kind is out of range.
        """
        check_images(restored, face, mask)
        similarity_map = _ssim_map(restored, face)  # once for both areas: it takes longer than the completion itself
        columns = [column for area in (None, mask) for column in (psnr(restored, face, area), _mean(similarity_map, area))]
        covered = mask.flatten(1).any(1)
        self.add(torch.stack(columns, 1), torch.stack([torch.ones_like(covered)] * 2 + [covered] * 2, 1), kind)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """(B,) mean of (B, 3, H, W) per image, weighted by the mask where there is one."""
    if mask is None:
        return values.mean((1, 2, 3))
    weight = mask.to(values.dtype)
    return (values.mean(1, keepdim=True) * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def check_images(restored: Tensor, face: Tensor, mask: Tensor | None) -> None:
    """Refuse images and masks that do not fit each other.

    Raises:
        ValueError: the shapes are not (B, 3, H, W) twice and (B, 1, H, W).
    """
    shapes = [tuple(value.shape) for value in (restored, face, mask) if value is not None]
    fits = restored.ndim == 4 and face.shape == restored.shape
    if not fits or (mask is not None and mask.shape != (restored.shape[0], 1, *restored.shape[2:])):
        raise ValueError(f"expected two images (B, 3, H, W) and a mask (B, 1, H, W), got {' and '.join(map(str, shapes))}")
