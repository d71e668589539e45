"""How well a predicted mask fits the given one: intersection over union by kind of occluder, and false alarms on bare faces.

[0] Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010: intersection over union of segmentations.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

_KINDS = 64  # rows of the sums: kind -1 and up to 63 kinds


class KindMeans(Metric):
    """The sums behind a metric that is a mean over images; they reduce across processes. A subclass writes `update` and calls `add` there.

    Args:
        names: of the S scores.
        kwargs: of `torchmetrics.Metric`.
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
        """Add a batch: scores (B, S), `known` (B, S) bool, whether an image has that score, and `kind` (B,) int64 from -1.

        Raises:
            ValueError: a kind is out of range, or there is not one an image.
        """
        if kind.shape != scores.shape[:1] or not bool(((kind >= -1) & (kind < _KINDS - 1)).all()):
            raise ValueError(f"expected kinds of shape ({len(scores)},) from -1 to {_KINDS - 2}, got {kind.tolist()}")
        self.total.index_add_(0, kind + 1, scores.where(known, 0.0))
        self.count.index_add_(0, kind + 1, known.to(self.count.dtype))

    def compute(self) -> dict[str, Any]:
        """`mean`: the scores by name; `per_kind`: the same by kind, for the kinds that were seen. A score of no image is NaN."""
        seen = self.count.any(1).nonzero().flatten().tolist()  # a bare face has no intersection over union, say
        return {
            "mean": self._named(self.total.sum(0), self.count.sum(0)),
            "per_kind": {row - 1: self._named(self.total[row], self.count[row]) for row in seen},
        }

    def _named(self, total: Tensor, count: Tensor) -> dict[str, float]:
        return dict(zip(self.names, (total / count).tolist(), strict=True))


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
        columns = [
            column for area in (None, mask) for column in (psnr(restored, face, area), _mean(similarity_map, area))
        ]
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
        raise ValueError(
            f"expected two images (B, 3, H, W) and a mask (B, 1, H, W), got {' and '.join(map(str, shapes))}"
        )


MASK_PREDICTION_SCORES = ("iou", "recall", "found")


class MaskPredictionMetric(KindMeans):
    """Means over images, in all and by kind of occluder; sums reduce across processes.

    `iou` and `recall` are those of a masked face's covered pixels, at confidence 0.5; `found` is the share of images that got any mask,
    which for bare faces (kind -1) is the share of false alarms.

    >>> metric = MaskPredictionMetric()
    >>> mask = torch.zeros(1, 1, 4, 4); mask[..., :2] = 1
    >>> metric.update(mask.roll(1, 3), mask, torch.tensor([2]))
    >>> round(metric.compute()["mean"]["iou"], 3)
    0.333
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(MASK_PREDICTION_SCORES, **kwargs)

    def update(self, predicted_mask: Tensor, mask: Tensor, kind: Tensor) -> None:
        """Add a batch.

        Args:
            predicted_mask: (B, 1, H, W) in [0, 1].
            mask: (B, 1, H, W), 1 = covered; 0 everywhere for a bare face.
            kind: (B,) int64, -1 for a bare face.

        Raises:
            ValueError: the shapes differ, or a kind is out of range.
        """
        if predicted_mask.shape != mask.shape:
            raise ValueError(
                f"expected masks of one shape (B, 1, H, W), got {tuple(predicted_mask.shape)} and {tuple(mask.shape)}"
            )
        predicted, covered = (predicted_mask > 0.5).flatten(1), (mask > 0.5).flatten(1)
        both, either = (predicted & covered).sum(1).float(), (predicted | covered).sum(1).float()
        found = (predicted_mask > 0).flatten(1).any(1)
        masked = covered.any(1)
        scores = torch.stack([both / either.clamp_min(1), both / covered.sum(1).clamp_min(1), found.float()], 1)
        self.add(scores, torch.stack([masked, masked, torch.ones_like(masked)], 1), kind)


def mask_prediction_results(scores: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    """The entry `mask_prediction` of the results file.

    Args:
        scores: what `MaskPredictionMetric.compute` returned.
        kinds: names of the occluders, in the order in which kinds are counted.

    Returns:
        `bare`: {"found": share of bare faces that got a mask}; `masked`: `iou`, `recall` and `found` over all masked faces, `found` as the
        mean over kinds; `per_kind`: the same by name. A part without images is left out.
    """
    per_kind = {kinds[kind]: dict(each) for kind, each in scores["per_kind"].items() if kind >= 0}
    results: dict[str, Any] = {"per_kind": per_kind}
    if per_kind:
        found = sum(each["found"] for each in per_kind.values()) / len(per_kind)
        results["masked"] = {"iou": scores["mean"]["iou"], "recall": scores["mean"]["recall"], "found": found}
    if -1 in scores["per_kind"]:
        results["bare"] = {"found": scores["per_kind"][-1]["found"]}
    return {"mask_prediction": results}
