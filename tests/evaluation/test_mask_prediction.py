"""Predicted masks against a slow NumPy oracle, and the entry of the results file."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from deocc.evaluation import MaskPredictionMetric, mask_prediction_results

NAMES = ("cloth", "hand", "box")


def _batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Predicted masks, masks and kinds:

    bare faces, with and without a false alarm, and masked ones, of which one is missed.
    """
    generator = torch.Generator().manual_seed(0)
    batches = []
    for kind in (torch.tensor([-1, 2, 0, -1]), torch.tensor([0, 0, -1, 2])):
        mask = (torch.rand(4, 1, 6, 5, generator=generator) < 0.4).float() * (kind >= 0).view(4, 1, 1, 1)
        predicted = torch.rand(4, 1, 6, 5, generator=generator)
        batches.append((torch.where(predicted >= 0.1, predicted, 0.0), mask, kind))
    batches[0][0][0] = 0  # a bare face that is taken for bare
    batches[1][0][1] = 0  # a mask that is missed
    return batches


def _slow_scores(batches: list[tuple[Tensor, Tensor, Tensor]], wanted: int | None) -> dict[str, float]:
    """The three means over the images of a kind, or over all, one image at a time."""
    ious, recalls, found = [], [], []
    for predicted, mask, kind in batches:
        for guess, truth, number in zip(predicted.numpy(), mask.numpy(), kind.tolist(), strict=True):
            if wanted is not None and number != wanted:
                continue
            found.append(float(np.count_nonzero(guess) > 0))
            if truth.max() > 0:
                both = np.logical_and(guess > 0.5, truth > 0.5).sum()
                ious.append(both / np.logical_or(guess > 0.5, truth > 0.5).sum())
                recalls.append(both / (truth > 0.5).sum())
    means = [sum(values) / len(values) if values else math.nan for values in (ious, recalls, found)]
    return dict(zip(("iou", "recall", "found"), means, strict=True))


def test_mask_prediction_equals_the_oracle() -> None:
    metric = MaskPredictionMetric()
    for batch in _batches():
        metric.update(*batch)
    scores = metric.compute()
    assert scores["mean"] == pytest.approx(_slow_scores(_batches(), None))
    assert set(scores["per_kind"]) == {-1, 0, 2}
    for kind, found in scores["per_kind"].items():
        assert found == pytest.approx(_slow_scores(_batches(), kind), nan_ok=True)
    assert scores["per_kind"][-1]["found"] == pytest.approx(2 / 3)
    assert 0 < scores["per_kind"][0]["recall"] < 1


def test_mask_prediction_results_name_kinds() -> None:
    metric = MaskPredictionMetric()
    for batch in _batches():
        metric.update(*batch)
    scores = metric.compute()
    results = mask_prediction_results(scores, NAMES)["mask_prediction"]
    assert set(results["per_kind"]) == {"cloth", "box"}
    assert results["bare"] == {"found": pytest.approx(2 / 3)}
    assert results["masked"]["iou"] == scores["mean"]["iou"]
    assert results["masked"]["found"] == pytest.approx((2 / 3 + 1) / 2)  # the mean over two kinds
    bare = MaskPredictionMetric()
    bare.update(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([-1]))
    assert mask_prediction_results(bare.compute(), NAMES)["mask_prediction"] == {"per_kind": {}, "bare": {"found": 0.0}}


def test_mask_prediction_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 4\) and \(1, 4, 4\)"):
        MaskPredictionMetric().update(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4), torch.tensor([0]))
