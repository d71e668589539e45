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
    shown = "" if seeds == 1 else f" Of the {seeds} seeds the one with the largest p-value is shown, and named beside it."
    return (
        f"The interval is the 95 % range of a paired bootstrap over {people}{ends}. McNemar's test counts the decisions that only one of "
        f"the two got right.{shown} It takes pairs for independent, but many pairs share one person, so its p-value tends to be too small: "
        "the interval is the one to trust."
    )


def row_cells(summary: Mapping[str, Any]) -> Cells:
    """The rows by letter and title, each figure as mean ± standard deviation over folds and seeds."""
    body = [
        [f"({letter}) {row['title']}", *([_figure(row, name) for name in _COLUMNS] if "figures" in row else _unfinished(row))]
        for letter, row in summary["rows"].items()
    ]
    return ["", *column_titles(summary).values()], body


def comparison_cells(summary: Mapping[str, Any]) -> Cells:
    """The differences in EER with their intervals, what they allow to say, and McNemar's test."""
    header = ["", "EER, points", "95 % interval", "the first is", "right: first only", "second only", "McNemar p"]
    name_seed = len(summary["seeds"]) > 1
    return header, [[f"{pair['first']} - {pair['second']}", *_difference(pair, name_seed)] for pair in summary["comparisons"]]


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
