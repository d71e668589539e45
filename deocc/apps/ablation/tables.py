"""The ablation as tables and sentences. Every sentence follows from the numbers."""

import statistics
from collections.abc import Mapping
from typing import Any

from deocc.evaluation.tables import MISSING, Cells, markdown_cells, percent, points

_COLUMNS = {
    "eer": "EER %",
    "eer_predicted_mask": "EER %, predicted mask",
    "accuracy": "accuracy %",
    "rank1": "rank-1 %",
    "auc": "AUC %",
    "tar@1e-2": "TAR@1e-2 %",
}

NOTES = (
    "EER: the rate at which false accepts equal false rejects; lower is better. Accuracy: the mean of the rates of true accepts and true "
    "rejects at the threshold of equal error of all other folds. Rank-1: the nearest of one clean image a person is the right one. "
    "TAR@1e-2: true accepts where 1 % of the pairs of different people are accepted. n/a: does not apply, or is not known.",
    "The interval is the 95 % range of a paired bootstrap over people within each fold. McNemar's test counts the decisions that only one "
    "of the two got right. It takes pairs for independent, but many pairs share one person, so its p-value tends to be too small: the "
    "interval is the one to trust.",
)
"""Below the rows, and below the comparisons."""


def row_cells(summary: Mapping[str, Any]) -> Cells:
    """The rows by letter and title, each figure as mean ± standard deviation over folds and seeds."""
    body = [
        [f"({letter}) {row['title']}", *([_figure(row, name) for name in _COLUMNS] if "figures" in row else _unfinished(row))]
        for letter, row in summary["rows"].items()
    ]
    return ["", *_COLUMNS.values()], body


def comparison_cells(summary: Mapping[str, Any]) -> Cells:
    """The differences in EER with their intervals, what they allow to say, and McNemar's test."""
    header = ["", "EER, points", "95 % interval", "the first is", "right: first only", "second only", "McNemar p"]
    return header, [[f"{pair['first']} - {pair['second']}", *_difference(pair)] for pair in summary["comparisons"]]


def conclusions(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers allow to conclude, a sentence or two each."""
    known = [pair for pair in summary["comparisons"] if "eer" in pair]
    lines = [_sentence(summary, pair) for pair in known]
    return [*lines, *_limits(summary, known)] if known else ["No comparison is complete, so nothing can be concluded."]


def markdown(summary: Mapping[str, Any]) -> str:
    """Both tables with their notes and the conclusions."""
    rows, pairs = (markdown_cells(cells) for cells in (row_cells(summary), comparison_cells(summary)))
    bullets = "".join(f"- {line}\n" for line in conclusions(summary))
    return f"{introduction(summary)}\n\n{rows}\n{NOTES[0]}\n\n{pairs}\n{NOTES[1]}\n\n{bullets}"


def introduction(summary: Mapping[str, Any]) -> str:
    """What was tested how often."""
    seeds = ", ".join(str(seed) for seed in summary["seeds"])
    split = "the split of the face set" if summary["folds"] is None else f"{summary['folds']} folds over people, each person tested once"
    count = "one seed" if len(summary["seeds"]) == 1 else f"{len(summary['seeds'])} seeds"
    return f"{summary['people']} people of {summary['data'] or 'no data'}, {split}, {count} ({seeds}); mean ± standard deviation over runs."


def _figure(row: Mapping[str, Any], name: str) -> str:
    figure = row["figures"][name]
    return percent(figure["mean"]) + ("" if figure["deviation"] is None else f" ± {percent(figure['deviation'])}")


def _unfinished(entry: Mapping[str, Any], cells: int = len(_COLUMNS)) -> list[str]:
    reason = f"{MISSING}, {entry['runs']} of {entry['of']} runs" if entry["runs"] < entry["of"] else MISSING
    return [reason, *[MISSING] * (cells - 1)]


def _difference(pair: Mapping[str, Any]) -> list[str]:
    if "eer" not in pair:
        return _unfinished(pair, 6)
    interval, test = pair["eer"], pair["mcnemar"]
    decided = [MISSING] * 3 if test is None else [str(test["first_only"]), str(test["second_only"]), f"{test['p_value']:.2g}"]
    return [points(interval["estimate"]), f"{points(interval['low'])} to {points(interval['high'])}", pair["verdict"], *decided]


def _sentence(summary: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    interval = pair["eer"]
    titles = " against ".join(f"({letter}) {summary['rows'][letter]['title']}" for letter in (pair["first"], pair["second"]))
    found = {"better": "the first is better", "worse": "the first is worse"}.get(pair["verdict"], "the two cannot be told apart")
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
        + ("each was trained once, so that is not known." if len(summary["seeds"]) == 1 else "the deviations in the table hold both."),
    ]
