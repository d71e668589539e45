"""Writes the outcome of an ablation: `ablation.json`, `table.md` and the figures `bars` and `losses`, SVG and PNG."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deocc.commands.ablate_plan import Plan
from deocc.commands.ablate_summary import read_metrics, with_predicted_mask
from deocc.evaluation.figures import COLOURS, write_svg
from deocc.evaluation.report import DATA_LIMITS, MISSING, markdown_cells, percent, points
from deocc.evaluation.results import CLEAN_ROWS
from deocc.files import write_file, write_json

_TITLES = {"accuracy": "accuracy %", "eer": "EER %", "tar@1e-2": "TAR@1e-2 %", "tar@1e-3": "TAR@1e-3 %"}
_SOURCES = {"": "given", "_predicted_mask": "predicted", "_bare": "bare pairs"}  # of a line, by suffix of its figures
_LINE_STYLES = ("-", "--", "-.", ":")


def write_outcome(plan: Plan, summary: Mapping[str, Any]) -> None:
    """Write all files, the numbers first, so that an error in a figure does not lose them, and print the table."""
    write_json(plan.run / "ablation.json", {"plan": asdict(plan), **summary})
    data, seeds, folds = summary["data"] or "no data", summary["seeds"], summary["folds"]
    if summary["tested_on"] == "validation":
        people = f"Validation people of {data}, last validation of each training"
    elif folds:
        count = "fold" if len(folds) == 1 else "folds"
        people = f"{summary['people']} people of {data}, {count} {', '.join(folds)}, each with models of its own"
    else:
        people = f"{summary['people']} people of {data}, the split of the face set"
    count = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    table = f"{people}, {count} ({', '.join(map(str, seeds))}); mean ± standard deviation over runs.\n\n"
    table += f"{_row_table(summary)}\n"
    if summary["comparisons"]:
        table += f"\n{_comparison_table(summary)}\n"
    if summary["per_kind"]:
        table += f"\n{_part_tables(summary)}\n"
    write_file(plan.run / "table.md", table)
    _draw_figures(plan, summary)
    print(table)
    print(f"table: {plan.run / 'table.md'}", flush=True)


def _row_table(summary: Mapping[str, Any]) -> str:
    """Return the table of rows and its explanation."""
    rows = summary["rows"]
    known = {name for row in rows.values() for name in row.get("figures", {})}
    columns = {name: title for name, title in {**_TITLES, "rank1": "rank-1 %"}.items() if name in known}
    body = []
    for letter, row in rows.items():
        title = f"({letter}) {row['title']}"
        if "figures" not in row:
            body.append([title, *_unfinished_cells(row, 1 + len(columns))])
            continue
        figures = row["figures"]
        for suffix, source in _SOURCES.items():
            values = [figures.get(name + suffix) for name in columns]
            if any(values):
                needs_mask = row["row"] not in CLEAN_ROWS and with_predicted_mask(row["row"]) != row["row"]
                cells = []
                for value in values:
                    deviation = f" ± {percent(value['deviation'])}" if value and value["deviation"] is not None else ""
                    cells.append(percent(value["mean"]) + deviation if value else MISSING)
                body.append([title, source if needs_mask or suffix else "none", *cells])
                title = ""  # once for all lines of a row
    meaning = {
        "accuracy": "Accuracy: share of correct decisions on each fold of pairs at the threshold that is best on the "
        "other folds of the same test. ",
        "eer": "EER: rate at which false accepts equal false rejects; lower is better. ",
        "tar@1e-2": "TAR@1e-2: rate of true accepts at 1 % false accepts. ",
        "rank1": "Rank-1: share of probes whose nearest gallery image, one clean image per person, shows the right "
        "person. ",
    }
    note = "".join(text for name, text in meaning.items() if name in columns)
    if any(name.endswith("_bare") for name in known):
        note += "Bare pairs: two faces without a mask, which is predicted all the same. "
    note += f"{MISSING}: does not apply, or is unknown. {DATA_LIMITS.get(str(summary['data']), '')}"
    return f"{markdown_cells((['', 'mask', *columns.values()], body))}\n{note.rstrip()}"


def _comparison_table(summary: Mapping[str, Any]) -> str:
    """Return the table of claims, with differences and their intervals, and its explanation."""
    known = [pair for pair in summary["comparisons"] if "masks" in pair]
    columns = {}
    for name, title in _TITLES.items():
        if not all(math.isnan(each[name]["estimate"]) for pair in known for each in pair["masks"].values()):
            columns[name] = title.replace(" %", ", points")
    body, count = [], 0
    for pair in summary["comparisons"]:
        name = " ".join([pair["claim"], f"({pair['first']} - {pair['second']})"]).strip()
        if "masks" not in pair:
            body.append([name, *_unfinished_cells(pair, 2 + len(columns))])
        for mask, figures in pair.get("masks", {}).items():
            cells = []
            for column in columns:
                estimate, low, high = (figures[column][key] for key in ("estimate", "low", "high"))
                interval = f"{points(estimate)} ({points(low)} to {points(high)})"
                cells.append(MISSING if math.isnan(estimate) else interval)
            body.append([name, mask, *cells, figures["verdict"]])
            count += 1
    header = ["claim", "mask", *columns.values(), "on EER, the claim"]
    seeds = len(summary["seeds"])
    note = (
        f"Differences of the first row minus the second{', means over the seeds' if seeds > 1 else ''}. In brackets, "
        "intervals of a paired bootstrap over people (within each fold). They are corrected for the number of "
        f"comparisons ({count}) by the max-T method: for one figure, all of them contain the true difference with 95 % "
        "probability. They show what other people might have given, not another training. A claim holds if the "
        "interval of the EER lies below zero."
    )
    return f"{markdown_cells((header, body))}\n{note}"


def _part_tables(summary: Mapping[str, Any]) -> str:
    """Return the EER of each row by occluder and by tenth of coverage, with the predicted mask where there is one."""
    letters = [letter for letter, row in summary["rows"].items() if "figures" in row and row["row"] not in CLEAN_ROWS]
    parts = dict(summary["per_kind"])
    for tenth in summary["per_coverage"]:
        parts[f"{percent(tenth['low'])} to {percent(tenth['high'])} % covered"] = tenth["rows"]
    body = [[part, *(percent(cells[letter]) for letter in letters)] for part, cells in parts.items()]
    note = "EER in %, with the predicted mask where a row uses one, by occluder and by tenth of the probes by coverage."
    return f"{markdown_cells((['', *(f'({letter})' for letter in letters)], body))}\n{note}"


def _unfinished_cells(entry: Mapping[str, Any], count: int) -> list[str]:
    reason = f"{MISSING}, {entry['runs']} of {entry['of']} runs" if entry["runs"] < entry["of"] else MISSING
    return [reason, *[MISSING] * (count - 1)]


def _draw_figures(plan: Plan, summary: Mapping[str, Any]) -> None:
    """Write the figures for which there are data as SVG and PNG, on white, so that they can be read on a dark page."""

    def save(figure: Figure, name: str) -> None:
        write_svg(figure, plan.run / f"{name}.svg")
        figure.savefig(plan.run / f"{name}.png", facecolor="white")

    if any("figures" in row for row in summary["rows"].values()):
        save(bar_figure(summary), "bars")
    curves = {}
    for name in plan.variants:
        curves[name] = read_curves([plan.run_folder(name, fold, seed) for fold, seed in plan.fold_seeds()])
    if any(curves.values()):
        save(loss_figure(curves), "losses")


def bar_figure(summary: Mapping[str, Any]) -> Figure:
    """Draw accuracy and EER of each row, by source of masks, with their deviation and each run as a dot."""
    rows = {letter: row["figures"] for letter, row in summary["rows"].items() if "figures" in row}
    labels = [f"({letter}) {summary['rows'][letter]['title']}" for letter in rows]
    names = [name for name in ("accuracy", "eer") if any(name in figures for figures in rows.values())]
    figure = Figure(figsize=(11, 1.8 + 0.5 * len(rows)), dpi=100, layout="constrained")
    all_axes: Sequence[Axes] = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    sources = {"": "given mask, or none", "_predicted_mask": "predicted mask"}
    for axes, name in zip(all_axes, names, strict=True):
        lowest = 1.0
        for (suffix, source), colour, shift in zip(sources.items(), COLOURS, (-0.2, 0.2), strict=False):
            label: str | None = source
            for row, figures in enumerate(rows.values()):
                place = float(row)
                known = figures.get(name + suffix)
                if known is None or known["mean"] is None:
                    continue
                if all(figures.get(name + other) is not None for other in sources):
                    place += shift  # a single bar is centred on its label
                lowest = min(lowest, *known["values"])
                error = None if known["deviation"] is None else 100 * known["deviation"]
                lines = {"ecolor": "black", "capsize": 2}
                axes.barh(
                    place, 100 * known["mean"], 0.36, xerr=error, error_kw=lines, color=colour, alpha=0.7, label=label
                )
                values = [100 * value for value in known["values"]]
                axes.plot(values, [place] * len(values), ".", color="black", markersize=3)
                label = None  # one entry of the legend for each source
        if name == "accuracy":  # from below the lowest value, as in the paper's figure
            axes.set_xlim(max(0.0, math.floor(20 * lowest - 1) * 5), 100)
        axes.set_xlabel(_TITLES[name])
        axes.grid(axis="x", alpha=0.3)
    all_axes[0].set_yticks(range(len(labels)), labels, fontsize=9)
    all_axes[0].invert_yaxis()
    handles, texts = all_axes[-1].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower right", ncols=2, fontsize=9)
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
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
    figure.legend(loc="outside lower center", handles=[*lines.values()], labels=[*lines], ncols=5, fontsize=8)
    return figure
