"""How well a predicted mask fits the given one: intersection over union by kind of occluder, and false alarms on bare faces.

[0] Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010: intersection over union of segmentations.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deocc.evaluation.kind_means import KindMeans

SCORES = ("iou", "recall", "found")


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
        super().__init__(SCORES, **kwargs)

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
            raise ValueError(f"expected masks of one shape (B, 1, H, W), got {tuple(predicted_mask.shape)} and {tuple(mask.shape)}")
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
