"""The results as tables: for the terminal, for a README, and cell by cell for the report. Rates are in percent."""

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
"""The header and the rows."""

MISSING = "n/a"
"""Stands where there is no number: the column does not apply, or there are too few pairs or images to measure it."""

_COLUMNS = {"eer": "EER %", "auc": "AUC %", "rank1": "rank-1 %", "tar@1e-2": "TAR@1e-2 %", "tar@1e-3": "TAR@1e-3 %"}
_PERCEPTUAL = {
    "perceptual": "LPIPS form",
    "perceptual_covered": "LPIPS form covered",
    "frechet": "FID form",
    "kernel": "KID form",
}
_RESTORATION = {"psnr": "PSNR dB", "ssim": "SSIM", "psnr_covered": "PSNR covered dB", "ssim_covered": "SSIM covered"}


def row_cells(results: Mapping[str, Any]) -> Cells:
    """Every row by its title: the figures against the clean gallery, rank-1 by each named gallery, the masked-masked EER."""
    columns = _COLUMNS | {column: f"rank-1 % {column.removeprefix('rank1_')}" for column in _galleries(results)}
    body = [
        [
            ROWS[name],
            *[percent(row.get(column)) for column in columns],
            percent(row.get("masked_masked", {}).get("eer")),
        ]
        for name, row in results["rows"].items()
    ]
    return ["", *columns.values(), "masked-masked EER %"], body


def setting_cells(results: Mapping[str, Any]) -> Cells:
    """Of a test on listed pairs: every row in each setting, clean-clean, clean-masked and masked-masked, with the accuracy over folds."""
    body = [
        [ROWS[name], setting, _accuracy(scores), percent(scores["eer"]), percent(scores["auc"])]
        + [_share_or_lack(scores["tar_intervals"][rate]) for rate in FALSE_ACCEPT_RATES]
        for name, setting, scores in _settings(results)
    ]
    return [
        "",
        "setting",
        "accuracy % ± standard error",
        "EER %",
        "AUC %",
        *[f"TAR@{rate} %" for rate in FALSE_ACCEPT_RATES],
    ], body


def tar_cells(results: Mapping[str, Any]) -> Cells:
    """TAR at each FAR with its 95 % interval, or why there is none."""
    body = [
        [ROWS[name], setting, *[_rate(scores["tar_intervals"][rate]) for rate in FALSE_ACCEPT_RATES]]
        for name, setting, scores in _settings(results)
    ]
    return ["", "setting", *[f"TAR@{rate} %" for rate in FALSE_ACCEPT_RATES]], body


def coverage_cells(results: Mapping[str, Any]) -> Cells:
    """EER by how much of the crop is covered, a column a row of the comparison."""
    seen = {name for part in results.get("per_coverage", []) for name in part["rows"]}
    names = [name for name in ROWS if name in seen]
    body = [
        [
            f"{percent(part['low'])} to {percent(part['high'])}",
            *[percent(part["rows"].get(name, {}).get("eer")) for name in names],
        ]
        for part in results.get("per_coverage", [])
    ]
    return ["covered % of the crop", *[ROWS[name] for name in names]], body


def difference_cells(results: Mapping[str, Any]) -> Cells:
    """Every difference in EER, in percentage points, with its 95 % interval."""
    body = [
        [
            f"{ROWS[first]} minus {ROWS[second]}",
            points(interval["estimate"]),
            f"{points(interval['low'])} to {points(interval['high'])}",
        ]
        for name, (first, second) in DIFFERENCES.items()
        if name in results
        for interval in [results[name]["eer"]]
    ]
    return ["", "EER, points", "95 % interval"], body


def kind_cells(results: Mapping[str, Any]) -> Cells:
    """EER by kind of occluder, a column a row of the comparison; then rank-1 by each named gallery."""
    names = [name for name in results["rows"] if name not in CLEAN_ROWS]
    figures = {"eer": "EER %", **{name: f"rank-1 % {name.removeprefix('rank1_')}" for name in _galleries(results)}}
    body = [
        [f"{kind}, {title}", *[percent(part["rows"].get(name, {}).get(figure)) for name in names]]
        for figure, title in figures.items()
        for kind, part in results["per_kind"].items()
    ]
    return ["", *[ROWS[name] for name in names]], body


def restoration_cells(results: Mapping[str, Any]) -> Cells:
    """Restoration by source of the mask: all kinds together, then each."""
    seen = {column for sources in results["restoration"].values() for column in sources}
    columns = _RESTORATION | {column: title for column, title in _PERCEPTUAL.items() if column in seen}
    groups = {"all kinds": results["restoration"]} | {
        kind: part["restoration"] for kind, part in results["per_kind"].items()
    }
    body = [
        [f"{kind}, {source.replace('_', ' ')}", *[_restored(column, scores.get(column)) for column in columns]]
        for kind, sources in groups.items()
        for source, scores in sources.items()
    ]
    return ["", *columns.values()], body


def threshold_cells(results: Mapping[str, Any]) -> Cells:
    """Every verification threshold with its error rates on validation and on test people."""
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
    """Rows, differences and restoration as aligned plain text, for the terminal."""
    return "\n".join(_aligned(cells) for cells in _summary(results))


def markdown_table(results: Mapping[str, Any]) -> str:
    """Rows, differences and restoration as Markdown tables."""
    return "\n".join(markdown_cells(cells) for cells in _summary(results))


def _summary(results: Mapping[str, Any]) -> list[Cells]:
    """The tables that have rows; restoration over all kinds only."""
    restoration = restoration_cells({"restoration": results["restoration"], "per_kind": {}})
    recognition = setting_cells(results) if is_listed(results) else row_cells(results)
    return [cells for cells in (recognition, difference_cells(results), restoration) if cells[1]]


def _rate_cells(rates: Mapping[str, Any] | None) -> list[str]:
    """Of one group of people; rates are shares in [0, 1]."""
    if rates is None:
        return [MISSING] * 4
    accepted = f"{100 * rates['false_accept_rate']:.3g}"
    if rates.get("interval"):
        low, high = rates["interval"]
        accepted += f" ({100 * low:.3g} to {100 * high:.3g})"
    pairs = f"{rates['genuine']:,}, {rates['impostor']:,}"
    return [accepted, percent(rates["false_reject_rate"]), pairs, str(rates["people"])]


def is_listed(results: Mapping[str, Any]) -> bool:
    """Whether the test compared listed pairs, in folds."""
    return any("accuracy" in row for row in results["rows"].values())


def _galleries(results: Mapping[str, Any]) -> list[str]:
    """The figures `rank1_NAME` of the galleries that the protocol names."""
    return sorted({column for row in results["rows"].values() for column in row if column.startswith("rank1_")})


def _settings(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Row, setting and scores."""
    for name, row in results["rows"].items():
        shown = "completed" if "completed" in name else "masked"  # what a student is shown is a setting of its run
        yield name, "clean-clean" if name in CLEAN_ROWS else f"clean-{shown}", row
        if row.get("masked_masked"):
            yield name, f"{shown}-{shown}", row["masked_masked"]


def _accuracy(scores: Mapping[str, Any]) -> str:
    accuracy = scores.get("accuracy", {})
    mean, error = accuracy.get("mean"), accuracy.get("standard_error")
    return MISSING if _unknown(mean) else f"{percent(mean)} ± {percent(error)}"


def _share_or_lack(interval: Mapping[str, Any]) -> str:
    """The rate, or what the pairs lack to support one."""
    return str(interval["reason"]).partition(":")[0] if _unknown(interval["tar"]) else percent(interval["tar"])


def _rate(interval: Mapping[str, Any]) -> str:
    if _unknown(interval["tar"]):
        return str(interval["reason"])
    return f"{percent(interval['tar'])} ({percent(interval['low'])} to {percent(interval['high'])})"


def flat_scores(scores: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The plain numbers of one row or mean, named `prefix/name`, for a logger; of an accuracy over folds its mean."""
    plain = {**scores, "accuracy": scores["accuracy"]["mean"]} if "accuracy" in scores else scores
    return {f"{prefix}/{name}": float(value) for name, value in plain.items() if isinstance(value, int | float)}


def percent(value: float | None) -> str:
    """A rate in percent, two decimals."""
    return number(None if value is None else 100 * value, 2)


def points(value: float | None) -> str:
    """A difference of rates in percentage points, with its sign."""
    return MISSING if _unknown(value) else f"{100 * value:+.2f}"  # type: ignore[operator]  # _unknown covers None


def number(value: float | None, decimals: int) -> str:
    """A number, or `MISSING`."""
    return MISSING if _unknown(value) else f"{value:.{decimals}f}"


def _restored(column: str, value: float | None) -> str:
    """A figure of the restoration; those of a network's features may be small or large."""
    if column in _PERCEPTUAL:
        return MISSING if _unknown(value) else f"{value:.4g}"
    return number(value, 3 if "ssim" in column else 2)


def _unknown(value: float | None) -> bool:
    """Whether there is no number: NaN in memory, None once read from a file."""
    return value is None or not math.isfinite(value)


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


def markdown_cells(cells: Cells) -> str:
    """One table in Markdown."""
    header, body = cells
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ruler, *body))
