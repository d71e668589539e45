"""The rows and comparisons of a plan, computed from the tests that are done: the content of `ablation.json`."""

import csv
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from deocc import runs
from deocc.commands.ablate_plan import Comparison, Job, Plan
from deocc.evaluation.bootstrap import bootstrap_figures, check_same_pairs, simultaneous_intervals
from deocc.evaluation.report import MISSING
from deocc.evaluation.results import CLEAN_ROWS, ROWS
from deocc.evaluation.verification import CLEAN_SCORES, SCORES, PairScores, read_scores

FIGURES = ("accuracy", "eer", "tar@1e-2", "tar@1e-3")
"""Figures of a comparison."""

_ORIGIN = ("command", "seed", "data_seed", "mask_seeds", "data_hash", "training_data_hash", "manifest_hash", "versions")


class Outcome(NamedTuple):
    """The outcome of one fold and seed.

    Attributes:
        fold: name; None for the split of the face set.
        seed: seed of the run.
        results: content of `results.json`, or the last validation figures in the same form.
        read_pairs: reads the pair scores of a row; None if there are none. They are large and not kept in memory.
    """

    fold: str | None
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
                tests[name].append(Outcome(fold, seed, results, partial(_read_pairs, folder)))
    return tests


def _read_pairs(folder: Path, row: str) -> PairScores | None:
    path = folder / (CLEAN_SCORES if row in CLEAN_ROWS else SCORES)
    return read_scores(path, rows=[row]).get(row) if path.is_file() else None


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


def summarise(plan: Plan, tests: Mapping[str, Sequence[Outcome]], replicates: int = 2000) -> dict[str, Any]:
    """Return all rows, comparisons and the provenance of the runs.

    A row has `figures`, and a comparison `masks`, once all its `of` runs exist.
    """
    known = {}
    for letter, row in plan.rows.items():
        known[letter] = [test for test in tests[plan.variant_of(letter)] if row.row in test.results["rows"]]
    outcomes = [(name, test) for name, listed in tests.items() for test in listed]
    people = {test.fold: int(test.results.get("people", 0)) for _, test in outcomes}
    first = outcomes[0][1].results if outcomes else {}
    return {
        "seeds": plan.seeds,
        "folds": list(plan.folds),
        "tested_on": plan.people,
        "people": sum(people.values()),
        **{key: first.get(key) for key in ("data", "credit", "kinds", "size")},
        "rows": {letter: _summarise_row(plan, letter, known[letter]) for letter in plan.rows},
        "comparisons": compare_rows(plan, known, replicates),
        "per_kind": _per_kind(plan, known),
        "per_coverage": _per_coverage(plan, known),
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


def row_figures(tests: Sequence[Outcome], row: str) -> dict[str, list[float | None]]:
    """Return the figures of a row by name, one value per test; a figure is left out if no test has it.

    `NAME_predicted_mask` is measured with the predicted mask, `NAME_bare` on bare faces, whose masks are predicted too.
    """
    predicted, recogniser = with_predicted_mask(row), row.split("_")[0]
    sources = {"": row}
    if row not in CLEAN_ROWS:
        sources |= {"_predicted_mask": predicted} if predicted != row else {}
        sources["_bare"] = "teacher_clean" if row == "teacher_masked" else f"{recogniser}_clean_predicted_mask"
    figures: dict[str, list[float | None]] = {}
    for suffix, source in sources.items():
        for name in (*FIGURES, "rank1"):
            values = [_figure(test.results["rows"].get(source, {}), name) for test in tests]
            if any(value is not None for value in values):
                figures[name + suffix] = values
    return figures


def with_predicted_mask(row: str) -> str:
    """Return the row that differs in its source of masks, if there is one."""
    predicted = f"{row}_predicted_mask"
    return predicted if predicted in ROWS else row


def _figure(scores: Mapping[str, Any], name: str) -> float | None:
    value = scores.get(name)
    return value["mean"] if isinstance(value, Mapping) else value


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation; None if a value is unknown, or for the deviation of one value."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return None, None
    return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None


def compare_rows(plan: Plan, known: Mapping[str, Sequence[Outcome]], replicates: int) -> list[dict[str, Any]]:
    """Compare the rows of each claim whose tests exist, with the given and with the predicted mask.

    The intervals of a figure hold for all comparisons together (`deocc.evaluation.bootstrap.simultaneous_intervals`).

    Returns:
        For each of `plan.compare` its letters, claim and numbers of runs, and, if its pairs are known, `masks`: by
        "given" and "predicted", or "none" if both rows have one source of masks only, the estimate of first minus
        second with the interval of each figure, and the verdict.

    Raises:
        ValueError: two rows were scored on different pairs.
    """

    @cache
    def replicates_of(letter: str, row: str) -> dict[str, torch.Tensor] | None:
        return _bootstrap(known[letter], row, replicates)

    of = len(plan.fold_seeds())
    comparisons: list[dict[str, Any]] = []
    differences: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
    for number, pair in enumerate(plan.compare):
        letters = (pair.first, pair.second)
        count = min(len(known[letter]) for letter in letters)
        comparisons.append({**asdict(pair), "runs": count, "of": of})
        given = [plan.rows[letter].row for letter in letters]
        predicted = [row if row in CLEAN_ROWS else with_predicted_mask(row) for row in given]
        sources = {"none": given} if predicted == given else {"given": given, "predicted": predicted}
        for mask, rows in sources.items() if count == of else ():
            one, other = (replicates_of(letter, row) for letter, row in zip(letters, rows, strict=True))
            if one is not None and other is not None:
                _check_pairs(pair, [known[letter] for letter in letters], rows)
                differences[number, mask] = {name: one[name] - other[name] for name in FIGURES}
    if not differences:
        return comparisons
    intervals = {
        name: simultaneous_intervals(torch.stack([each[name] for each in differences.values()])) for name in FIGURES
    }
    for place, ((number, mask), each) in enumerate(differences.items()):
        figures: dict[str, Any] = {}
        for name in FIGURES:
            low, high = intervals[name][place].tolist()
            figures[name] = {"estimate": float(each[name][0]), "low": low, "high": high}
        figures["verdict"] = verdict(figures["eer"])
        comparisons[number].setdefault("masks", {})[mask] = figures
    return comparisons


def _check_pairs(pair: Comparison, sides: Sequence[Sequence[Outcome]], rows: Sequence[str]) -> None:
    for first, second in zip(*sides, strict=True):
        one, other = first.read_pairs(rows[0]), second.read_pairs(rows[1])
        try:
            check_same_pairs(cast(PairScores, one), cast(PairScores, other))
        except ValueError as error:
            raise ValueError(f"compare {pair.first} and {pair.second}: {error}") from error


def _bootstrap(tests: Sequence[Outcome], row: str, replicates: int) -> dict[str, torch.Tensor] | None:
    """Return the replicates of a row, the seeds of a fold averaged; None if the pairs of a test are unknown."""
    parts: dict[str | None, list[PairScores]] = {}
    for test in tests:
        pairs = test.read_pairs(row)
        if pairs is None:
            return None
        parts.setdefault(test.fold, []).append(pairs)
    return bootstrap_figures(list(parts.values()), replicates, names=FIGURES)


def verdict(interval: Mapping[str, float]) -> str:
    """Return what the interval of the first row's EER minus the second's says: whether the first is better."""
    if math.isnan(interval["estimate"]):
        return MISSING
    if interval["high"] < 0:
        return "holds"
    return "refuted here" if interval["low"] > 0 else "cannot be told apart"


def _per_kind(plan: Plan, known: Mapping[str, Sequence[Outcome]]) -> dict[str, dict[str, float | None]]:
    """Return the mean EER of the tests by occluder and row; predicted masks where the row has them."""
    kinds = dict.fromkeys(
        kind for tests in known.values() for test in tests for kind in test.results.get("per_kind", {})
    )
    return {
        kind: {
            letter: _mean_eer(
                [test.results["per_kind"].get(kind, {}) for test in tests], with_predicted_mask(plan.rows[letter].row)
            )
            for letter, tests in known.items()
        }
        for kind in kinds
    }


def _per_coverage(plan: Plan, known: Mapping[str, Sequence[Outcome]]) -> list[dict[str, Any]]:
    """Return the edges, averaged over tests, and the mean EER of each row, for tenths of the probes by coverage."""
    tests = [test for listed in known.values() for test in listed]
    tenths = min((len(test.results.get("per_coverage", [])) for test in tests), default=0)
    outcome = []
    for number in range(tenths):
        parts = [test.results["per_coverage"][number] for test in tests]
        edges = {name: statistics.fmean(part[name] for part in parts) for name in ("low", "high")}
        rows = {
            letter: _mean_eer(
                [test.results["per_coverage"][number] for test in listed], with_predicted_mask(plan.rows[letter].row)
            )
            for letter, listed in known.items()
        }
        outcome.append({**edges, "rows": rows})
    return outcome


def _mean_eer(parts: Sequence[Mapping[str, Any]], row: str) -> float | None:
    values = [part.get("rows", {}).get(row, {}).get("eer") for part in parts]
    return mean_and_deviation(values)[0]
