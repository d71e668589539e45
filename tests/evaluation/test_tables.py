"""Tables of results made by hand, cell by cell."""

import copy
import math
from typing import Any

import pytest

from deocc.evaluation.tables import (
    coverage_cells,
    flat_scores,
    is_listed,
    kind_cells,
    markdown_table,
    number,
    percent,
    points,
    restoration_cells,
    setting_cells,
    tar_cells,
    threshold_cells,
)

RATE, LACK = {"tar": 0.5, "low": 0.25, "high": 0.75}, {"tar": math.nan, "reason": "not enough negatives: 4, 10 needed"}
TAR = {"1e-1": RATE, "1e-2": LACK, "1e-3": LACK, "1e-4": LACK}
PAIRS = {"eer": 0.125, "auc": 0.9, "tar_intervals": TAR}
CLEAN = {**PAIRS, "rank1": 1.0, "tar@1e-2": 0.75, "tar@1e-3": math.nan}
MASKED = {**CLEAN, "rank1": 0.5, "masked_masked": {**PAIRS, "eer": 0.25}}
RESULTS: dict[str, Any] = {
    "rows": {"teacher_clean": CLEAN, "teacher_completed": MASKED, "student": MASKED},
    "student_minus_teacher_completed": {"eer": {"estimate": -0.05, "low": -0.075, "high": 0.01}},
    "restoration": {
        "given_mask": {
            "psnr": 25.126,
            "ssim": 0.8126,
            "psnr_covered": 18.0,
            "ssim_covered": None,
            "kernel": 0.000123456,
        }
    },
    "per_kind": {
        "cloth": {"rows": {"student": {"eer": 0.2, "rank1": 0.6}}, "restoration": {"predicted_mask": {"psnr": 20.0}}}
    },
    "per_coverage": [{"low": 0.1, "high": 0.2, "rows": {"student": {"eer": 0.3}}}],
}


def test_the_tables_of_a_test_in_markdown() -> None:
    assert markdown_table(RESULTS) == (
        "|  | EER % | AUC % | rank-1 % | TAR@1e-2 % | TAR@1e-3 % | masked-masked EER % |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| teacher, clean | 12.50 | 90.00 | 100.00 | 75.00 | n/a | n/a |\n"
        "| teacher, completed | 12.50 | 90.00 | 50.00 | 75.00 | n/a | 25.00 |\n"
        "| student (given mask) | 12.50 | 90.00 | 50.00 | 75.00 | n/a | 25.00 |\n"
        "\n"
        "|  | EER, points | 95 % interval |\n"
        "| --- | ---: | ---: |\n"
        "| student (given mask) minus teacher, completed | -5.00 | -7.50 to +1.00 |\n"
        "\n"
        "|  | PSNR dB | SSIM | PSNR covered dB | SSIM covered | KID form |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| all kinds, given mask | 25.13 | 0.813 | 18.00 | n/a | 0.0001235 |\n"
    )


def test_thresholds_are_shown_with_their_rates_and_intervals() -> None:
    validation = {
        "false_accept_rate": 0.00098,
        "false_reject_rate": 0.125,
        "genuine": 1234,
        "impostor": 1_000_000,
        "people": 300,
    }
    test = {**validation, "false_accept_rate": 0.0012, "interval": [0.00075, 0.0021], "people": 2086}
    row = [{"target": 0.001, "same": 0.5, "different": 0.25, "validation": validation, "test": test}]
    row += [{**row[0], "target": 0.0001, "test": None}]
    header, body = threshold_cells({"thresholds": {"thresholds": {"clean-clean": row, "masked-masked": []}}})
    assert len(header) == 12 and [len(cells) for cells in body] == [12, 12]
    pairs = "1,234, 1,000,000"
    assert body[0][:8] == ["clean-clean", "0.1", "0.500", "0.250", "0.098", "12.50", pairs, "300"]
    assert body[0][8:] == ["0.12 (0.075 to 0.21)", "12.50", pairs, "2086"]
    assert body[1][1] == "0.01" and body[1][8:] == ["n/a"] * 4
    assert threshold_cells(RESULTS)[1] == []


def test_the_rates_name_their_setting_and_what_they_lack() -> None:
    header, body = tar_cells(RESULTS)
    assert header == ["", "setting", "TAR@1e-1 %", "TAR@1e-2 %", "TAR@1e-3 %", "TAR@1e-4 %"]
    assert [row[:2] for row in body] == [
        ["teacher, clean", "clean-clean"],
        ["teacher, completed", "clean-completed"],
        ["teacher, completed", "completed-completed"],
        ["student (given mask)", "clean-masked"],
        ["student (given mask)", "masked-masked"],
    ]
    assert all(row[2:] == ["50.00 (25.00 to 75.00)", *[LACK["reason"]] * 3] for row in body)


def test_listed_pairs_show_their_accuracy() -> None:
    listed = copy.deepcopy(RESULTS)
    listed["rows"] = {"student": {**PAIRS, "accuracy": {"mean": 0.9, "standard_error": 0.01}}}
    assert is_listed(listed) and not is_listed(RESULTS)
    header, body = setting_cells(listed)
    assert header[:5] == ["", "setting", "accuracy % ± standard error", "EER %", "AUC %"]
    assert body == [
        [
            "student (given mask)",
            "clean-masked",
            "90.00 ± 1.00",
            "12.50",
            "90.00",
            "50.00",
            *["not enough negatives"] * 3,
        ]
    ]
    listed["rows"]["student"]["accuracy"]["mean"] = None
    assert setting_cells(listed)[1][0][2] == "n/a"
    assert "accuracy %" in markdown_table(listed).splitlines()[0]


def test_kinds_and_coverages_have_a_column_for_each_masked_row() -> None:
    assert kind_cells(RESULTS) == (
        ["", "teacher, completed", "student (given mask)"],
        [["cloth, EER %", "n/a", "20.00"]],
    )
    galleries = copy.deepcopy(RESULTS)
    galleries["rows"]["student"]["rank1_protocol1"] = 0.75
    galleries["per_kind"]["cloth"]["rows"]["student"]["rank1_protocol1"] = 0.6
    assert kind_cells(galleries)[1][1] == ["cloth, rank-1 % protocol1", "n/a", "60.00"]
    assert coverage_cells(RESULTS) == (["covered % of the crop", "student (given mask)"], [["10.00 to 20.00", "30.00"]])
    assert coverage_cells({}) == (["covered % of the crop"], [])


def test_restoration_by_kind_follows_that_of_all() -> None:
    assert [row[:2] for row in restoration_cells(RESULTS)[1]] == [
        ["all kinds, given mask", "25.13"],
        ["cloth, predicted mask", "20.00"],
    ]


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_what_is_no_number_is_not_available(missing: float | None) -> None:
    assert percent(missing) == points(missing) == number(missing, 2) == "n/a"


def test_flat_scores_are_the_plain_numbers_under_a_prefix() -> None:
    scores = {**PAIRS, "people": 3, "accuracy": {"mean": 0.9, "standard_error": 0.01}}
    assert flat_scores(scores, "test/student") == {
        "test/student/eer": 0.125,
        "test/student/auc": 0.9,
        "test/student/people": 3.0,
        "test/student/accuracy": 0.9,
    }
    assert flat_scores(PAIRS, "x") == {"x/eer": 0.125, "x/auc": 0.9}
