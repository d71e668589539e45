"""Per-image metrics, averaged over images and per kind: PSNR and SSIM of completed faces, IoU of predicted masks.

[0] Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004.
[1] Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010 (intersection over union).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from deocc.evaluation.embeddings import BARE

# PSNR in dB of identical images, instead of infinity. Our choice; rounding to 8 bits alone limits PSNR to 59 dB.
PSNR_CAP = 100.0
_C1, _C2 = 0.01**2, 0.03**2  # constants of SSIM for images in [0, 1] [0]
_RADIUS = 5  # pixels of its window beside the centre [0]
_KINDS = 64  # rows of the sums: bare faces and up to 63 kinds


class KindMeans(Metric):
    """Base class of metrics that average per-image scores over images and per kind, across processes.

    A subclass names its S scores and implements `update`, which calls `add`.
    """

    names: tuple[str, ...]
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.zeros(_KINDS, len(self.names)), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros(_KINDS, len(self.names)), dist_reduce_fx="sum")

    def add(self, scores: Tensor, known: Tensor, kind: Tensor) -> None:
        """Add scores (B, S) of kinds (B,) int64, where `known` (B, S) is True; `BARE` is the kind of a bare face."""
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


class RestorationMetric(KindMeans):
    """Mean PSNR in dB and SSIM [0] over whole images and covered pixels.

    PSNR is 10 log10(4 / mean squared error), since values have a range of 2, and at most `PSNR_CAP`. SSIM is that of
    images shifted to [0, 1], as its luminance term assumes; over covered pixels, the similarity map is averaged, whose
    11 x 11 windows extend further.

    >>> metric = RestorationMetric()
    >>> face = torch.zeros(2, 3, 16, 16)
    >>> metric.update(face + 0.2, face, mask=torch.ones(2, 1, 16, 16), kind=torch.tensor([0, 3]))
    >>> scores = metric.compute()
    >>> round(scores["mean"]["psnr_covered"], 3), sorted(scores["per_kind"])
    (20.0, [0, 3])
    """

    names = ("psnr", "ssim", "psnr_covered", "ssim_covered")

    def update(self, restored: Tensor, face: Tensor, mask: Tensor, kind: Tensor) -> None:
        """Add images (B, 3, H, W) in [-1, 1], H and W at least 6, masks (B, 1, H, W), 1 = covered, and kinds (B,)."""
        error, similarity_map = (restored.float() - face.float()).square(), _ssim_map(restored, face)
        scores = []
        for area in (None, mask):
            scores.append((10 * torch.log10(4 / _image_mean(error, area))).clamp_max(PSNR_CAP))
            scores.append(_image_mean(similarity_map, area))
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

    names = ("iou", "recall", "found")

    def update(self, predicted_mask: Tensor, mask: Tensor, kind: Tensor) -> None:
        """Add a batch.

        Args:
            predicted_mask: (B, 1, H, W) in [0, 1].
            mask: (B, 1, H, W), 1 = covered; all 0 for a bare face.
            kind: (B,) int64, `BARE` for a bare face.
        """
        predicted, covered = (predicted_mask > 0.5).flatten(1), (mask > 0.5).flatten(1)
        intersection, union = (predicted & covered).sum(1).float(), (predicted | covered).sum(1).float()
        found = (predicted_mask > 0).flatten(1).any(1)
        masked = covered.any(1)
        scores = [intersection / union.clamp_min(1), intersection / covered.sum(1).clamp_min(1), found.float()]
        self.add(torch.stack(scores, 1), torch.stack([masked, masked, torch.ones_like(masked)], 1), kind)


def _ssim_map(restored: Tensor, face: Tensor) -> Tensor:
    """Return (B, 3, H, W), the structural similarity of every pixel, with the window and the constants of [0].

    It is computed around the pixels that differ and 1 elsewhere. Windows reach over the border into the mirrored image.
    A product with a matrix per axis is three times as fast as the two-dimensional convolution of torchmetrics.
    """
    similarity = torch.ones_like(restored, dtype=torch.float32)
    with torch.autocast(restored.device.type, enabled=False):  # variances as differences of squares need float32
        all_rows, all_columns = (_window_matrix(side, restored.device) for side in restored.shape[2:])
        for image, differs in enumerate((restored != face).any(1)):
            if not bool(differs.any()):
                continue
            high, wide = _span(differs.any(1), _RADIUS), _span(differs.any(0), _RADIUS)
            rows, columns = all_rows[high], all_columns[wide]
            under_rows, under_columns = _span(rows.any(0)), _span(columns.any(0))  # the pixels under the windows
            x, y = (torch.stack([restored[image], face[image]]).float()[..., under_rows, under_columns] + 1) / 2
            moments = torch.stack([x, y, x * x, y * y, x * y])
            mean_x, mean_y, square_x, square_y, product = rows[:, under_rows] @ moments @ columns[:, under_columns].T
            variance = square_x - mean_x.square() + square_y - mean_y.square()
            structure = (2 * (product - mean_x * mean_y) + _C2) / (variance + _C2)
            luminance = 2 * mean_x * mean_y + _C1
            similarity[image, :, high, wide] = structure * luminance / (mean_x.square() + mean_y.square() + _C1)
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
