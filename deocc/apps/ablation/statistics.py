"""The figures behind the table: each row over all runs, and the differences between rows, pair by pair.

OURS, as the paper tells nothing of its statistics:

- The threshold at which a run decides is the one of equal error on the pairs of all *other* folds of its seed, so it knows nothing of the
  people it is tried on. Accuracy is the mean of the rates of true accepts and true rejects, since pairs of one person are few.
- The interval of a difference in EER is a paired bootstrap over people within each fold, of the mean over folds. With several seeds, the
  ends are the means of the seeds' ends. All seeds draw the same people; were their replicates not in step, the interval of the mean would
  be narrower than this one.
- McNemar's test counts the decisions under those thresholds over all folds; of several seeds, the one of the largest p-value is given.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deocc.evaluation import Interval, PairScores, mcnemar, paired_bootstrap_mean_eer, verification_scores

FIGURES = ("eer", "rank1", "auc", "tar@1e-2")
"""What the table takes from a run's results as it is."""

_SEED = 0  # of the bootstrap


class Outcome(NamedTuple):
    """What a test of one fold and seed left behind."""

    fold: int | None
    seed: int
    results: Mapping[str, Any]
    scores: Mapping[str, PairScores]


def row_figures(tests: Sequence[Outcome], row: str) -> dict[str, list[float | None]]:
    """A row's figures, a value a test: `FIGURES`, `accuracy`, and `eer_predicted_mask` where the row depends on the mask."""
    scored = [test.results["rows"][row] for test in tests]
    figures: dict[str, list[float | None]] = {name: [scores.get(name) for scores in scored] for name in FIGURES}
    figures["accuracy"] = [_accuracy(test, right, row) for test, right in zip(tests, decisions(tests, row), strict=True)]
    predicted = [test.results["rows"].get(f"{row}_predicted_mask", {}).get("eer") for test in tests]
    return figures | {"eer_predicted_mask": predicted}


def decisions(tests: Sequence[Outcome], row: str) -> list[Tensor | None]:
    """For each test, (N,) bool: whether its pairs are decided rightly under the threshold of the other folds of its seed.

    None where there is no other fold, or where no pairs of the row are known.
    """
    return [_decisions(test, [other for other in tests if other.seed == test.seed and other.fold != test.fold], row) for test in tests]


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1 under the root); None where a value is unknown, or for the deviation of one value."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return None, None
    return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None


def compare(
    firsts: Sequence[Outcome], first_row: str, seconds: Sequence[Outcome], second_row: str, replicates: int = 1000
) -> dict[str, Any]:
    """The first row against the second, both over the same folds and seeds in the same order.

    Returns:
        `eer`: the interval of the difference, first minus second; `mcnemar`: counts and p-value, None where nothing is decided.

    Raises:
        ValueError: the two were scored on different pairs.
    """
    seeds = sorted({test.seed for test in firsts})
    chosen = [([test for test in firsts if test.seed == seed], [test for test in seconds if test.seed == seed]) for seed in seeds]
    intervals = [_interval(first, first_row, second, second_row, replicates) for first, second in chosen]
    outcomes = [outcome for first, second in chosen if (outcome := _mcnemar(first, first_row, second, second_row))]
    return {
        "eer": {name: statistics.mean(getattr(interval, name) for interval in intervals) for name in Interval._fields},
        "mcnemar": max(outcomes, key=lambda outcome: outcome["p_value"], default=None),
    }


def verdict(interval: Mapping[str, float]) -> str:
    """What an interval of first minus second allows to say: "better", "worse" or "cannot be told apart"."""
    if interval["high"] < 0:
        return "better"
    return "worse" if interval["low"] > 0 else "cannot be told apart"


def _decisions(test: Outcome, others: Sequence[Outcome], row: str) -> Tensor | None:
    if not others or row not in test.scores:
        return None
    pooled = [torch.cat([getattr(other.scores[row], name) for other in others]) for name in ("similarity", "same")]
    pairs = test.scores[row]
    return (pairs.similarity.double() >= verification_scores(*pooled)["threshold@eer"]) == pairs.same


def _accuracy(test: Outcome, right: Tensor | None, row: str) -> float | None:
    if right is None:
        return None
    same = test.scores[row].same
    return float((right[same].double().mean() + right[~same].double().mean()) / 2)


def _interval(firsts: Sequence[Outcome], first_row: str, seconds: Sequence[Outcome], second_row: str, replicates: int) -> Interval:
    first, second = [test.scores[first_row] for test in firsts], [test.scores[second_row] for test in seconds]
    return paired_bootstrap_mean_eer(first, second, replicates, _SEED)


def _mcnemar(firsts: Sequence[Outcome], first_row: str, seconds: Sequence[Outcome], second_row: str) -> dict[str, float] | None:
    pairs = list(zip(decisions(firsts, first_row), decisions(seconds, second_row), strict=True))
    first, second = ([both[place] for both in pairs if both[place] is not None] for place in (0, 1))
    if len(first) < len(pairs) or len(second) < len(pairs):
        return None
    return mcnemar(torch.cat(first), torch.cat(second))._asdict()  # type: ignore[arg-type]  # None is excluded above
