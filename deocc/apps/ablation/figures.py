"""The two figures of the ablation: bars in the manner of the paper's LFW accuracy figure, and loss curves in that of its losses by setting.

OURS is what they measure: the data, the equal error rate and, over folds of people, a balanced accuracy.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deocc.apps.ablation.tables import column_titles
from deocc.evaluation.figures import COLOURS

_STYLES = ("-", "--", "-.", ":")
_BARS = ("accuracy", "eer")
_PREFIX, _SUFFIX = "train/", "_term"

Curves = Mapping[str, Mapping[str, Mapping[int, float]]]
"""By variant and loss term: the value by step, the mean over runs."""


def bar_figure(summary: Mapping[str, Any]) -> Figure:
    """A bar a row, its standard deviation over runs as a line and each run as a dot; accuracy beside equal error rate."""
    rows = {letter: row["figures"] for letter, row in summary["rows"].items() if "figures" in row}
    labels = [f"({letter}) {summary['rows'][letter]['title']}" for letter in rows]
    known = [name for name in _BARS if any(figures[name]["mean"] is not None for figures in rows.values())]
    figure = Figure(figsize=(11, 1.4 + 0.42 * len(rows)), dpi=100, layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    for part, name in zip(axes, known, strict=True):
        for place, figures in enumerate(rows.values()):
            _draw_bar(part, place, figures[name], COLOURS[0] if name == "accuracy" else COLOURS[1])
        part.set_xlabel(column_titles(summary)[name])
        part.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(labels)), labels, fontsize=9)
    axes[0].invert_yaxis()
    if "accuracy" in known:
        lowest = min(value for figures in rows.values() for value in figures["accuracy"]["values"] if value is not None)
        axes[0].set_xlim(max(0.0, math.floor(20 * lowest - 1) * 5), 100)  # in the manner of the paper's figure, not from zero
    return figure


def read_curves(metrics: Mapping[str, Sequence[Path]]) -> Curves:
    """The mean over runs of every logged loss term, weighted as it is in the loss.

    Args:
        metrics: by variant, the `metrics.csv` of its runs; one that is not there is left out.
    """
    return {variant: _mean_terms([_read_terms(file) for file in files if file.is_file()]) for variant, files in metrics.items()}


def loss_figure(curves: Curves) -> Figure:
    """A panel a loss term, a line a variant; a term that a variant leaves out has no line of it.

    Raises:
        ValueError: no term was logged.
    """
    terms = list(dict.fromkeys(term for variant in curves.values() for term in variant))
    if not terms:
        raise ValueError("no loss terms were logged: train for more steps, or log more often")
    columns = min(2, len(terms))
    figure = Figure(figsize=(5.2 * columns, 3 * math.ceil(len(terms) / columns)), dpi=100, layout="constrained")
    for position, term in enumerate(terms):
        axes = figure.add_subplot(math.ceil(len(terms) / columns), columns, position + 1)
        for number, (variant, known) in enumerate(curves.items()):
            if term in known:
                colour, style = COLOURS[number % len(COLOURS)], _STYLES[number % len(_STYLES)]
                axes.plot(list(known[term]), list(known[term].values()), label=variant, color=colour, linestyle=style)
        axes.set(title=f"{term}, weighted", xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def _draw_bar(axes: Axes, place: int, figure: Mapping[str, Any], colour: str) -> None:
    if figure["mean"] is None:
        return
    deviation = None if figure["deviation"] is None else 100 * figure["deviation"]
    axes.barh(place, 100 * figure["mean"], xerr=deviation, color=colour, alpha=0.7, error_kw={"ecolor": "black", "capsize": 3})
    axes.plot([100 * value for value in figure["values"]], [place] * len(figure["values"]), ".", color="black", markersize=4)


def _read_terms(file: Path) -> dict[str, dict[int, float]]:
    terms: dict[str, dict[int, float]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            for key, value in row.items():
                if value and key.startswith(_PREFIX) and key.endswith(_SUFFIX):
                    terms.setdefault(key.removeprefix(_PREFIX).removesuffix(_SUFFIX), {})[int(row["step"])] = float(value)
    return terms


def _mean_terms(several: Sequence[Mapping[str, Mapping[int, float]]]) -> dict[str, dict[int, float]]:
    """At each step the mean of the runs that logged it."""
    merged: dict[str, dict[int, list[float]]] = {}
    for terms in several:
        for term, values in terms.items():
            for step, value in values.items():
                merged.setdefault(term, {}).setdefault(step, []).append(value)
    return {term: {step: sum(found) / len(found) for step, found in sorted(values.items())} for term, values in merged.items()}
