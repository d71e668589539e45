"""The report of a test run: one HTML file that holds everything it shows and loads nothing."""

import base64
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from deocc.evaluation.figures import png_bytes
from deocc.evaluation.results import KEYS
from deocc.evaluation.tables import (
    coverage_cells,
    difference_cells,
    is_listed,
    kind_cells,
    restoration_cells,
    row_cells,
    setting_cells,
    tar_cells,
    threshold_cells,
)

DATA_LIMITS = {
    "OrlFaces": "The ORL database shows 40 people, grey, frontal, photographed in one laboratory. It shows that the system learns; it says "
    "nothing about faces in the wild, about other cameras, or about how fairly people of different groups are treated.",
    "LfwFaces": "Labeled Faces in the Wild shows people in the news at the start of the century, most of them adults, far more "
    "men than women, and many groups hardly or not at all. The figures say nothing about children, poor light or extreme "
    "poses, nor about how fairly people of different groups are treated.",
}
"""What the numbers of a data set do not say, by the name that the provenance gives it under `data`."""

COMPARED = {
    "AllPairs": "Each clean image is a gallery face; each probe is one of these images under a synthetic occluder, compared with every "
    "gallery face but its own image.",
    "ListedPairs": "The pairs of a list are compared, with the first face clean and the second under a synthetic occluder, or with both "
    "under occluders: of one kind, or, where kinds are mixed, each under the kind that was drawn for it.",
    "Galleries": "Probes show real occluders, whose masks are predicted, and are compared with bare gallery faces. Protocol 1 has several "
    "gallery images a person, protocol 2 one.",
}
"""What was compared, by the name of the protocol."""

_OTHER_DATA = "The numbers hold for this data set. They say nothing about other cameras, other people, or how fairly groups are treated."


def write_report(path: str | Path, results: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
    """Write the report, readable in light and dark.

    Args:
        path: the HTML file.
        results: as of `build_results`, in memory or read back from its file.
        figures: by caption, such as ROC curves, contact sheets and loss curves; shown in this order.
    """
    source = files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(source)
    text = template.render(
        results=results,
        tables=_tables(results),
        figures={caption: base64.b64encode(png_bytes(figure)).decode() for caption, figure in figures.items()},
        provenance={key: value for key, value in results.items() if key not in KEYS},
        compared=COMPARED.get(str(results.get("protocol")), ""),
        trained_elsewhere=_trained_elsewhere(results),
        limit=DATA_LIMITS.get(str(results.get("data")), _OTHER_DATA),
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def _trained_elsewhere(results: Mapping[str, Any]) -> str:
    """What to say of a test on another set than was trained on."""
    trained, tested = results.get("trained_on"), results.get("data")
    if not trained or trained == tested:
        return ""
    return f"Trained on {trained}, tested on {tested}: whether people of one are in the other is not known here unless they were excluded."


def _tables(results: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Those that have rows, by caption."""
    tables = {
        "Recognition": setting_cells(results) if is_listed(results) else row_cells(results),
        "True accepts by false accept rate": tar_cells(results),
        "Differences in equal error rate": difference_cells(results),
        "Thresholds": threshold_cells(results),
        "By kind of occluder": kind_cells(results),
        "By coverage: equal error rate in %": coverage_cells(results),
        "Restoration": restoration_cells(results),
    }
    return {caption: cells for caption, cells in tables.items() if cells[1]}
