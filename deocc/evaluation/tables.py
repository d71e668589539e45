"""Results as tables for the terminal, Markdown and the report. Rates are in percent."""

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from deocc.evaluation.results import CLEAN_ROWS, DIFFERENCES, ROWS
from deocc.evaluation.verification import FALSE_ACCEPT_RATES

Cells = tuple[list[str], list[list[str]]]
"""Header and rows of a table."""

MISSING = "n/a"
"""Shown if a column does not apply, or there are too few pairs or images."""

_COLUMNS = {"eer": "EER %", "auc": "AUC %", "rank1": "rank-1 %", "tar@1e-2": "TAR@1e-2 %", "tar@1e-3": "TAR@1e-3 %"}
_PERCEPTUAL = {
    "perceptual": "LPIPS form",
    "perceptual_covered": "LPIPS form covered",
    "frechet": "FID form",
    "kernel": "KID form",
}
_RESTORATION = {"psnr": "PSNR dB", "ssim": "SSIM", "psnr_covered": "PSNR covered dB", "ssim_covered": "SSIM covered"}
_NO_PAIRS = {"same": 0, "different": 0}
_TAR_TITLES = [f"TAR@{rate} %" for rate in FALSE_ACCEPT_RATES]


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
        mean, error = accuracy.get("mean"), accuracy.get("standard_error")
        cells = [ROWS[name], setting, MISSING if _unknown(mean) else f"{percent(mean)} ± {percent(error)}"]
        cells += [percent(scores["eer"]), percent(scores["auc"])]
        for rate in FALSE_ACCEPT_RATES:
            interval = scores["tar_intervals"][rate]
            lacking = _unknown(interval["tar"])
            cells.append(str(interval["reason"]).partition(":")[0] if lacking else percent(interval["tar"]))
        body.append(cells)
    return ["", "setting", "accuracy % ± standard error", "EER %", "AUC %", *_TAR_TITLES], body


def tar_cells(results: Mapping[str, Any]) -> Cells:
    """Build the table of TAR at each FAR with its 95 % interval, or the reason why there is none."""
    body = []
    for name, setting, scores in _settings(results):
        cells = [ROWS[name], setting]
        for rate in FALSE_ACCEPT_RATES:
            interval = scores["tar_intervals"][rate]
            if _unknown(interval["tar"]):
                cells.append(str(interval["reason"]))
            else:
                cells.append(f"{percent(interval['tar'])} ({percent(interval['low'])} to {percent(interval['high'])})")
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
            figures = [_restored(column, scores.get(column)) for column in columns]
            body.append([f"{kind}, {source.replace('_', ' ')}", *figures])
    return ["", *columns.values()], body


def threshold_cells(results: Mapping[str, Any]) -> Cells:
    """Build the table of verification thresholds with their error rates on validation and on test people."""
    measured = ("FAR % (95 %)", "FRR %", "pairs of one, of two", "people")
    header = ["condition", "target FAR %", "same from", "different below"]
    header += [f"{group} {name}" for group in ("validation", "test") for name in measured]
    body = []
    for condition, row in results.get("thresholds", {}).get("thresholds", {}).items():
        for entry in row:
            limits = [condition, f"{100 * entry['target']:g}", number(entry["same"], 3), number(entry["different"], 3)]
            body.append([*limits, *_rate_cells(entry["validation"]), *_rate_cells(entry["test"])])
    return header, body


def summary_table(results: Mapping[str, Any]) -> str:
    """Format rows, differences and restoration as aligned plain text, and the reasons for missing figures."""
    return "\n".join([*(_aligned(cells) for cells in _summary(results)), *missing_reasons(results)])


def missing_reasons(results: Mapping[str, Any]) -> list[str]:
    """Return a line for each reason why figures are `MISSING`; the table of settings itself has those of the TAR."""
    lines: dict[str, None] = {}
    for _, setting, scores in _settings(results):
        for name, people in {"same": "one person", "different": "two people"}.items():
            if scores.get("pairs", {}).get(name) == 0:
                lines[f"{MISSING}: {setting} has no pairs of {people}"] = None
        if is_listed(results) or not setting.startswith("clean"):
            continue
        for rate, interval in scores["tar_intervals"].items():
            if f"tar@{rate}" in _COLUMNS and "reason" in interval:
                lines[f"{MISSING}: {setting}, TAR@{rate}: {interval['reason']}"] = None
    return list(lines)


def markdown_table(results: Mapping[str, Any]) -> str:
    """Format rows, differences and restoration as Markdown tables."""
    return "\n".join(markdown_cells(cells) for cells in _summary(results))


def markdown_cells(cells: Cells) -> str:
    """Format a table as Markdown."""
    header, body = cells
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ruler, *body))


def is_listed(results: Mapping[str, Any]) -> bool:
    """Return whether the test compared listed pairs, in folds."""
    return any("accuracy" in row for row in results["rows"].values())


def flat_scores(scores: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return the numbers of a row as `prefix/name`, for a logger; an accuracy over folds is represented by its mean."""
    plain = {**scores, "accuracy": scores["accuracy"]["mean"]} if "accuracy" in scores else scores
    return {f"{prefix}/{name}": float(value) for name, value in plain.items() if isinstance(value, int | float)}


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


def _summary(results: Mapping[str, Any]) -> list[Cells]:
    """Return the tables that are not empty; restoration over all kinds only."""
    restoration = restoration_cells({"restoration": results["restoration"], "per_kind": {}})
    recognition = setting_cells(results) if is_listed(results) else row_cells(results)
    return [cells for cells in (recognition, difference_cells(results), restoration) if cells[1]]


def _rate_cells(rates: Mapping[str, Any] | None) -> list[str]:
    if rates is None:
        return [MISSING] * 4
    accepted = f"{100 * rates['false_accept_rate']:.3g}"
    if rates.get("interval"):
        low, high = rates["interval"]
        accepted += f" ({100 * low:.3g} to {100 * high:.3g})"
    pairs = f"{rates['genuine']:,}, {rates['impostor']:,}"
    return [accepted, percent(rates["false_reject_rate"]), pairs, str(rates["people"])]


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
            if scores and scores.get("pairs") != _NO_PAIRS:
                yield name, setting, scores


def _restored(column: str, value: float | None) -> str:
    if column in _PERCEPTUAL:  # features of a network may be of any magnitude
        return MISSING if _unknown(value) else f"{value:.4g}"
    return number(value, 3 if "ssim" in column else 2)


def _aligned(cells: Cells) -> str:
    header, body = cells
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, title in enumerate(header):
        table.add_column(title, justify="left" if position == 0 else "right", no_wrap=True)
    for row in body:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=500, color_system=None, markup=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
