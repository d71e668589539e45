"""Writes the outcome of an ablation: `ablation.json`, `table.md` and the figures `bars.svg` and `losses.svg`."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deocc.commands.ablate_plan import Plan
from deocc.commands.ablate_summary import read_metrics
from deocc.evaluation.figures import COLOURS
from deocc.evaluation.report import DATA_LIMITS, MISSING, markdown_cells, percent, points
from deocc.files import write_file, write_json

_COLUMNS = {
    "eer": "EER %",
    "eer_predicted_mask": "EER %, predicted mask",
    "accuracy": "accuracy %",
    "rank1": "rank-1 %",
    "auc": "AUC %",
    "tar@1e-2": "TAR@1e-2 %",
}
_LINE_STYLES = ("-", "--", "-.", ":")


def write_outcome(plan: Plan, summary: Mapping[str, Any]) -> None:
    """Write all files and print the table.

    The numbers are written first, so that an error in a figure does not lose them.
    """
    write_json(plan.run / "ablation.json", {"plan": asdict(plan), **summary})
    table = f"{_introduction(summary)}\n\n{_row_table(summary)}\n"
    if summary["comparisons"]:
        table += f"\n{_comparison_table(summary)}\n"
    write_file(plan.run / "table.md", table)
    _draw_figures(plan, summary)
    print(table)
    print(f"table: {plan.run / 'table.md'}", flush=True)


def _introduction(summary: Mapping[str, Any]) -> str:
    """Return how often which people were tested."""
    data, seeds, folds = summary["data"] or "no data", summary["seeds"], summary["folds"]
    if summary["tested_on"] == "validation":
        people = f"Validation people of {data}, last validation of each training"
    else:
        split = f"{folds} folds over people, each person tested once"
        if folds is None:
            split = (
                f"{summary['pair_folds']} folds of pairs" if _has_pair_folds(summary) else "the split of the face set"
            )
        people = f"{summary['people']} people of {data}, {split}"
    count = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return f"{people}, {count} ({', '.join(map(str, seeds))}); mean ± standard deviation over runs."


def _row_table(summary: Mapping[str, Any]) -> str:
    """Return the table of rows and its explanation; each figure is mean ± standard deviation over folds and seeds."""
    body = []
    for letter, row in summary["rows"].items():
        cells = [f"({letter}) {row['title']}"]
        if "figures" in row:
            for name in _COLUMNS:
                figure = row["figures"][name]
                deviation = "" if figure["deviation"] is None else f" ± {percent(figure['deviation'])}"
                cells.append(percent(figure["mean"]) + deviation)
        else:
            cells += _unfinished_cells(row, len(_COLUMNS))
        body.append(cells)
    accuracy = (
        "Balanced accuracy: mean of the rates of true accepts and true rejects at the threshold of equal error of all "
        "other folds."
    )
    if _has_pair_folds(summary):
        accuracy = (
            f"Accuracy: share of correct decisions on each of the {summary['pair_folds']} folds of pairs at the "
            "threshold that is best on the other folds, mean over folds."
        )
    note = (
        f"EER: rate at which false accepts equal false rejects; lower is better. {accuracy} Rank-1: share of probes "
        "whose nearest gallery image, one clean image per person, shows the right person. TAR@1e-2: rate of true "
        f"accepts at 1 % false accepts. {MISSING}: does not apply, or is unknown. "
        f"{DATA_LIMITS.get(str(summary['data']), '')}"
    )
    return f"{markdown_cells((['', *_column_titles(summary).values()], body))}\n{note.rstrip()}"


def _comparison_table(summary: Mapping[str, Any]) -> str:
    """Return the table of differences in EER with their intervals and McNemar's test, and its explanation."""
    header = ["", "EER, points", "95 % interval", "the first is", "right: first only", "second only", "McNemar p"]
    count, body = len(summary["seeds"]), []
    for pair in summary["comparisons"]:
        cells = [f"{pair['first']} - {pair['second']}"]
        if "eer" not in pair:
            body.append([*cells, *_unfinished_cells(pair, len(header) - 1)])
            continue
        interval, test = pair["eer"], pair["mcnemar"]
        limits = f"{points(interval['low'])} to {points(interval['high'])}"
        cells += [points(interval["estimate"]), limits, pair["verdict"]]
        if test is None:
            cells += [MISSING] * 3
        else:
            seed = f" (seed {pair['mcnemar_seed']})" if count > 1 else ""
            cells += [str(test["first_only"]), str(test["second_only"]), f"{test['p_value']:.2g}{seed}"]
        body.append(cells)
    people = "people" if summary["folds"] is None else "people within each fold"
    averaged = f"; its ends are averaged over the {count} seeds" if count > 1 else ""
    shown = f" Of the {count} seeds, the one with the largest p-value is shown and named." if count > 1 else ""
    note = (
        f"Interval: 95 % range of a paired bootstrap over {people}{averaged}. It shows what other people might have "
        "given, not another training. Without any real difference, 5 % of the intervals would not contain zero; this "
        f"is not corrected. McNemar's test counts the decisions that only one of the two got right.{shown} It assumes "
        "independent pairs, but many pairs share a person, so its p-value tends to be too small: rely on the interval."
    )
    return f"{markdown_cells((header, body))}\n{note}"


def _has_pair_folds(summary: Mapping[str, Any]) -> bool:
    return (summary["pair_folds"] or 1) > 1


def _column_titles(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the title of each figure; "accuracy" without "balanced" means the accuracy of LFW's protocol."""
    return _COLUMNS if _has_pair_folds(summary) else {**_COLUMNS, "accuracy": "balanced accuracy %"}


def _unfinished_cells(entry: Mapping[str, Any], count: int) -> list[str]:
    reason = f"{MISSING}, {entry['runs']} of {entry['of']} runs" if entry["runs"] < entry["of"] else MISSING
    return [reason, *[MISSING] * (count - 1)]


def _draw_figures(plan: Plan, summary: Mapping[str, Any]) -> None:
    """Write the figures for which there are data."""
    if any("figures" in row for row in summary["rows"].values()):
        bar_figure(summary).savefig(plan.run / "bars.svg")
    curves = {}
    for name in plan.variants:
        curves[name] = read_curves([plan.run_folder(name, fold, seed) for fold, seed in plan.fold_seeds()])
    if any(curves.values()):
        loss_figure(curves).savefig(plan.run / "losses.svg")


def bar_figure(summary: Mapping[str, Any]) -> Figure:
    """Draw accuracy and EER as one bar per row, with the standard deviation as a line and each run as a dot."""
    rows = {letter: row["figures"] for letter, row in summary["rows"].items() if "figures" in row}
    labels = [f"({letter}) {summary['rows'][letter]['title']}" for letter in rows]
    names = [name for name in ("accuracy", "eer") if any(row[name]["mean"] is not None for row in rows.values())]
    figure = Figure(figsize=(11, 1.4 + 0.42 * len(rows)), dpi=100, layout="constrained")
    all_axes: Sequence[Axes] = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(all_axes, names, strict=True):
        colour = COLOURS[0] if name == "accuracy" else COLOURS[1]
        lowest = 1.0
        for place, row in enumerate(rows.values()):
            values, mean, deviation = row[name]["values"], row[name]["mean"], row[name]["deviation"]
            if mean is None:
                continue
            lowest = min(lowest, *values)
            error = None if deviation is None else 100 * deviation
            axes.barh(
                place, 100 * mean, xerr=error, color=colour, alpha=0.7, error_kw={"ecolor": "black", "capsize": 3}
            )
            axes.plot([100 * value for value in values], [place] * len(values), ".", color="black", markersize=4)
        if name == "accuracy":  # from below the lowest value, as in the paper's figure
            axes.set_xlim(max(0.0, math.floor(20 * lowest - 1) * 5), 100)
        axes.set_xlabel(_column_titles(summary)[name])
        axes.grid(axis="x", alpha=0.3)
    all_axes[0].set_yticks(range(len(labels)), labels, fontsize=9)
    all_axes[0].invert_yaxis()
    return figure


def read_curves(folders: Sequence[Path]) -> dict[str, dict[int, float]]:
    """Read the weighted loss terms that runs logged; return their means over the runs by term and step."""
    values: dict[str, dict[int, list[float]]] = {}
    for folder in folders:
        for step, name, value in read_metrics(folder):
            if name.startswith("train/") and name.endswith("_term"):
                term = name.removeprefix("train/").removesuffix("_term")
                values.setdefault(term, {}).setdefault(step, []).append(value)
    return {term: {step: statistics.fmean(steps[step]) for step in sorted(steps)} for term, steps in values.items()}


def loss_figure(curves: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Figure:
    """Draw the loss by variant, term and step: one panel per term with one line per variant that uses it."""
    terms = list(dict.fromkeys(term for variant in curves.values() for term in variant))
    columns = min(2, len(terms))
    rows = math.ceil(len(terms) / columns)
    figure = Figure(figsize=(5.2 * columns, 3 * rows), dpi=100, layout="constrained")
    for position, term in enumerate(terms, 1):
        axes = figure.add_subplot(rows, columns, position)
        for number, (variant, known) in enumerate(curves.items()):
            if term in known:
                colour, style = COLOURS[number % len(COLOURS)], _LINE_STYLES[number % len(_LINE_STYLES)]
                axes.plot(list(known[term]), list(known[term].values()), label=variant, color=colour, linestyle=style)
        axes.set(title=f"{term}, weighted", xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=7)
    return figure
