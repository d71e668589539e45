"""Tables of results made by hand, cell by cell; the HTML report; figures."""

import copy
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from deocc.evaluation.figures import (
    cmc_figure,
    loss_figure,
    panel_figure,
    panel_image,
    png_bytes,
    roc_figure,
    score_histogram,
)
from deocc.evaluation.report import (
    coverage_cells,
    difference_cells,
    is_listed,
    kind_cells,
    markdown_cells,
    number,
    percent,
    points,
    restoration_cells,
    row_cells,
    setting_cells,
    summary_table,
    tar_cells,
    threshold_cells,
    write_report,
)
from deocc.evaluation.results import CLEAN_ROWS, ROWS, build_results

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


def test_markdown_tables() -> None:
    tables = (row_cells(RESULTS), difference_cells(RESULTS), restoration_cells({**RESULTS, "per_kind": {}}))
    assert "\n".join(map(markdown_cells, tables)) == (
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


def test_threshold_cells() -> None:
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


def test_tar_cells() -> None:
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


def test_setting_cells() -> None:
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
    assert "accuracy %" in summary_table(listed).splitlines()[0]


def test_kind_and_coverage_cells() -> None:
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


def test_restoration_cells() -> None:
    assert [row[:2] for row in restoration_cells(RESULTS)[1]] == [
        ["all kinds, given mask", "25.13"],
        ["cloth, predicted mask", "20.00"],
    ]


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_missing_numbers(missing: float | None) -> None:
    assert percent(missing) == points(missing) == number(missing, 2) == "n/a"


class _Links(HTMLParser):
    """Collects what a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]


def _columns() -> dict[str, torch.Tensor]:
    face = torch.full((2, 3, 16, 12), -1.0)
    face[:, 0] = 1.0  # red
    return {"clean": face, "mask": torch.ones(2, 1, 16, 12)}


@pytest.fixture
def page(make_sets, tmp_path: Path) -> str:
    """The report of a whole test."""
    gallery, masked = make_sets(3.0)
    scores = {"psnr": 25.0, "ssim": 0.8, "psnr_covered": 18.25, "ssim_covered": 0.6}
    restoration = {"given_mask": {"mean": scores, "per_kind": {0: scores}}}
    provenance: dict[str, Any] = {
        "command": "deocc test <script>alert(1)</script>",
        "data": "OrlFaces",
        "mask_seeds": [41, 42],
    }
    provenance["versions"] = {"torch": "9.9.9"}
    rows = {name: gallery if name in CLEAN_ROWS else masked for name in ROWS}
    results = build_results(rows, restoration, ["cloth", "hand"], provenance, replicates=5).content
    write_report(tmp_path / "report.html", results, {"Faces & masks": panel_figure(_columns(), ["cloth", "hand"])})
    return (tmp_path / "report.html").read_text()


def test_report_is_complete(page: str) -> None:
    for text in (*ROWS.values(), "cloth", "hand", "18.25", "torch: 9.9.9", "41, 42", "Faces &amp; masks"):
        assert text in page
    captions = (
        "Recognition",
        "True accepts by false accept rate",
        "Differences in equal error rate",
        "By kind of occluder",
        "Restoration",
    )
    assert all(caption in page for caption in captions) and "rank-1 %" in page
    assert "ORL database contains 40 people, grey, frontal" in page
    assert "prefers-color-scheme: dark" in page and "compared with all gallery faces except its own image" in page


def test_report_loads_nothing(page: str) -> None:
    links = _Links()
    links.feed(page)
    assert len(links.loaded) == 1
    assert links.loaded[0].startswith("data:image/png;base64,")
    assert not re.search(r"https?:|url\(|@import", page)


def test_report_escapes_text(page: str) -> None:
    links = _Links()
    links.feed(page)
    assert "script" not in links.tags
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(("trained", "said"), [("OtherFaces", True), ("OrlFaces", False), (None, False)])
def test_report_names_other_training_set(make_sets, tmp_path: Path, trained: str | None, said: bool) -> None:
    gallery, masked = make_sets(3.0)
    rows = {"teacher_clean": gallery, "teacher_masked": masked}
    provenance = {"data": "OrlFaces", "trained_on": trained}
    results = build_results(rows, {}, ["cloth", "hand"], provenance, replicates=1).content
    path = tmp_path / "new" / "deep" / "r.html"
    write_report(path, results, {})
    assert ("Trained on OtherFaces, tested on OrlFaces: people may be in both" in path.read_text()) == said
    write_report(path, results | {"data": None}, {})
    page = path.read_text()
    assert "ORL" not in page and "do not say" in page and "Restoration" not in page


def test_summary_is_aligned() -> None:
    table = summary_table(RESULTS)
    assert len({len(line) for line in table.split("\n\n")[0].splitlines()}) == 1
    assert all(ROWS[name] in table for name in RESULTS["rows"]) and "-7.50 to +1.00" in table


def test_panel_shows_each_pixel() -> None:
    image = panel_image(_columns(), ["cloth", "hand"])
    assert image.dtype == np.uint8
    red = (image == [255, 0, 0]).all(-1)
    assert int(red.sum()) == 2 * 16 * 12


def test_roc_figure_draws_steps() -> None:
    far, tar = (torch.tensor(rates, dtype=torch.float64) for rates in ([0, 0, 0.1, 1], [0, 0.4, 0.8, 1]))
    line = roc_figure({"a": (far, tar)}).axes[0].lines[0]
    x, y = (np.asarray(values) for values in line.get_data())
    assert set(y[x < 0.0999]) == {0.4}
    assert set(y[(x > 0.1001) & (x < 0.99)]) == {0.8}
    assert y[-1] == 1.0


def test_cmc_figure_starts_at_rank_one() -> None:
    axes = cmc_figure({"a": [0.5, 0.75, 1.0], "b": [0.25]}).axes[0]
    assert {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.lines} == {
        "a": [[1, 0.5], [2, 0.75], [3, 1]],
        "b": [[1, 0.25]],
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rank", "share of probes identified")


def test_loss_figure_pairs_stages(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,train/loss,val/loss,val/eer\n0,0,3.0,,\n0,5,2.0,,\n1,9,,2.5,0.2\n"
    )
    figure = loss_figure(tmp_path / "metrics.csv")
    drawn = {
        axes.get_title(): {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
        for axes in figure.axes
    }
    assert drawn == {"loss": {"train": [[0, 3.0], [5, 2.0]], "val": [[9, 2.5]]}, "eer": {"val": [[9, 0.2]]}}
    (tmp_path / "metrics.csv").write_text("step\n0\n")
    with pytest.raises(ValueError, match="no values"):
        loss_figure(tmp_path / "metrics.csv")


def test_histogram_is_normalised() -> None:
    axes = score_histogram(torch.linspace(-1, 1, 50), torch.arange(50) > 40).axes[0]
    areas = [sum(bar.get_width() * bar.get_height() for bar in bars) for bars in axes.containers]
    assert areas == pytest.approx([1.0, 1.0])


def test_figures_use_no_global_state() -> None:
    from matplotlib import _pylab_helpers

    figure = score_histogram(torch.linspace(-1, 1, 50), torch.arange(50) > 40)
    assert isinstance(figure, Figure)
    assert png_bytes(figure).startswith(b"\x89PNG")
    assert _pylab_helpers.Gcf.get_all_fig_managers() == []
