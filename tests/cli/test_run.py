"""Whole commands on real faces: what a run leaves behind, resuming, and what an evaluation writes."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from deocc import runs
from deocc.data import MaskedFaceDataModule
from deocc.evaluation.results import CLEAN_ROWS
from tests.conftest import ONE_STEP, ROOT, SMALL, TINY_STAGE1, run_deocc

TEACHER = (
    "teacher_clean",
    "teacher_masked",
    "teacher_completed",
    "teacher_completed_predicted_mask",
    "teacher_clean_predicted_mask",
)
ROWS = (*TEACHER, "student_clean", "student_clean_predicted_mask", "student", "student_predicted_mask")
FEW = ["--data.kinds", "[surgical, sunglasses]", "--data.test_seeds", "[1]"]
INPAINT = ["fit", "--config", str(ROOT / "configs/inpaint.yaml")]


def test_a_run_folder_holds_what_is_needed_to_go_on(stage1: Path, stage2: Path) -> None:
    for folder in (stage1, stage2):
        assert (folder / runs.CONFIG).is_file() and (folder / "checkpoints" / "last.ckpt").is_file()


@contextmanager
def fewer_images() -> Iterator[None]:
    """Every fifth image of each split: two of each person."""
    chosen = MaskedFaceDataModule._chosen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedFaceDataModule, "_chosen", lambda *words: chosen(*words)[::5])
        yield


@pytest.fixture(scope="module")
def tested(stage2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was tested on every fifth image of the test people, its results beside what training left."""
    folder = tmp_path_factory.mktemp("tested") / "distill"
    shutil.copytree(stage2, folder)
    with fewer_images():
        run_deocc("test", "--checkpoint", str(folder), *SMALL, *FEW)
    return folder


def test_testing_leaves_the_log_of_the_training_as_it_was(tested: Path, stage2: Path) -> None:
    before = (stage2 / "metrics.csv").read_text()
    assert "train/loss" in before and (tested / "metrics.csv").read_text() == before
    assert "test/student" in (tested / "test" / "metrics.csv").read_text()
    assert "Training</figcaption>" in (tested / runs.REPORT).read_text()


def test_results_json_holds_what_it_promises(tested: Path) -> None:
    results = json.loads((tested / runs.RESULTS).read_text())
    assert tuple(results["rows"]) == ROWS
    for name, row in results["rows"].items():
        assert {"eer", "auc", "rank1", "tar@1e-2", "tar@1e-3"} <= set(row), name
        assert 0 <= row["eer"] <= 1
    interval = results["student_minus_teacher_masked"]["eer"]
    assert interval["low"] <= interval["mean"] <= interval["high"]
    assert set(results["restoration"]) == {"given_mask", "predicted_mask"}
    assert set(results["per_kind"]) == {"surgical", "sunglasses"}
    assert set(results["per_kind"]["surgical"]["rows"]) == {row for row in ROWS if row not in CLEAN_ROWS}
    assert set(results["mask_prediction"]) == {"per_kind", "masked", "bare"}
    assert set(results["mask_prediction"]["per_kind"]) == {"surgical", "sunglasses"}
    assert {"command", "checkpoint", "versions", "data_hash", "manifest_hash", "mask_seeds", "credit"} <= set(results)


def test_the_test_people_are_those_that_training_never_saw(tested: Path) -> None:
    results = json.loads((tested / runs.RESULTS).read_text())
    assert results["people"] == 16 and results["images"] == 32


def test_the_report_stands_alone(tested: Path) -> None:
    text = (tested / runs.REPORT).read_text()
    assert "AT&amp;T Laboratories Cambridge" in text and "data:image/png;base64," in text
    assert 'src="http' not in text and 'href="http' not in text


def test_testing_again_gives_the_same_figures_even_where_stage_1_has_gone(
    stage1: Path, stage2: Path, tmp_path: Path
) -> None:
    words = ["test", "--checkpoint", str(stage2), *SMALL, *FEW, "--trainer.limit_test_batches", "4"]
    run_deocc(*words, "--run", str(tmp_path / "first"))
    away = stage1.rename(stage1.with_name("away"))
    try:
        run_deocc(*words, "--run", str(tmp_path / "second"))
    finally:
        away.rename(stage1)
    first, second = (json.loads((tmp_path / name / runs.RESULTS).read_text()) for name in ("first", "second"))
    assert first["rows"] == second["rows"] and first["manifest_hash"] == second["manifest_hash"]


def test_stage_1_is_tested_for_restoration(stage1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fewer_images():
        run_deocc("test", "--checkpoint", str(stage1), "--run", str(tmp_path), *SMALL, *FEW)
    results = json.loads((tmp_path / runs.RESULTS).read_text())
    assert results["rows"] == {} and 0 < results["restoration"]["given_mask"]["psnr_covered"] < 40
    assert "PSNR" in capsys.readouterr().out


def test_the_newest_run_is_taken_and_named(
    stage2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(stage2)
    monkeypatch.chdir(tmp_path)
    run_deocc("validate", *SMALL, "--trainer.limit_val_batches", "2", "--run", str(tmp_path / "out"))
    assert "taking the newest run, runs/mine" in capsys.readouterr().out


def test_predict_writes_sheets_and_embeddings(stage2: Path, tmp_path: Path) -> None:
    run_deocc(
        "predict",
        "--checkpoint",
        str(stage2),
        "--run",
        str(tmp_path),
        *SMALL,
        *FEW,
        "--trainer.limit_predict_batches",
        "1",
    )
    arrays = np.load(tmp_path / "predictions" / "embeddings-0.npz")
    assert arrays["embedding"].shape == (8, 128)
    assert np.allclose(np.linalg.norm(arrays["embedding"], axis=1), 1, atol=1e-5)
    assert (tmp_path / "predictions" / "sheet-0-0000.png").is_file()


def test_a_second_fit_never_overwrites_the_first(stage1: Path) -> None:
    before = (stage1 / "checkpoints" / "last.ckpt").read_bytes()
    run_deocc(*INPAINT, "--run", str(stage1), *SMALL, *TINY_STAGE1, *ONE_STEP)
    assert (stage1.with_name(f"{stage1.name}-2") / "checkpoints" / "last.ckpt").is_file()
    assert (stage1 / "checkpoints" / "last.ckpt").read_bytes() == before
