"""Per-image metrics, averaged over images and per kind: PSNR and SSIM of completed faces, IoU of predicted masks.

[0] Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004.
[1] Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010 (intersection over union).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from deocc.evaluation.embeddings import BARE

PSNR_CAP = 100.0
"""PSNR in dB of identical images, instead of infinity. Our choice; rounding to 8 bits alone limits PSNR to 59 dB."""

_C1, _C2 = 0.01**2, 0.03**2  # constants of SSIM for images in [0, 1] [0]
_RADIUS = 5  # pixels of its window beside the centre [0]
_KINDS = 64  # rows of the sums: bare faces and up to 63 kinds


class KindMeans(Metric):
    """Base class of metrics that average per-image scores over images and per kind, across processes.

    A subclass implements `update`, which calls `add`.

    Args:
        names: names of the S scores.
        kwargs: passed to `torchmetrics.Metric`.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        self.add_state("total", default=torch.zeros(_KINDS, len(self.names)), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros(_KINDS, len(self.names)), dist_reduce_fx="sum")

    def add(self, scores: Tensor, known: Tensor, kind: Tensor) -> None:
        """Add a batch.

        Args:
            scores: (B, S).
            known: (B, S) bool, True where an image has the score.
            kind: (B,) int64, `BARE` for a bare face.

        Raises:
            ValueError: a kind is out of range, or there is not one per image.
        """
        if kind.shape != scores.shape[:1] or not bool(((kind >= BARE) & (kind < _KINDS + BARE)).all()):
            last = _KINDS + BARE - 1
            raise ValueError(f"expected kinds of shape ({len(scores)},) from {BARE} to {last}, got {kind.tolist()}")
        self.total.index_add_(0, kind - BARE, scores.where(known, 0.0))
        self.count.index_add_(0, kind - BARE, known.to(self.count.dtype))

    def compute(self) -> dict[str, Any]:
        """Return `mean`, scores by name, and `per_kind`, the same for each kind seen. Scores without images are NaN."""
        seen = self.count.any(1).nonzero().flatten().tolist()
        return {
            "mean": self._named(self.total.sum(0), self.count.sum(0)),
            "per_kind": {row + BARE: self._named(self.total[row], self.count[row]) for row in seen},
        }

    def _named(self, total: Tensor, count: Tensor) -> dict[str, float]:
        return dict(zip(self.names, (total / count).tolist(), strict=True))


def check_images(restored: Tensor, face: Tensor, mask: Tensor | None) -> None:
    """Check that images and masks fit each other.

    Raises:
        ValueError: the shapes are not (B, 3, H, W) twice and (B, 1, H, W).
    """
    fits = restored.ndim == 4 and face.shape == restored.shape
    if not fits or (mask is not None and mask.shape != (restored.shape[0], 1, *restored.shape[2:])):
        shapes = " and ".join(str(tuple(value.shape)) for value in (restored, face, mask) if value is not None)
        raise ValueError(f"expected two images (B, 3, H, W) and a mask (B, 1, H, W), got {shapes}")


def psnr(restored: Tensor, face: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the peak signal-to-noise ratio per image, 10 log10(4 / mean squared error); values have a range of 2.

    Args:
        restored: (B, 3, H, W) in [-1, 1].
        face: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W), 1 = covered: only covered pixels count. None uses all pixels.

    Returns:
        (B,) in dB, at most `PSNR_CAP`; NaN where nothing is covered.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_images(restored, face, mask)
    error = (restored.float() - face.float()).square()
    return (10 * torch.log10(4 / _image_mean(error, mask))).clamp_max(PSNR_CAP)


def ssim(restored: Tensor, face: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the structural similarity [0] per image, of images shifted to [0, 1] as its luminance term assumes.

    Args:
        restored: (B, 3, H, W) in [-1, 1], H and W at least 6.
        face: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W), 1 = covered: the similarity map, whose 11 x 11 windows extend further, is averaged over
            covered pixels. None uses all pixels.

    Returns:
        (B,) at most 1; NaN where nothing is covered.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_images(restored, face, mask)
    return _image_mean(_ssim_map(restored, face), mask)


class RestorationMetric(KindMeans):
    """Mean PSNR and SSIM over whole images and covered pixels.

    >>> metric = RestorationMetric()
    >>> face = torch.zeros(2, 3, 16, 16)
    >>> metric.update(face + 0.2, face, mask=torch.ones(2, 1, 16, 16), kind=torch.tensor([0, 3]))
    >>> scores = metric.compute()
    >>> round(scores["mean"]["psnr_covered"], 3), sorted(scores["per_kind"])
    (20.0, [0, 3])
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(("psnr", "ssim", "psnr_covered", "ssim_covered"), **kwargs)

    def update(self, restored: Tensor, face: Tensor, mask: Tensor, kind: Tensor) -> None:
        """Add a batch: images and masks as for `psnr`, kinds (B,) int64, `BARE` for a bare face.

        Raises:
            ValueError: the shapes do not fit, or a kind is out of range.
        """
        check_images(restored, face, mask)
        similarity_map = _ssim_map(restored, face)  # computed once for both areas, since it is expensive
        scores = [
            psnr(restored, face),
            _image_mean(similarity_map, None),
            psnr(restored, face, mask),
            _image_mean(similarity_map, mask),
        ]
        covered = mask.flatten(1).any(1)
        always = torch.ones_like(covered)
        self.add(torch.stack(scores, 1), torch.stack([always, always, covered, covered], 1), kind)


class MaskPredictionMetric(KindMeans):
    """Mean scores of predicted masks.

    `iou` [1] and `recall` are those of covered pixels of masked faces, at confidence 0.5. `found` is the share of
    images with any predicted mask, which for bare faces is the false alarm rate.

    >>> metric = MaskPredictionMetric()
    >>> mask = torch.zeros(1, 1, 4, 4); mask[..., :2] = 1
    >>> metric.update(mask.roll(1, 3), mask, torch.tensor([2]))
    >>> round(metric.compute()["mean"]["iou"], 3)
    0.333
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(("iou", "recall", "found"), **kwargs)

    def update(self, predicted_mask: Tensor, mask: Tensor, kind: Tensor) -> None:
        """Add a batch.

        Args:
            predicted_mask: (B, 1, H, W) in [0, 1].
            mask: (B, 1, H, W), 1 = covered; all 0 for a bare face.
            kind: (B,) int64, `BARE` for a bare face.

        Raises:
            ValueError: the shapes differ, or a kind is out of range.
        """
        if predicted_mask.shape != mask.shape:
            raise ValueError(
                f"expected masks of one shape (B, 1, H, W), got {tuple(predicted_mask.shape)} and {tuple(mask.shape)}"
            )
        predicted, covered = (predicted_mask > 0.5).flatten(1), (mask > 0.5).flatten(1)
        intersection, union = (predicted & covered).sum(1).float(), (predicted | covered).sum(1).float()
        found = (predicted_mask > 0).flatten(1).any(1)
        masked = covered.any(1)
        scores = [intersection / union.clamp_min(1), intersection / covered.sum(1).clamp_min(1), found.float()]
        self.add(torch.stack(scores, 1), torch.stack([masked, masked, torch.ones_like(masked)], 1), kind)


def _ssim_map(restored: Tensor, face: Tensor) -> Tensor:
    """Return (B, 3, H, W), the structural similarity of every pixel, with the window and the constants of [0].

    It is computed around the pixels that differ and 1 elsewhere.
    """
    similarity = torch.ones_like(restored, dtype=torch.float32)
    with torch.autocast(restored.device.type, enabled=False):  # variances as differences of squares need float32
        rows, columns = (_window_matrix(side, restored.device) for side in restored.shape[2:])
        for image, differs in enumerate((restored != face).any(1)):
            if bool(differs.any()):
                high, wide = _span(differs.any(1), _RADIUS), _span(differs.any(0), _RADIUS)
                pair = torch.stack([restored[image], face[image]]).float()
                similarity[image, :, high, wide] = _similarity(pair, rows[high], columns[wide])
    return similarity


def _similarity(pair: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return (3, h, w), the similarity of two images (2, 3, H, W) at the rows (h, H) and columns (w, W) of windows.

    Windows reach over the border into the mirrored image. A product with a matrix per axis is three times as fast as
    the two-dimensional convolution of torchmetrics.
    """
    high, wide = _span(rows.any(0)), _span(columns.any(0))  # the pixels under the windows
    x, y = (pair[..., high, wide] + 1) / 2
    means = rows[:, high] @ torch.stack([x, y, x * x, y * y, x * y]) @ columns[:, wide].T
    mean_x, mean_y, square_x, square_y, product = means
    variance = square_x - mean_x.square() + square_y - mean_y.square()
    structure = (2 * (product - mean_x * mean_y) + _C2) / (variance + _C2)
    similarity: Tensor = structure * (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return similarity


def _span(chosen: Tensor, margin: int = 0) -> slice:
    """Return the range from the first to the last true element of (N,) bool, wider by a margin within its borders."""
    places = chosen.nonzero()
    return slice(max(0, int(places[0]) - margin), int(places[-1]) + margin + 1)


def _window_matrix(side: int, device: torch.device) -> Tensor:
    """Return (side, side), which averages neighbours by a Gaussian of 11 pixels, mirrored at the border."""
    weight = torch.exp(-torch.arange(-_RADIUS, _RADIUS + 1.0, device=device).square() / (2 * 1.5**2))
    unit = F.pad(torch.eye(side, device=device)[:, None], (_RADIUS, _RADIUS), mode="reflect")
    return F.conv1d(unit, (weight / weight.sum()).view(1, 1, -1)).squeeze(1).T


def _image_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B,), the mean of (B, 3, H, W) per image, over covered pixels if there is a mask."""
    if mask is None:
        return values.mean((1, 2, 3))
    weight = mask.to(values.dtype)
    return (values.mean(1, keepdim=True) * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))
