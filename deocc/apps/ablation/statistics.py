"""The figures behind the table: each row over all runs, and the differences between rows, pair by pair.

OURS, as the paper tells nothing of its statistics:

- Over folds of people, the threshold at which a run decides is the one of equal error on the pairs of all *other* folds of its seed, so it
  knows nothing of the people it is tried on. Accuracy is balanced, the mean of the rates of true accepts and true rejects, since pairs of
  one person are few.
- Without folds of people, but where the pairs of the test lie in folds (as LFW's ten), decisions and accuracy are LFW's protocol within
  each test, see `deocc.evaluation.folds`.
- The interval of a difference in EER is a paired bootstrap over people within each fold, of the mean over folds. With several seeds, the
  ends are the means of the seeds' ends. All seeds draw the same people; were their replicates not in step, the interval of the mean would
  be narrower than this one.
- McNemar's test counts the decisions under those thresholds over all folds; of several seeds, the one of the largest p-value is given.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deocc.evaluation import Interval, PairScores, fold_accuracy, mcnemar, paired_bootstrap_mean_eer, verification_scores
from deocc.evaluation import decisions as decide_within

FIGURES = ("eer", "rank1", "auc", "tar@1e-2")
"""What the table takes from a run's results as it is."""

_SEED = 0  # of the bootstrap


class Outcome(NamedTuple):
    """What a test of one fold and seed left behind."""

    fold: int | None
    seed: int
    results: Mapping[str, Any]
    scores: Callable[[str], PairScores | None]
    """The pairs of a row, None where there are none; large, so they are asked for when they are needed and not kept."""


def row_figures(tests: Sequence[Outcome], row: str) -> dict[str, list[float | None]]:
    """A row's figures, a value a test: `FIGURES`, `accuracy`, and `eer_predicted_mask` where the row depends on the mask.

    Args:
        tests: those of a seed one after another.
        row: of their results.
    """
    scored = [test.results["rows"][row] for test in tests]
    figures: dict[str, list[float | None]] = {name: [scores.get(name) for scores in scored] for name in FIGURES}
    figures["accuracy"] = [accuracy for some, pairs in _by_seed(tests, row) for accuracy in _accuracies(some, pairs, row)]
    predicted = [test.results["rows"].get(f"{row}_predicted_mask", {}).get("eer") for test in tests]
    return figures | {"eer_predicted_mask": predicted}


def decisions(tests: Sequence[Outcome], row: str) -> list[Tensor | None]:
    """For each test, (N,) bool: whether its pairs are decided rightly, by the other folds of its seed or by those of its own pairs.

    None where there are no other folds, or where no pairs of the row are known. The tests of a seed stand one after another.
    """
    return [right for some, pairs in _by_seed(tests, row) for right in _decide(some, pairs)]


def pair_folds(pairs: PairScores | None) -> int:
    """In how many folds the pairs lie; 1 where their protocol has none, 0 where there are no pairs."""
    if pairs is None or len(pairs.same) == 0:
        return 0
    return 1 if pairs.fold is None else len(torch.unique(pairs.fold))


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1 under the root); None where a value is unknown, or for the deviation of one value."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return None, None
    return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None


def compare(
    firsts: Sequence[Outcome], first_row: str, seconds: Sequence[Outcome], second_row: str, replicates: int = 1000
) -> dict[str, Any] | None:
    """The first row against the second, both over the same folds and seeds in the same order, those of a seed one after another.

    Returns:
        `eer`: the interval of the difference, first minus second; `mcnemar`: counts and p-value of the seed `mcnemar_seed`, both None where
        nothing is decided. None where the pairs of a test are not known.

    Raises:
        ValueError: the two were scored on different pairs.
    """
    intervals: list[Interval] = []
    outcomes: dict[int, dict[str, float]] = {}
    for (first, first_pairs), (second, second_pairs) in zip(_by_seed(firsts, first_row), _by_seed(seconds, second_row), strict=True):
        one, other = ([pairs for pairs in some if pairs is not None] for some in (first_pairs, second_pairs))
        if len(one) < len(first) or len(other) < len(second):
            return None
        intervals.append(paired_bootstrap_mean_eer(one, other, replicates, _SEED))
        if outcome := _mcnemar(_decide(first, first_pairs), _decide(second, second_pairs)):
            outcomes[first[0].seed] = outcome
    shown = max(outcomes, key=lambda seed: outcomes[seed]["p_value"], default=None)
    return {
        "eer": {name: statistics.mean(getattr(interval, name) for interval in intervals) for name in Interval._fields},
        "mcnemar": None if shown is None else outcomes[shown],
        "mcnemar_seed": shown,
    }


def verdict(interval: Mapping[str, float]) -> str:
    """What an interval of first minus second allows to say: "better", "worse" or "cannot be told apart"."""
    if interval["high"] < 0:
        return "better"
    return "worse" if interval["low"] > 0 else "cannot be told apart"


def _by_seed(tests: Sequence[Outcome], row: str) -> Iterator[tuple[list[Outcome], list[PairScores | None]]]:
    """The tests of each seed with their pairs of the row, so that no more than a seed's are in memory."""
    for seed in dict.fromkeys(test.seed for test in tests):
        some = [test for test in tests if test.seed == seed]
        yield some, [test.scores(row) for test in some]


def _decide(tests: Sequence[Outcome], pairs: Sequence[PairScores | None]) -> list[Tensor | None]:
    """As `decisions`, for the tests of one seed."""
    return [
        _decide_within(own) if test.fold is None else _decide_by(own, [*pairs[:place], *pairs[place + 1 :]])
        for place, (test, own) in enumerate(zip(tests, pairs, strict=True))
    ]


def _decide_within(pairs: PairScores | None) -> Tensor | None:
    return decide_within(pairs) if pairs is not None and pair_folds(pairs) > 1 else None


def _decide_by(pairs: PairScores | None, others: Sequence[PairScores | None]) -> Tensor | None:
    known = [other for other in others if other is not None]
    if pairs is None or not known or len(known) < len(others):
        return None
    pooled = [torch.cat([getattr(other, name) for other in known]) for name in ("similarity", "same")]
    return (pairs.similarity.double() >= verification_scores(*pooled)["threshold@eer"]) == pairs.same


def _accuracies(tests: Sequence[Outcome], pairs: Sequence[PairScores | None], row: str) -> list[float | None]:
    rights = _decide(tests, pairs)
    return [_accuracy(test, own, right, row) for test, own, right in zip(tests, pairs, rights, strict=True)]


def _accuracy(test: Outcome, pairs: PairScores | None, right: Tensor | None, row: str) -> float | None:
    if pairs is None and test.fold is None:  # a clean row: its pairs are not kept, but the test took the same accuracy of them
        known = test.results["rows"][row].get("accuracy") or {}
        return known.get("mean")
    if pairs is None or right is None:
        return None
    if test.fold is None:
        return fold_accuracy(pairs).mean
    return float((right[pairs.same].double().mean() + right[~pairs.same].double().mean()) / 2)


def _mcnemar(firsts: Sequence[Tensor | None], seconds: Sequence[Tensor | None]) -> dict[str, float] | None:
    first, second = ([right for right in some if right is not None] for some in (firsts, seconds))
    if len(first) < len(firsts) or len(second) < len(seconds):
        return None
    return mcnemar(torch.cat(first), torch.cat(second))._asdict()
