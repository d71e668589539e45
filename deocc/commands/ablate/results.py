"""What is known of a plan's rows and comparisons once its jobs have run: everything that `ablation.json` holds."""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deocc import runs
from deocc.commands.ablate.plan import Job, Plan, fold_seeds, run_folder
from deocc.commands.ablate.runner import is_done
from deocc.evaluation import (
    Interval,
    PairScores,
    fold_accuracy,
    paired_bootstrap_mean_eer,
    read_scores,
    verification_scores,
)
from deocc.evaluation import decisions as decide_within
from deocc.evaluation.bootstrap import mcnemar
from deocc.evaluation.scores import SCORES

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
    figures["accuracy"] = [
        accuracy for some, pairs in _by_seed(tests, row) for accuracy in _accuracies(some, pairs, row)
    ]
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
    for (first, first_pairs), (second, second_pairs) in zip(
        _by_seed(firsts, first_row), _by_seed(seconds, second_row), strict=True
    ):
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
    if (
        pairs is None and test.fold is None
    ):  # a clean row: its pairs are not kept, but the test took the same accuracy of them
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


_PROVENANCE = (
    "command",
    "seed",
    "data_seed",
    "mask_seeds",
    "data_hash",
    "training_data_hash",
    "manifest_hash",
    "versions",
)


def read_tests(plan: Plan, jobs: Sequence[Job]) -> dict[str, list[Outcome]]:
    """By variant, what its tests that are done left behind, in the order of `fold_seeds`."""
    done = {job.folder for job in jobs if job.action == "test" and is_done(job)}
    tests: dict[str, list[Outcome]] = {name: [] for name in plan.variants}
    for name, known in tests.items():
        for fold, seed in fold_seeds(plan):
            folder = run_folder(plan, name, fold, seed)
            if folder in done:
                results = json.loads((folder / runs.RESULTS).read_text(encoding="utf-8"))
                known.append(Outcome(fold, seed, results, partial(_read_row, folder / SCORES)))
    return tests


def summarise(plan: Plan, tests: Mapping[str, Sequence[Outcome]], replicates: int = 1000) -> dict[str, Any]:
    """Rows, comparisons and provenance.

    A row or comparison is known once all its `of` runs are there, and then has `figures` by name, or `eer`, `mcnemar`,
    `mcnemar_seed` and `verdict`.
    """
    known = {letter: _tests_of(plan, tests, letter) for letter in plan.rows}
    some = next((test.results for listed in tests.values() for test in listed), {})
    return {
        "seeds": plan.seeds,
        "folds": plan.folds,
        "pair_folds": _pair_folds(plan, known),
        "people": _people(plan, tests),
        **{key: some.get(key) for key in ("data", "credit", "kinds", "size")},
        "rows": {letter: _row(plan, letter, known[letter]) for letter in plan.rows},
        "comparisons": [_comparison(plan, *pair, known, replicates) for pair in plan.compare],
        "runs": {
            run_folder(plan, name, test.fold, test.seed).name: {key: test.results.get(key) for key in _PROVENANCE}
            for name, listed in tests.items()
            for test in listed
        },
    }


def _read_row(path: Path, row: str) -> PairScores | None:
    return read_scores(path, rows=[row]).get(row)


def _pair_folds(plan: Plan, known: Mapping[str, Sequence[Outcome]]) -> int | None:
    """In how many folds the pairs of a test lie; None where folds over people stand in their place, or nothing is known."""
    if plan.folds is not None:
        return None
    return next(
        (
            folds
            for letter, tests in known.items()
            for test in tests
            if (folds := pair_folds(test.scores(plan.rows[letter].row)))
        ),
        None,
    )


def _tests_of(plan: Plan, tests: Mapping[str, Sequence[Outcome]], letter: str) -> list[Outcome]:
    """The tests that scored the row."""
    return [test for test in tests[plan.variant_of(letter)] if plan.rows[letter].row in test.results["rows"]]


def _row(plan: Plan, letter: str, tests: Sequence[Outcome]) -> dict[str, Any]:
    row, of = plan.rows[letter], len(fold_seeds(plan))
    summary: dict[str, Any] = {
        "title": row.title,
        "row": row.row,
        "variant": plan.variant_of(letter),
        "runs": len(tests),
        "of": of,
    }
    if len(tests) < of:
        return summary
    figures = {name: (values, *mean_and_deviation(values)) for name, values in row_figures(tests, row.row).items()}
    columns = ("values", "mean", "deviation")
    return {**summary, "figures": {name: dict(zip(columns, figure, strict=True)) for name, figure in figures.items()}}


def _comparison(
    plan: Plan, first: str, second: str, known: Mapping[str, Sequence[Outcome]], replicates: int
) -> dict[str, Any]:
    of, rows = len(fold_seeds(plan)), [plan.rows[letter].row for letter in (first, second)]
    there = min(len(known[letter]) for letter in (first, second))
    summary: dict[str, Any] = {"first": first, "second": second, "runs": there, "of": of}
    outcome = compare(known[first], rows[0], known[second], rows[1], replicates) if there == of else None
    return summary if outcome is None else {**summary, **outcome, "verdict": verdict(outcome["eer"])}


def _people(plan: Plan, tests: Mapping[str, Sequence[Outcome]]) -> int:
    """How many people were tested, over all folds."""
    by_fold = {test.fold: int(test.results["people"]) for listed in tests.values() for test in listed}
    return sum(by_fold.values())
