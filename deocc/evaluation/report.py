"""Results as tables for terminal and Markdown, in percent, and the report of a test: one self-contained HTML file."""

import base64
import io
import math
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from deocc.evaluation.figures import png_bytes
from deocc.evaluation.results import CLEAN_ROWS, DIFFERENCES, KEYS, ROWS
from deocc.evaluation.verification import FALSE_ACCEPT_RATES
from deocc.files import write_file

Cells = tuple[list[str], list[list[str]]]  # header and rows of a table

MISSING = "n/a"  # shown if a column does not apply, or there are too few pairs or images
_COLUMNS = {"eer": "EER %", "auc": "AUC %", "rank1": "rank-1 %", "tar@1e-2": "TAR@1e-2 %", "tar@1e-3": "TAR@1e-3 %"}
_PERCEPTUAL = {
    "perceptual": "LPIPS form",
    "perceptual_covered": "LPIPS form covered",
    "frechet": "FID form",
    "kernel": "KID form",
}
_RESTORATION = {"psnr": "PSNR dB", "ssim": "SSIM", "psnr_covered": "PSNR covered dB", "ssim_covered": "SSIM covered"}
_TAR_TITLES = [f"TAR@{rate} %" for rate in FALSE_ACCEPT_RATES]

# Limits of the figures of a data set, by the name in the provenance
DATA_LIMITS = {
    "OrlFaces": "The ORL database contains 40 people, grey, frontal, photographed in one laboratory. It shows that the "
    "method works; it says nothing about faces in the wild, other cameras, or fairness.",
    "LfwFaces": "Labeled Faces in the Wild contains people in the news around the year 2000, most of them adults, far "
    "more men than women, and many groups hardly or not at all. The figures say nothing about children, poor light or "
    "extreme poses, nor about fairness.",
}
_OTHER_DATA = "The figures hold for this data set. They say nothing about other cameras, other people, or fairness."


def write_report(path: str | Path, results: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
    """Write the report of `results`, in memory or read from their file, with figures by caption, in their order."""
    cells = {
        "Recognition": recognition_cells(results),
        "True accepts by false accept rate": tar_cells(results),
        "Differences in equal error rate": difference_cells(results),
        "Thresholds": threshold_cells(results),
        "By kind of occluder": kind_cells(results),
        "By coverage: equal error rate in %": coverage_cells(results),
        "Restoration": restoration_cells(results),
    }
    source = files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(source).render(
        results=results,
        tables={caption: table for caption, table in cells.items() if table[1]},
        figures={caption: base64.b64encode(png_bytes(figure)).decode() for caption, figure in figures.items()},
        provenance={key: value for key, value in results.items() if key not in KEYS},
        limit=DATA_LIMITS.get(str(results.get("data")), _OTHER_DATA),
    )
    write_file(Path(path), text)


def recognition_cells(results: Mapping[str, Any]) -> Cells:
    """Build the table of rows, or of settings if the test compared listed pairs."""
    return setting_cells(results) if is_listed(results) else row_cells(results)


def row_cells(results: Mapping[str, Any]) -> Cells:
    """Build the table of rows: figures against the clean gallery, rank-1 by gallery, masked-masked EER."""
    columns = _COLUMNS | _gallery_titles(results)
    body = []
    for name, row in results["rows"].items():
        figures = [percent(row.get(column)) for column in columns]
        body.append([ROWS[name], *figures, percent(row.get("masked_masked", {}).get("eer"))])
    return ["", *columns.values(), "masked-masked EER %"], body


def setting_cells(results: Mapping[str, Any]) -> Cells:
    """Build the table of a test on listed pairs: each row in each setting, with the accuracy over folds."""
    body = []
    for name, setting, scores in _settings(results):
        accuracy = scores.get("accuracy", {})
        mean, error = percent(accuracy.get("mean")), percent(accuracy.get("standard_error"))
        cells = [ROWS[name], setting, mean if mean == MISSING else f"{mean} ± {error}"]
        cells += [percent(scores["eer"]), percent(scores["auc"])]
        for rate in FALSE_ACCEPT_RATES:
            interval = scores["tar_intervals"][rate]
            cells.append(interval["reason"].partition(":")[0] if "reason" in interval else percent(interval["tar"]))
        body.append(cells)
    return ["", "setting", "accuracy % ± standard error", "EER %", "AUC %", *_TAR_TITLES], body


def tar_cells(results: Mapping[str, Any]) -> Cells:
    """Build the table of TAR at each FAR with its 95 % interval, or the reason why there is none."""
    body = []
    for name, setting, scores in _settings(results):
        cells = [ROWS[name], setting]
        for rate in FALSE_ACCEPT_RATES:
            interval = scores["tar_intervals"][rate]
            limits = f"({percent(interval.get('low'))} to {percent(interval.get('high'))})"
            cells.append(interval["reason"] if "reason" in interval else f"{percent(interval['tar'])} {limits}")
        body.append(cells)
    return ["", "setting", *_TAR_TITLES], body


def coverage_cells(results: Mapping[str, Any]) -> Cells:
    """Build the table of the EER by covered share of the crop, one column per row of the comparison."""
    parts = results.get("per_coverage", [])
    names = [name for name in ROWS if any(name in part["rows"] for part in parts)]
    body = []
    for part in parts:
        errors = [percent(part["rows"].get(name, {}).get("eer")) for name in names]
        body.append([f"{percent(part['low'])} to {percent(part['high'])}", *errors])
    return ["covered % of the crop", *[ROWS[name] for name in names]], body


def difference_cells(results: Mapping[str, Any]) -> Cells:
    """Build the table of differences in EER, in percentage points, with 95 % intervals."""
    body = []
    for name, (first, second) in DIFFERENCES.items():
        if name in results:
            interval = results[name]["eer"]
            limits = f"{points(interval['low'])} to {points(interval['high'])}"
            body.append([f"{ROWS[first]} minus {ROWS[second]}", points(interval["estimate"]), limits])
    return ["", "EER, points", "95 % interval"], body


def kind_cells(results: Mapping[str, Any]) -> Cells:
    """Build the table of the EER, then rank-1 by gallery, per kind of occluder."""
    names = [name for name in results["rows"] if name not in CLEAN_ROWS]
    body = []
    for figure, title in ({"eer": "EER %"} | _gallery_titles(results)).items():
        for kind, part in results["per_kind"].items():
            body.append([f"{kind}, {title}", *[percent(part["rows"].get(name, {}).get(figure)) for name in names]])
    return ["", *[ROWS[name] for name in names]], body


def restoration_cells(results: Mapping[str, Any]) -> Cells:
    """Build the table of the restoration by source of the mask, for all kinds together and for each."""
    seen = {column for sources in results["restoration"].values() for column in sources}
    columns = _RESTORATION | {column: title for column, title in _PERCEPTUAL.items() if column in seen}
    groups = {"all kinds": results["restoration"]}
    groups |= {kind: part["restoration"] for kind, part in results["per_kind"].items()}
    body = []
    for kind, sources in groups.items():
        for source, scores in sources.items():
            cells = [f"{kind}, {source.replace('_', ' ')}"]
            for column in columns:
                value = scores.get(column)
                if column in _PERCEPTUAL:  # features of a network may be of any magnitude
                    cells.append(MISSING if _unknown(value) else f"{value:.4g}")
                else:
                    cells.append(number(value, 3 if "ssim" in column else 2))
            body.append(cells)
    return ["", *columns.values()], body


def threshold_cells(results: Mapping[str, Any]) -> Cells:
    """Build the table of verification thresholds with their error rates on validation and on test people."""
    measured = ("FAR % (95 %)", "FRR %", "pairs of one, of two", "people")
    header = ["condition", "target FAR %", "same from", "different below"]
    header += [f"{group} {name}" for group in ("validation", "test") for name in measured]
    body = []
    for condition, row in results.get("thresholds", {}).get("thresholds", {}).items():
        for entry in row:
            cells = [condition, f"{100 * entry['target']:g}", number(entry["same"], 3), number(entry["different"], 3)]
            for rates in (entry["validation"], entry["test"]):
                if rates is None:
                    cells += [MISSING] * 4
                    continue
                accepted = f"{100 * rates['false_accept_rate']:.3g}"
                if rates.get("interval"):
                    low, high = rates["interval"]
                    accepted += f" ({100 * low:.3g} to {100 * high:.3g})"
                pairs = f"{rates['genuine']:,}, {rates['impostor']:,}"
                cells += [accepted, percent(rates["false_reject_rate"]), pairs, str(rates["people"])]
            body.append(cells)
    return header, body


def summary_table(results: Mapping[str, Any]) -> str:
    """Format rows, differences and restoration as aligned plain text, and the reasons for missing figures."""
    restoration = restoration_cells({"restoration": results["restoration"], "per_kind": {}})
    lines = []
    for header, body in (recognition_cells(results), difference_cells(results), restoration):
        if not body:
            continue
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for position, title in enumerate(header):
            table.add_column(title, justify="left" if position == 0 else "right", no_wrap=True)
        for row in body:
            table.add_row(*row)
        text = io.StringIO()
        Console(file=text, width=500, color_system=None, markup=False).print(table)
        lines += [*(line.rstrip() for line in text.getvalue().splitlines()), ""]
    reasons: dict[str, None] = {}  # in order, each once; the table of settings itself has those of the TAR
    for _, setting, scores in _settings(results):
        for name, people in {"same": "one person", "different": "two people"}.items():
            if scores.get("pairs", {}).get(name) == 0:
                reasons[f"{MISSING}: {setting} has no pairs of {people}"] = None
        if is_listed(results) or not setting.startswith("clean"):
            continue
        for rate, interval in scores["tar_intervals"].items():
            if f"tar@{rate}" in _COLUMNS and "reason" in interval:
                reasons[f"{MISSING}: {setting}, TAR@{rate}: {interval['reason']}"] = None
    return "\n".join([*lines, *reasons])


def markdown_cells(cells: Cells) -> str:
    """Format a table as Markdown."""
    header, body = cells
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ruler, *body))


def is_listed(results: Mapping[str, Any]) -> bool:
    """Return whether the test compared listed pairs, in folds."""
    return any("accuracy" in row for row in results["rows"].values())


def percent(value: float | None) -> str:
    """Format a rate in percent with two decimals."""
    return number(None if value is None else 100 * value, 2)


def points(value: float | None) -> str:
    """Format a difference of rates in percentage points, with its sign."""
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:+.2f}"


def number(value: float | None, decimals: int) -> str:
    """Format a number, or return `MISSING`."""
    return MISSING if _unknown(value) else f"{value:.{decimals}f}"


def _unknown(value: float | None) -> bool:
    return value is None or not math.isfinite(value)  # NaN in memory, None in a file


def _gallery_titles(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the titles of the figures `rank1_NAME` of the galleries that the protocol names."""
    columns = sorted({column for row in results["rows"].values() for column in row if column.startswith("rank1_")})
    return {column: f"rank-1 % {column.removeprefix('rank1_')}" for column in columns}


def _settings(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield row, setting and scores of the settings in which the test has pairs."""
    for name, row in results["rows"].items():
        probe = "completed" if "completed" in name else "masked"  # the input of the student is a setting of its run
        settings = {"clean-clean" if name in CLEAN_ROWS else f"clean-{probe}": row}
        settings[f"{probe}-{probe}"] = row.get("masked_masked", {})
        for setting, scores in settings.items():
            if scores and scores.get("pairs") != {"same": 0, "different": 0}:
                yield name, setting, scores
