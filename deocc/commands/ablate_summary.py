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
from deocc.evaluation.bootstrap import bootstrap_figures, simultaneous_intervals
from deocc.evaluation.report import MISSING
from deocc.evaluation.results import CLEAN_ROWS, ROWS
from deocc.evaluation.verification import CLEAN_SCORES, SCORES, PairScores, check_same_pairs, read_scores

FIGURES = ("accuracy", "eer", "tar@1e-2", "tar@1e-3")  # of a comparison
_ORIGIN = ("command", "seed", "data_seed", "mask_seeds", "data_hash", "training_data_hash", "manifest_hash", "versions")


class Outcome(NamedTuple):
    """The outcome of one fold, or of the split of the face set, and seed."""

    fold: str | None
    seed: int
    results: Mapping[str, Any]  # content of `results.json`, or the last validation figures in the same form
    read_pairs: Callable[[str], PairScores | None]  # of a row; they are large and not kept in memory


def read_tests(plan: Plan, done: Sequence[Job]) -> dict[str, list[Outcome]]:
    """Return the outcomes of the finished jobs by variant, in the order of `Plan.fold_seeds`."""
    folders = {job.folder for job in done if job.action == ("test" if plan.people == "test" else "fit")}
    tests: dict[str, list[Outcome]] = {name: [] for name in plan.variants}
    for name, outcomes in tests.items():
        for fold, seed in plan.fold_seeds():
            folder = plan.run_folder(name, fold, seed)
            if folder in folders and plan.people == "validation":
                rows: dict[str, dict[str, float]] = {}
                for _, key, value in read_metrics(folder):  # the last figures `val/ROW/FIGURE`
                    split, row, *figure = key.split("/")
                    if split == "val" and figure:
                        rows.setdefault(row, {})["/".join(figure)] = value
                results = {"rows": rows, "data": runs.face_set_of(folder)[0]}
                outcomes.append(Outcome(fold, seed, results, lambda row: None))
            elif folder in folders:
                results = json.loads((folder / runs.RESULTS).read_text(encoding="utf-8"))
                outcomes.append(Outcome(fold, seed, results, partial(_read_pairs, folder)))
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
            for name, value in line.items():
                if "/" in name and value:
                    yield int(line["step"]), name, float(value)


def summarise(plan: Plan, tests: Mapping[str, Sequence[Outcome]], replicates: int = 2000) -> dict[str, Any]:
    """Return all rows, comparisons and the provenance of the runs.

    A row has `figures`, and a comparison `masks`, once all its `of` runs exist.
    """
    known: dict[str, list[Outcome]] = {}
    rows: dict[str, dict[str, Any]] = {}
    of = len(plan.fold_seeds())
    for letter, row in plan.rows.items():
        variant = row.variant or next(iter(plan.variants))
        known[letter] = [test for test in tests[variant] if row.row in test.results["rows"]]
        count = len(known[letter])
        rows[letter] = {"title": row.title, "row": row.row, "variant": variant, "runs": count, "of": of}
        if count == of:
            rows[letter]["figures"] = {}
            for name, values in row_figures(known[letter], row.row).items():
                mean, deviation = mean_and_deviation(values)
                rows[letter]["figures"][name] = {"values": values, "mean": mean, "deviation": deviation}
    outcomes = [(name, test) for name, listed in tests.items() for test in listed]
    people = {test.fold: int(test.results.get("people", 0)) for _, test in outcomes}
    first = outcomes[0][1].results if outcomes else {}
    return {
        "seeds": plan.seeds,
        "folds": list(plan.folds),
        "tested_on": plan.people,
        "people": sum(people.values()),
        **{key: first.get(key) for key in ("data", "credit", "kinds", "size")},
        "rows": rows,
        "comparisons": compare_rows(plan, known, replicates),
        **_summarise_parts(plan, known),
        "runs": {
            plan.run_folder(name, test.fold, test.seed).name: {key: test.results.get(key) for key in _ORIGIN}
            for name, test in outcomes
        },
    }


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
            values = [test.results["rows"].get(source, {}).get(name) for test in tests]
            values = [value["mean"] if isinstance(value, Mapping) else value for value in values]
            if any(value is not None for value in values):
                figures[name + suffix] = values
    return figures


def with_predicted_mask(row: str) -> str:
    """Return the row that differs in its source of masks, if there is one."""
    predicted = f"{row}_predicted_mask"
    return predicted if predicted in ROWS else row


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation; None if a value is unknown, or for the deviation of one value."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return None, None
    return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None


def compare_rows(plan: Plan, known: Mapping[str, Sequence[Outcome]], replicates: int) -> list[dict[str, Any]]:
    """Compare the rows of each claim whose tests exist.

    Returns:
        For each of `plan.compare` its letters, claim and numbers of runs, and, if its pairs are known, `masks`: by
        "given" and "predicted", or "none" if both rows have one source of masks only, the estimate of first minus
        second for each figure, with an interval that holds for all comparisons together, and the verdict.
    """

    @cache
    def bootstrap(letter: str, row: str) -> dict[str, torch.Tensor] | None:  # the seeds of a fold averaged
        parts: dict[str | None, list[PairScores]] = {}
        for test in known[letter]:
            pairs = test.read_pairs(row)
            if pairs is None:
                return None
            parts.setdefault(test.fold, []).append(pairs)
        return bootstrap_figures(list(parts.values()), replicates, names=FIGURES)

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
        if count < of:
            continue
        for mask, rows in sources.items():
            one, other = (bootstrap(letter, row) for letter, row in zip(letters, rows, strict=True))
            if one is not None and other is not None:
                _check_pairs(pair, [known[letter] for letter in letters], rows)
                differences[number, mask] = {name: one[name] - other[name] for name in FIGURES}
    if not differences:
        return comparisons
    for name in FIGURES:
        intervals = simultaneous_intervals(torch.stack([each[name] for each in differences.values()])).tolist()
        for ((number, mask), each), (low, high) in zip(differences.items(), intervals, strict=True):
            figures = comparisons[number].setdefault("masks", {}).setdefault(mask, {})
            figures[name] = {"estimate": float(each[name][0]), "low": low, "high": high}
    for number, mask in differences:
        figures = comparisons[number]["masks"][mask]
        figures["verdict"] = verdict(figures["eer"])
    return comparisons


def _check_pairs(pair: Comparison, sides: Sequence[Sequence[Outcome]], rows: Sequence[str]) -> None:
    for first, second in zip(*sides, strict=True):
        one, other = first.read_pairs(rows[0]), second.read_pairs(rows[1])
        try:
            check_same_pairs(cast(PairScores, one), cast(PairScores, other))
        except ValueError as error:
            raise ValueError(f"compare {pair.first} and {pair.second}: {error}") from error


def verdict(interval: Mapping[str, float]) -> str:
    """Return what the interval of the first row's EER minus the second's says: whether the first is better."""
    if math.isnan(interval["estimate"]):
        return MISSING
    if interval["high"] < 0:
        return "holds"
    return "refuted here" if interval["low"] > 0 else "cannot be told apart"


def _summarise_parts(plan: Plan, known: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """Return the mean EER of each row by occluder and by tenth of the probes by coverage.

    Predicted masks are used where the row has them. The edges of the tenths are averaged over the tests.
    """

    def mean_eer(parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float | None]:  # the tests' by letter
        means = {}
        for letter, listed in parts.items():
            row = with_predicted_mask(plan.rows[letter].row)
            means[letter] = mean_and_deviation([part.get("rows", {}).get(row, {}).get("eer") for part in listed])[0]
        return means

    by_letter = {letter: [test.results for test in listed] for letter, listed in known.items()}
    tests = [results for listed in by_letter.values() for results in listed]
    per_kind = {}
    for kind in dict.fromkeys(kind for results in tests for kind in results.get("per_kind", {})):
        parts = {letter: [each["per_kind"].get(kind, {}) for each in listed] for letter, listed in by_letter.items()}
        per_kind[kind] = mean_eer(parts)
    tenths = []
    for number in range(min((len(results.get("per_coverage", [])) for results in tests), default=0)):
        parts = {letter: [each["per_coverage"][number] for each in listed] for letter, listed in by_letter.items()}
        edges = {
            name: statistics.fmean(each["per_coverage"][number][name] for each in tests) for name in ("low", "high")
        }
        tenths.append({**edges, "rows": mean_eer(parts)})
    return {"per_kind": per_kind, "per_coverage": tenths}
