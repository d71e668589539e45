"""Means over images of any scores, in all and by kind of occluder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

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
