"""What an ablation leaves in its folder: table.md, ablation.json, two figures, one HTML file that loads nothing, and the W&B summary."""

import base64
import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from jsonargparse import Namespace
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from deocc.callbacks.loggers import WandbRunLogger, place_loggers
from deocc.commands.ablate.plan import WANDB, Plan, fold_seeds, run_folder
from deocc.evaluation import png_bytes, write_results
from deocc.evaluation.figures import COLOURS
from deocc.evaluation.report import DATA_LIMITS
from deocc.evaluation.tables import MISSING, Cells, markdown_cells, percent, points

_COLUMNS = {
    "eer": "EER %",
    "eer_predicted_mask": "EER %, predicted mask",
    "accuracy": "accuracy %",
    "rank1": "rank-1 %",
    "auc": "AUC %",
    "tar@1e-2": "TAR@1e-2 %",
}

_EER = "EER: the rate at which false accepts equal false rejects; lower is better."
_OTHERS = (
    "Rank-1: the nearest of one clean image a person is the right one. "
    "TAR@1e-2: true accepts where 1 % of the pairs of different people are accepted. n/a: does not apply, or is not known."
)


def column_titles(summary: Mapping[str, Any]) -> dict[str, str]:
    """What each figure is called. "accuracy" alone stands for that of LFW's protocol, which is not balanced."""
    return _COLUMNS if _by_pair_folds(summary) else {**_COLUMNS, "accuracy": "balanced accuracy %"}


def row_note(summary: Mapping[str, Any]) -> str:
    """What stands below the rows: how each figure is measured."""
    accuracy = (
        f"Accuracy: the share of right decisions on each of the {summary['pair_folds']} folds of pairs under the threshold that is best "
        "on the other folds, mean over folds."
        if _by_pair_folds(summary)
        else "Balanced accuracy: the mean of the rates of true accepts and true rejects at the threshold of equal error of all other folds."
    )
    return f"{_EER} {accuracy} {_OTHERS}"


def comparison_note(summary: Mapping[str, Any]) -> str:
    """What stands below the comparisons: how interval and test come about."""
    people = "people" if summary["folds"] is None else "people within each fold"
    seeds = len(summary["seeds"])
    ends = "" if seeds == 1 else f", its ends the means of the {seeds} seeds' ends"
    shown = (
        "" if seeds == 1 else f" Of the {seeds} seeds the one with the largest p-value is shown, and named beside it."
    )
    return (
        f"The interval is the 95 % range of a paired bootstrap over {people}{ends}. McNemar's test counts the decisions that only one of "
        f"the two got right.{shown} It takes pairs for independent, but many pairs share one person, so its p-value tends to be too small: "
        "the interval is the one to trust."
    )


def row_cells(summary: Mapping[str, Any]) -> Cells:
    """The rows by letter and title, each figure as mean ± standard deviation over folds and seeds."""
    body = [
        [
            f"({letter}) {row['title']}",
            *([_figure(row, name) for name in _COLUMNS] if "figures" in row else _unfinished(row)),
        ]
        for letter, row in summary["rows"].items()
    ]
    return ["", *column_titles(summary).values()], body


def comparison_cells(summary: Mapping[str, Any]) -> Cells:
    """The differences in EER with their intervals, what they allow to say, and McNemar's test."""
    header = ["", "EER, points", "95 % interval", "the first is", "right: first only", "second only", "McNemar p"]
    name_seed = len(summary["seeds"]) > 1
    return header, [
        [f"{pair['first']} - {pair['second']}", *_difference(pair, name_seed)] for pair in summary["comparisons"]
    ]


def conclusions(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers allow to conclude, a sentence or two each."""
    known = [pair for pair in summary["comparisons"] if "eer" in pair]
    lines = [_sentence(summary, pair) for pair in known]
    return [*lines, *_limits(summary, known)] if known else ["No comparison is complete, so nothing can be concluded."]


def markdown(summary: Mapping[str, Any]) -> str:
    """Both tables with their notes and the conclusions."""
    rows, pairs = (markdown_cells(cells) for cells in (row_cells(summary), comparison_cells(summary)))
    bullets = "".join(f"- {line}\n" for line in conclusions(summary))
    return f"{introduction(summary)}\n\n{rows}\n{row_note(summary)}\n\n{pairs}\n{comparison_note(summary)}\n\n{bullets}"


def introduction(summary: Mapping[str, Any]) -> str:
    """What was tested how often."""
    seeds = ", ".join(str(seed) for seed in summary["seeds"])
    count = "one seed" if len(summary["seeds"]) == 1 else f"{len(summary['seeds'])} seeds"
    tested = f"{summary['people']} people of {summary['data'] or 'no data'}, {_split(summary)}"
    return f"{tested}, {count} ({seeds}); mean ± standard deviation over runs."


def _by_pair_folds(summary: Mapping[str, Any]) -> bool:
    return (summary["pair_folds"] or 1) > 1


def _split(summary: Mapping[str, Any]) -> str:
    if summary["folds"] is not None:
        return f"{summary['folds']} folds over people, each person tested once"
    return f"{summary['pair_folds']} folds of pairs" if _by_pair_folds(summary) else "the split of the face set"


def _figure(row: Mapping[str, Any], name: str) -> str:
    figure = row["figures"][name]
    return percent(figure["mean"]) + ("" if figure["deviation"] is None else f" ± {percent(figure['deviation'])}")


def _unfinished(entry: Mapping[str, Any], cells: int = len(_COLUMNS)) -> list[str]:
    reason = f"{MISSING}, {entry['runs']} of {entry['of']} runs" if entry["runs"] < entry["of"] else MISSING
    return [reason, *[MISSING] * (cells - 1)]


def _difference(pair: Mapping[str, Any], name_seed: bool) -> list[str]:
    if "eer" not in pair:
        return _unfinished(pair, 6)
    interval = pair["eer"]
    return [
        points(interval["estimate"]),
        f"{points(interval['low'])} to {points(interval['high'])}",
        pair["verdict"],
        *_decided(pair, name_seed),
    ]


def _decided(pair: Mapping[str, Any], name_seed: bool) -> list[str]:
    test = pair["mcnemar"]
    if test is None:
        return [MISSING] * 3
    seed = f" (seed {pair['mcnemar_seed']})" if name_seed else ""
    return [str(test["first_only"]), str(test["second_only"]), f"{test['p_value']:.2g}{seed}"]


def _sentence(summary: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    interval = pair["eer"]
    titles = " against ".join(
        f"({letter}) {summary['rows'][letter]['title']}" for letter in (pair["first"], pair["second"])
    )
    found = {"better": "the first is better", "worse": "the first is worse"}.get(
        pair["verdict"], "the two cannot be told apart"
    )
    zero = "contains" if pair["verdict"] == "cannot be told apart" else "does not contain"
    span = f"{points(interval['low'])} to {points(interval['high'])}"
    return f"{titles}: {points(interval['estimate'])} points of EER; the interval, {span}, {zero} zero: {found}."


def _limits(summary: Mapping[str, Any], known: list[Mapping[str, Any]]) -> list[str]:
    widths = [(pair["eer"]["high"] - pair["eer"]["low"]) / 2 for pair in known]
    apart = sum(pair["verdict"] != "cannot be told apart" for pair in known)
    return [
        f"{apart} of {len(known)} intervals do not contain zero. Were there no difference anywhere, 5 % of them, {0.05 * len(known):.1f} "
        "on average, would still not; nothing here is corrected for that.",
        f"{summary['people']} people give intervals of ± {percent(statistics.median(widths))} points (the median): a difference much "
        "smaller than that cannot be seen with them.",
        "An interval tells what other people of this kind might have given, not what another training would have given; "
        + (
            "each was trained once, so that is not known."
            if len(summary["seeds"]) == 1
            else "the deviations in the table hold both."
        ),
    ]


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
        axes[0].set_xlim(
            max(0.0, math.floor(20 * lowest - 1) * 5), 100
        )  # in the manner of the paper's figure, not from zero
    return figure


def read_curves(metrics: Mapping[str, Sequence[Path]]) -> Curves:
    """The mean over runs of every logged loss term, weighted as it is in the loss.

    Args:
        metrics: by variant, the `metrics.csv` of its runs; one that is not there is left out.
    """
    return {
        variant: _mean_terms([_read_terms(file) for file in files if file.is_file()])
        for variant, files in metrics.items()
    }


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
    axes.barh(
        place, 100 * figure["mean"], xerr=deviation, color=colour, alpha=0.7, error_kw={"ecolor": "black", "capsize": 3}
    )
    axes.plot(
        [100 * value for value in figure["values"]], [place] * len(figure["values"]), ".", color="black", markersize=4
    )


def _read_terms(file: Path) -> dict[str, dict[int, float]]:
    terms: dict[str, dict[int, float]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            for key, value in row.items():
                if value and key.startswith(_PREFIX) and key.endswith(_SUFFIX):
                    terms.setdefault(key.removeprefix(_PREFIX).removesuffix(_SUFFIX), {})[int(row["step"])] = float(
                        value
                    )
    return terms


def _mean_terms(several: Sequence[Mapping[str, Mapping[int, float]]]) -> dict[str, dict[int, float]]:
    """At each step the mean of the runs that logged it."""
    merged: dict[str, dict[int, list[float]]] = {}
    for terms in several:
        for term, values in terms.items():
            for step, value in values.items():
                merged.setdefault(term, {}).setdefault(step, []).append(value)
    return {
        term: {step: sum(found) / len(found) for step, found in sorted(values.items())}
        for term, values in merged.items()
    }


_FOLDER = "summary"
"""Below the ablation's: its name names the W&B run, the ablation's the group."""


def log_outcome(run: Path, summary: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
    """Log both tables and the figures; offline where there is no key. The same run goes on when it is logged again."""
    configured = WANDB["trainer"]["logger"]
    trainer = Namespace(
        logger=Namespace(class_path=configured["class_path"], init_args=Namespace(configured["init_args"]))
    )  # type: ignore[no-untyped-call]
    place_loggers(trainer, run / _FOLDER, "ablation", run / _FOLDER, model="")
    logger = WandbRunLogger(**vars(trainer.logger[1].init_args))
    for name, (header, body) in {"rows": row_cells(summary), "comparisons": comparison_cells(summary)}.items():
        logger.log_table(f"ablation/{name}", columns=[header[0] or "row", *header[1:]], data=body)
    for name, figure in figures.items():
        logger.log_image(f"ablation/{name}", [Image.open(io.BytesIO(png_bytes(figure)))])
    logger.finish()


_CAPTIONS = {
    "bars": "Accuracy and equal error rate by row: mean, standard deviation, and each run as a dot",
    "losses": "Loss terms over the training of each variant, mean over runs",
}


def write_outcome(plan: Plan, summary: Mapping[str, Any]) -> None:
    """Write all files of a summary, print the table, and log it where the plan asks for that.

    The numbers are on disk before a figure is drawn, lest they be lost with it.
    """
    write_results(plan.run / "ablation.json", {"plan": asdict(plan), **summary})
    (plan.run / "table.md").write_text(markdown(summary), encoding="utf-8")
    figures = _figures(plan, summary)
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            figure.savefig(plan.run / f"{name}.{kind}")
    (plan.run / "ablation.html").write_text(report_html(summary, figures), encoding="utf-8")
    if plan.wandb:
        log_outcome(plan.run, summary, figures)
    print(markdown(summary))
    print(f"table:  {plan.run / 'table.md'}\nreport: {plan.run / 'ablation.html'}", flush=True)


def report_html(summary: Mapping[str, Any], figures: Mapping[str, Figure]) -> str:
    """The report, readable in light and dark."""
    source = files(__package__).joinpath("ablation_report.html.j2").read_text(encoding="utf-8")
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(source)
    return template.render(
        introduction=introduction(summary),
        tables=[
            ("Rows", *row_cells(summary), row_note(summary)),
            ("Differences in equal error rate", *comparison_cells(summary), comparison_note(summary)),
        ],
        conclusions=conclusions(summary),
        limit=DATA_LIMITS.get(str(summary["data"])),
        figures={_CAPTIONS[name]: base64.b64encode(png_bytes(figure)).decode() for name, figure in figures.items()},
        runs=summary["runs"],
        credit=summary["credit"],
    )


def _figures(plan: Plan, summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Those for which something is known."""
    curves = read_curves(
        {name: [run_folder(plan, name, *where) / "metrics.csv" for where in fold_seeds(plan)] for name in plan.variants}
    )
    bars = {"bars": bar_figure(summary)} if any("figures" in row for row in summary["rows"].values()) else {}
    return bars | ({"losses": loss_figure(curves)} if any(curves.values()) else {})
