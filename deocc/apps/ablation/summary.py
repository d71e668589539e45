"""What is known of a plan's rows and comparisons once its jobs have run: everything that `ablation.json` holds."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deocc import runs
from deocc.apps.ablation.jobs import Job, fold_seeds, run_folder
from deocc.apps.ablation.marks import is_done
from deocc.apps.ablation.plan import Plan
from deocc.apps.ablation.statistics import Outcome, compare, mean_and_deviation, pair_folds, row_figures, verdict
from deocc.evaluation import PairScores, read_scores
from deocc.evaluation.scores import SCORES

_PROVENANCE = ("command", "seed", "data_seed", "mask_seeds", "data_hash", "training_data_hash", "manifest_hash", "versions")


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
        (folds for letter, tests in known.items() for test in tests if (folds := pair_folds(test.scores(plan.rows[letter].row)))), None
    )


def _tests_of(plan: Plan, tests: Mapping[str, Sequence[Outcome]], letter: str) -> list[Outcome]:
    """The tests that scored the row."""
    return [test for test in tests[plan.variant_of(letter)] if plan.rows[letter].row in test.results["rows"]]


def _row(plan: Plan, letter: str, tests: Sequence[Outcome]) -> dict[str, Any]:
    row, of = plan.rows[letter], len(fold_seeds(plan))
    summary: dict[str, Any] = {"title": row.title, "row": row.row, "variant": plan.variant_of(letter), "runs": len(tests), "of": of}
    if len(tests) < of:
        return summary
    figures = {name: (values, *mean_and_deviation(values)) for name, values in row_figures(tests, row.row).items()}
    columns = ("values", "mean", "deviation")
    return {**summary, "figures": {name: dict(zip(columns, figure, strict=True)) for name, figure in figures.items()}}


def _comparison(plan: Plan, first: str, second: str, known: Mapping[str, Sequence[Outcome]], replicates: int) -> dict[str, Any]:
    of, rows = len(fold_seeds(plan)), [plan.rows[letter].row for letter in (first, second)]
    there = min(len(known[letter]) for letter in (first, second))
    summary: dict[str, Any] = {"first": first, "second": second, "runs": there, "of": of}
    outcome = compare(known[first], rows[0], known[second], rows[1], replicates) if there == of else None
    return summary if outcome is None else {**summary, **outcome, "verdict": verdict(outcome["eer"])}


def _people(plan: Plan, tests: Mapping[str, Sequence[Outcome]]) -> int:
    """How many people were tested, over all folds."""
    by_fold = {test.fold: int(test.results["people"]) for listed in tests.values() for test in listed}
    return sum(by_fold.values())
