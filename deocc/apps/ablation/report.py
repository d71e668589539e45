"""What an ablation leaves in its folder: table.md, ablation.json, two figures, one HTML file that loads nothing, and the W&B summary."""

import base64
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from deocc.apps.ablation import tables
from deocc.apps.ablation.dashboard import log_outcome
from deocc.apps.ablation.figures import bar_figure, loss_figure, read_curves
from deocc.apps.ablation.jobs import fold_seeds, run_folder
from deocc.apps.ablation.plan import Plan
from deocc.evaluation import png_bytes, write_results
from deocc.evaluation.report import DATA_LIMITS

_CAPTIONS = {
    "bars": "Accuracy and equal error rate by row: mean, standard deviation, and each run as a dot",
    "losses": "Loss terms over the training of each variant, mean over runs",
}


def write_outcome(plan: Plan, summary: Mapping[str, Any]) -> None:
    """Write all files of a summary, print the table, and log it where the plan asks for that.

    The numbers are on disk before a figure is drawn, lest they be lost with it.
    """
    write_results(plan.run / "ablation.json", {"plan": asdict(plan), **summary})
    (plan.run / "table.md").write_text(tables.markdown(summary), encoding="utf-8")
    figures = _figures(plan, summary)
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            figure.savefig(plan.run / f"{name}.{kind}")
    (plan.run / "ablation.html").write_text(report_html(summary, figures), encoding="utf-8")
    if plan.wandb:
        log_outcome(plan.run, summary, figures)
    print(tables.markdown(summary))
    print(f"table:  {plan.run / 'table.md'}\nreport: {plan.run / 'ablation.html'}", flush=True)


def report_html(summary: Mapping[str, Any], figures: Mapping[str, Figure]) -> str:
    """The report, readable in light and dark."""
    source = files(__package__).joinpath("ablation_report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(
        introduction=tables.introduction(summary),
        tables=[
            ("Rows", *tables.row_cells(summary), tables.row_note(summary)),
            ("Differences in equal error rate", *tables.comparison_cells(summary), tables.comparison_note(summary)),
        ],
        conclusions=tables.conclusions(summary),
        limit=DATA_LIMITS.get(str(summary["data"])),
        figures={_CAPTIONS[name]: base64.b64encode(png_bytes(figure)).decode() for name, figure in figures.items()},
        runs=summary["runs"],
        credit=summary["credit"],
    )


def _figures(plan: Plan, summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Those for which something is known."""
    curves = read_curves({name: [run_folder(plan, name, *where) / "metrics.csv" for where in fold_seeds(plan)] for name in plan.variants})
    bars = {"bars": bar_figure(summary)} if any("figures" in row for row in summary["rows"].values()) else {}
    return bars | ({"losses": loss_figure(curves)} if any(curves.values()) else {})
