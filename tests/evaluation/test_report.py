import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.figures import (
    cmc_figure,
    loss_figure,
    panel_figure,
    panel_image,
    png_bytes,
    roc_figure,
    score_histogram,
)
from deocc.evaluation.report import write_report
from deocc.evaluation.results import CLEAN_ROWS, ROWS, build_results


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
    probes = dict.fromkeys([name for name in ROWS if name not in CLEAN_ROWS], masked)
    restoration = {"given_mask": {"mean": scores, "per_kind": {0: scores}}}
    provenance = {
        "command": "deocc test <script>alert(1)</script>",
        "data": "OrlFaces",
        "versions": {"torch": "9.9.9"},
        "mask_seeds": [41, 42],
    }
    galleries = {"teacher": gallery, "student": gallery}
    results = build_results(
        gallery,
        gallery,
        probes,
        restoration,
        ["cloth", "hand"],
        provenance,
        replicates=5,
        predicted_mask_galleries=galleries,
    )
    write_report(tmp_path / "report.html", results, {"Faces & masks": panel_figure(_columns(), ["cloth", "hand"])})
    return (tmp_path / "report.html").read_text()


def test_report_holds_every_row_kind_and_source(page: str) -> None:
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


def test_report_loads_nothing_from_outside(page: str) -> None:
    links = _Links()
    links.feed(page)
    assert len(links.loaded) == 1
    assert links.loaded[0].startswith("data:image/png;base64,")
    assert not re.search(r"https?:|url\(|@import", page)


def test_report_escapes_what_it_shows(page: str) -> None:
    links = _Links()
    links.feed(page)
    assert "script" not in links.tags
    assert "&lt;script&gt;" in page


def test_report_of_other_data_does_not_speak_of_orl(make_sets, tmp_path: Path) -> None:
    gallery, masked = make_sets(3.0)
    write_report(
        tmp_path / "r.html", build_results(gallery, None, {"teacher_masked": masked}, {}, ["cloth", "hand"], {}), {}
    )
    page = (tmp_path / "r.html").read_text()
    assert "ORL" not in page
    assert "do not say" in page
    assert "Restoration" not in page


@pytest.mark.parametrize(("trained", "said"), [("OtherFaces", True), ("OrlFaces", False), (None, False)])
def test_report_says_when_the_test_set_is_not_the_training_set(
    make_sets, tmp_path: Path, trained: str | None, said: bool
) -> None:
    provenance = {"data": "OrlFaces", "trained_on": trained}
    write_report(
        tmp_path / "new" / "deep" / "r.html", build_results(*_one_row(make_sets), {}, ["cloth", "hand"], provenance), {}
    )
    page = (tmp_path / "new" / "deep" / "r.html").read_text()
    assert ("Trained on OtherFaces, tested on OrlFaces: people may be in both" in page) == said


def _one_row(make_sets) -> tuple[EmbeddingSet, None, dict[str, EmbeddingSet]]:
    gallery, masked = make_sets(3.0)
    return gallery, None, {"teacher_masked": masked}


def test_panel_shows_the_faces_pixel_for_pixel() -> None:
    image = panel_image(_columns(), ["cloth", "hand"])
    assert image.dtype == np.uint8
    red = (image == [255, 0, 0]).all(-1)
    assert int(red.sum()) == 2 * 16 * 12


def test_panel_refuses_columns_and_labels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="3 labels"):
        panel_figure(_columns(), ["a", "b", "c"])
    with pytest.raises(ValueError, match="equal B, H and W"):
        panel_figure(_columns() | {"other": torch.zeros(2, 3, 8, 8)}, ["a", "b"])


def test_roc_figure_draws_the_curve_as_steps_read_from_the_left() -> None:
    far, tar = (torch.tensor(rates, dtype=torch.float64) for rates in ([0, 0, 0.1, 1], [0, 0.4, 0.8, 1]))
    line = roc_figure({"a": (far, tar)}).axes[0].lines[0]
    x, y = (np.asarray(values) for values in line.get_data())
    assert set(y[x < 0.0999]) == {0.4}
    assert set(y[(x > 0.1001) & (x < 0.99)]) == {0.8}
    assert y[-1] == 1.0


def test_cmc_figure_draws_each_curve_from_rank_one() -> None:
    axes = cmc_figure({"a": [0.5, 0.75, 1.0], "b": [0.25]}).axes[0]
    assert {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines} == {
        "a": [[1, 0.5], [2, 0.75], [3, 1]],
        "b": [[1, 0.25]],
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rank", "share of probes identified")


def test_loss_figure_reads_a_metrics_file_with_gaps_and_pairs_the_stages(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,train/loss,val/loss,val/eer\n0,0,3.0,,\n0,5,2.0,,\n1,9,,2.5,0.2\n"
    )
    figure = loss_figure(tmp_path / "metrics.csv")
    drawn = {
        axes.get_title(): {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}
        for axes in figure.axes
    }
    assert drawn == {"loss": {"train": [[0, 3.0], [5, 2.0]], "val": [[9, 2.5]]}, "eer": {"val": [[9, 0.2]]}}
    rows = [{"step": 0, "train/loss": 3.0, "val/loss": None}]
    assert [axes.get_title() for axes in loss_figure(rows).axes] == ["loss"]


def test_loss_figure_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no logged values at .*nothing\.csv"):
        loss_figure(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="no values"):
        loss_figure([{"step": 0}])


def test_histogram_marks_the_threshold_and_normalises_both_sorts() -> None:
    figure = score_histogram(torch.linspace(-1, 1, 50), torch.arange(50) > 40, threshold=0.5)
    axes = figure.axes[0]
    assert list(axes.lines[0].get_xdata()) == [0.5, 0.5]
    areas = [sum(bar.get_width() * bar.get_height() for bar in bars) for bars in axes.containers]
    assert areas == pytest.approx([1.0, 1.0])


def test_figures_leave_no_trace_in_matplotlibs_global_state() -> None:
    from matplotlib import _pylab_helpers

    figure = score_histogram(torch.linspace(-1, 1, 50), torch.arange(50) > 40)
    assert isinstance(figure, Figure)
    assert png_bytes(figure).startswith(b"\x89PNG")
    assert _pylab_helpers.Gcf.get_all_fig_managers() == []
