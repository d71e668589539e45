"""The rows and comparisons of a plan, computed from the tests that are done: the content of `ablation.json`."""

import csv
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
from deocc.commands.ablate_plan import Job, Plan
from deocc.evaluation.bootstrap import mcnemar, paired_bootstrap_eer
from deocc.evaluation.verification import (
    SCORES,
    PairScores,
    decisions,
    fold_accuracy,
    read_scores,
    verification_scores,
)

_ORIGIN = ("command", "seed", "data_seed", "mask_seeds", "data_hash", "training_data_hash", "manifest_hash", "versions")


class Outcome(NamedTuple):
    """The outcome of one fold and seed.

    Attributes:
        fold: None for the split of the face set.
        seed: seed of the run.
        results: content of `results.json`, or the last validation figures in the same form.
        read_pairs: reads the pair scores of a row; None if there are none. They are large and not kept in memory.
    """

    fold: int | None
    seed: int
    results: Mapping[str, Any]
    read_pairs: Callable[[str], PairScores | None]


def read_tests(plan: Plan, done: Sequence[Job]) -> dict[str, list[Outcome]]:
    """Return the outcomes of the finished jobs by variant, in the order of `Plan.fold_seeds`."""
    folders = {job.folder for job in done if job.action == ("test" if plan.people == "test" else "fit")}
    tests: dict[str, list[Outcome]] = {}
    for name in plan.variants:
        tests[name] = []
        for fold, seed in plan.fold_seeds():
            folder = plan.run_folder(name, fold, seed)
            if folder not in folders:
                continue
            if plan.people == "validation":
                tests[name].append(Outcome(fold, seed, _read_validation(folder), lambda row: None))
            else:
                results = json.loads((folder / runs.RESULTS).read_text(encoding="utf-8"))
                tests[name].append(Outcome(fold, seed, results, partial(_read_pairs, folder / SCORES)))
    return tests


def _read_pairs(path: Path, row: str) -> PairScores | None:
    return read_scores(path, rows=[row]).get(row)


def read_metrics(run: Path) -> Iterator[tuple[int, str, float]]:
    """Yield step, name and value of all numbers that a training logged."""
    path = run / "metrics.csv"
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            yield from (
                (int(line["step"]), name, float(value)) for name, value in line.items() if "/" in name and value
            )


def _read_validation(run: Path) -> dict[str, Any]:
    """Return the last figures `val/ROW/FIGURE` of a run in the form of `results.json`."""
    rows: dict[str, dict[str, float]] = {}
    for _, key, value in read_metrics(run):
        split, row, *figure = key.split("/")
        if split == "val" and figure:
            rows.setdefault(row, {})["/".join(figure)] = value
    return {"rows": rows, "data": runs.face_set_of(run)[0]}


def summarise(plan: Plan, tests: Mapping[str, Sequence[Outcome]], replicates: int = 1000) -> dict[str, Any]:
    """Return all rows, comparisons and the provenance of the runs.

    A row has `figures`, and a comparison `eer`, `mcnemar`, `mcnemar_seed` and `verdict`, once all its `of` runs exist.
    """
    known = {}
    for letter, row in plan.rows.items():
        known[letter] = [test for test in tests[plan.variant_of(letter)] if row.row in test.results["rows"]]
    outcomes = [(name, test) for name, listed in tests.items() for test in listed]
    people = {test.fold: int(test.results.get("people", 0)) for _, test in outcomes}
    first = outcomes[0][1].results if outcomes else {}
    return {
        "seeds": plan.seeds,
        "folds": plan.folds,
        "tested_on": plan.people,
        "pair_folds": _pair_folds_of_tests(plan, known),
        "people": sum(people.values()),
        **{key: first.get(key) for key in ("data", "credit", "kinds", "size")},
        "rows": {letter: _summarise_row(plan, letter, known[letter]) for letter in plan.rows},
        "comparisons": [_summarise_comparison(plan, *pair, known, replicates) for pair in plan.compare],
        "runs": {
            plan.run_folder(name, test.fold, test.seed).name: {key: test.results.get(key) for key in _ORIGIN}
            for name, test in outcomes
        },
    }


def _summarise_row(plan: Plan, letter: str, tests: Sequence[Outcome]) -> dict[str, Any]:
    row, of = plan.rows[letter], len(plan.fold_seeds())
    summary: dict[str, Any] = {"title": row.title, "row": row.row, "variant": plan.variant_of(letter)}
    summary |= {"runs": len(tests), "of": of}
    if len(tests) == of:
        summary["figures"] = {}
        for name, values in row_figures(tests, row.row).items():
            mean, deviation = mean_and_deviation(values)
            summary["figures"][name] = {"values": values, "mean": mean, "deviation": deviation}
    return summary


def _summarise_comparison(
    plan: Plan, first: str, second: str, known: Mapping[str, Sequence[Outcome]], replicates: int
) -> dict[str, Any]:
    of, count = len(plan.fold_seeds()), min(len(known[first]), len(known[second]))
    summary: dict[str, Any] = {"first": first, "second": second, "runs": count, "of": of}
    if count == of:
        outcome = compare(known[first], plan.rows[first].row, known[second], plan.rows[second].row, replicates)
        if outcome is not None:
            summary |= {**outcome, "verdict": verdict(outcome["eer"])}
    return summary


def row_figures(tests: Sequence[Outcome], row: str) -> dict[str, list[float | None]]:
    """Return the figures of a row by column of the table, one value per test.

    Args:
        tests: grouped by seed.
        row: row of the results.
    """
    figures: dict[str, list[float | None]] = {}
    for name in ("eer", "rank1", "auc", "tar@1e-2"):
        figures[name] = [test.results["rows"][row].get(name) for test in tests]
    figures["accuracy"] = []
    for same_seed in _group_by_seed(tests):
        pairs = [test.read_pairs(row) for test in same_seed]
        for test, own, right in zip(same_seed, pairs, right_decisions(same_seed, pairs), strict=True):
            figures["accuracy"].append(_accuracy(test, own, right, row))
    predicted = f"{row}_predicted_mask"
    figures["eer_predicted_mask"] = [test.results["rows"].get(predicted, {}).get("eer") for test in tests]
    return figures


def right_decisions(tests: Sequence[Outcome], pairs: Sequence[PairScores | None]) -> list[Tensor | None]:
    """Return which pairs are decided correctly, (N,) bool per test of one seed.

    A fold over people is decided at the threshold of equal error of all other folds; a test with folds of pairs at the
    best threshold of its other folds. None without other folds or without pairs.
    """
    decided: list[Tensor | None] = []
    for place, (test, own) in enumerate(zip(tests, pairs, strict=True)):
        if test.fold is None:
            decided.append(decisions(own) if own is not None and _pair_folds(own) > 1 else None)
            continue
        others = [other for other in (*pairs[:place], *pairs[place + 1 :]) if other is not None]
        if own is None or not others or len(others) < len(pairs) - 1:
            decided.append(None)
            continue
        similarity = torch.cat([other.similarity for other in others])
        same = torch.cat([other.same for other in others])
        threshold = verification_scores(similarity, same)["threshold@eer"]
        decided.append((own.similarity.double() >= threshold) == own.same)
    return decided


def _accuracy(test: Outcome, pairs: PairScores | None, right: Tensor | None, row: str) -> float | None:
    """Return the balanced accuracy of a fold over people, or LFW's accuracy over folds of pairs."""
    if test.fold is None and pairs is None:  # the pairs of clean rows are not stored, but the test measured them
        return (test.results["rows"][row].get("accuracy") or {}).get("mean")
    if pairs is None or right is None:
        return None
    if test.fold is None:
        return fold_accuracy(pairs).mean
    return float((right[pairs.same].double().mean() + right[~pairs.same].double().mean()) / 2)


def _pair_folds(pairs: PairScores | None) -> int:
    """Return the number of folds of pairs: 1 if the protocol has none, 0 without pairs."""
    if pairs is None or len(pairs.same) == 0:
        return 0
    return 1 if pairs.fold is None else len(torch.unique(pairs.fold))


def _pair_folds_of_tests(plan: Plan, known: Mapping[str, Sequence[Outcome]]) -> int | None:
    """Return the number of folds of pairs in a test; None with folds over people, or if nothing is known."""
    if plan.folds is not None:
        return None
    counts = (_pair_folds(test.read_pairs(plan.rows[letter].row)) for letter, tests in known.items() for test in tests)
    return next((count for count in counts if count), None)


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation; None if a value is unknown, or for the deviation of one value."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return None, None
    return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None


def compare(
    firsts: Sequence[Outcome], first_row: str, seconds: Sequence[Outcome], second_row: str, replicates: int = 1000
) -> dict[str, Any] | None:
    """Compare two rows over the same folds and seeds, both grouped by seed.

    Returns:
        `eer`: the bootstrap interval over identities of first minus second, its ends averaged over seeds. `mcnemar`:
        counts and p-value of the seed `mcnemar_seed` with the largest p-value, None if nothing was decided. None if the
        pairs of a test are unknown.

    Raises:
        ValueError: the rows were scored on different pairs.
    """
    intervals = []
    outcomes: dict[int, dict[str, float]] = {}
    for first, second in zip(_group_by_seed(firsts), _group_by_seed(seconds), strict=True):
        pairs = [[test.read_pairs(first_row) for test in first], [test.read_pairs(second_row) for test in second]]
        known = [[own for own in part if own is not None] for part in pairs]
        if len(known[0]) < len(first) or len(known[1]) < len(second):
            return None
        intervals.append(paired_bootstrap_eer(known[0], known[1], replicates, seed=0)._asdict())
        right = [*right_decisions(first, pairs[0]), *right_decisions(second, pairs[1])]
        decided = [part for part in right if part is not None]
        if len(decided) == len(right):
            count = len(first)
            outcomes[first[0].seed] = mcnemar(torch.cat(decided[:count]), torch.cat(decided[count:]))._asdict()
    shown = max(outcomes, key=lambda seed: outcomes[seed]["p_value"], default=None)
    return {
        "eer": {name: statistics.mean(interval[name] for interval in intervals) for name in intervals[0]},
        "mcnemar": None if shown is None else outcomes[shown],
        "mcnemar_seed": shown,
    }


def verdict(interval: Mapping[str, float]) -> str:
    """Return what an interval of first minus second says of the first: "better", "worse" or undecided."""
    if interval["high"] < 0:
        return "better"
    return "worse" if interval["low"] > 0 else "cannot be told apart"


def _group_by_seed(tests: Sequence[Outcome]) -> list[list[Outcome]]:
    return [[test for test in tests if test.seed == seed] for seed in dict.fromkeys(test.seed for test in tests)]
