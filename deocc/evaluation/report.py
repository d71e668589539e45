"""Report of a test: one self-contained HTML file."""

import base64
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from deocc.evaluation import tables
from deocc.evaluation.figures import png_bytes
from deocc.evaluation.results import KEYS
from deocc.files import write_file

DATA_LIMITS = {
    "OrlFaces": "The ORL database contains 40 people, grey, frontal, photographed in one laboratory. It shows that the "
    "method works; it says nothing about faces in the wild, other cameras, or fairness.",
    "LfwFaces": "Labeled Faces in the Wild contains people in the news around the year 2000, most of them adults, far "
    "more men than women, and many groups hardly or not at all. The figures say nothing about children, poor light or "
    "extreme poses, nor about fairness.",
}
"""Limits of the figures of a data set, by the name in the provenance."""

COMPARED = {
    "AllPairs": "Each clean image is a gallery face. Each probe is one of these images with a synthetic occluder, "
    "compared with all gallery faces except its own image.",
    "ListedPairs": "The pairs of a list are compared, with the first face clean and the second with a synthetic "
    "occluder, or both with occluders: of one kind, or, with mixed kinds, each with the kind that was drawn for it.",
    "OccludedPairs": "The pairs of a list are compared. Occluders are real, and their masks are predicted.",
    "Galleries": "Probes have real occluders, whose masks are predicted, and are compared with bare gallery faces. "
    "Protocol 1 has several gallery images per person, protocol 2 one.",
}
"""What was compared, by the name of the protocol."""

_OTHER_DATA = "The figures hold for this data set. They say nothing about other cameras, other people, or fairness."


def write_report(path: str | Path, results: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
    """Write the report, readable in light and dark mode.

    Args:
        path: the HTML file.
        results: result of `build_results`, in memory or read from its file.
        figures: by caption, in the order in which they are shown.
    """
    cells = {
        "Recognition": tables.setting_cells(results) if tables.is_listed(results) else tables.row_cells(results),
        "True accepts by false accept rate": tables.tar_cells(results),
        "Differences in equal error rate": tables.difference_cells(results),
        "Thresholds": tables.threshold_cells(results),
        "By kind of occluder": tables.kind_cells(results),
        "By coverage: equal error rate in %": tables.coverage_cells(results),
        "Restoration": tables.restoration_cells(results),
    }
    trained, tested = results.get("trained_on"), results.get("data")
    other_set = f"Trained on {trained}, tested on {tested}: people may be in both unless they were excluded."
    source = files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(source).render(
        results=results,
        tables={caption: table for caption, table in cells.items() if table[1]},
        figures={caption: base64.b64encode(png_bytes(figure)).decode() for caption, figure in figures.items()},
        provenance={key: value for key, value in results.items() if key not in KEYS},
        compared=COMPARED.get(str(results.get("protocol")), ""),
        trained_elsewhere=other_set if trained and trained != tested else "",
        limit=DATA_LIMITS.get(str(tested), _OTHER_DATA),
    )
    write_file(Path(path), text)
