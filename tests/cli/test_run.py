"""Whole commands on real faces: what a run folder holds, and what an evaluation writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from deocc import runs
from deocc.evaluation.results import CLEAN_ROWS
from tests.conftest import ONE_STEP, SMALL, TINY_STAGE1, fewer_images, run_deocc

TEACHER = ("clean", "masked", "completed", "completed_predicted_mask", "clean_predicted_mask")
STUDENT = ("student_clean", "student_clean_predicted_mask", "student", "student_predicted_mask")
ROWS = (*(f"teacher_{name}" for name in TEACHER), *STUDENT)
FEW = ["--data.kinds", "[surgical, sunglasses]", "--data.test_seeds", "[1]"]


def read_results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / runs.RESULTS).read_text())
    return content


@pytest.fixture(scope="module")
def tested(stage2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tested run, on every fifth image of the test people."""
    folder = tmp_path_factory.mktemp("tested") / "distill"
    shutil.copytree(stage2, folder)
    with fewer_images():
        run_deocc("test", "--checkpoint", str(folder), *SMALL, *FEW)
    return folder


def test_fit_adds_the_callbacks_of_the_stage(stage1: Path, stage2: Path) -> None:
    common = ["PanelCallback", "ResultsCallback", "PredictionCallback"]
    for folder, own in ((stage1, []), (stage2, ["CalibrationCallback", "ModelFolderCallback"])):
        written = yaml.safe_load((folder / runs.CONFIG).read_text())["trainer"]["callbacks"]
        assert [callback["class_path"].rsplit(".", 1)[-1] for callback in written] == [*common, *own]
        assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_second_fit_never_overwrites_the_first(stage1: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (stage1 / "checkpoints" / "last.ckpt").read_bytes()
    run_deocc("fit", "--config", "inpaint", "--run", str(stage1), *SMALL, *TINY_STAGE1, *ONE_STEP)
    shown = capsys.readouterr().out
    assert f"deocc fit --resume {stage1}" in shown and f"writing to {stage1}-2" in shown
    assert (stage1.with_name(f"{stage1.name}-2") / "checkpoints" / "last.ckpt").is_file()
    assert (stage1 / "checkpoints" / "last.ckpt").read_bytes() == before


def test_test_leaves_the_training_log_unchanged(tested: Path, stage2: Path) -> None:
    before = (stage2 / "metrics.csv").read_text()
    assert "train/loss" in before
    assert (tested / "metrics.csv").read_text() == before
    assert "test/student" in (tested / "test" / "metrics.csv").read_text()
    assert "Training</figcaption>" in (tested / runs.REPORT).read_text()


def test_results_hold_every_row_and_section(tested: Path) -> None:
    results = read_results(tested)
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
    assert (results["people"], results["images"]) == (16, 32), "the test people, who are not in training"


def test_report_stands_alone(tested: Path) -> None:
    text = (tested / runs.REPORT).read_text()
    assert "AT&amp;T Laboratories Cambridge" in text and "data:image/png;base64," in text
    assert 'src="http' not in text and 'href="http' not in text


def test_test_is_repeatable_without_stage1(stage1: Path, stage2: Path, tmp_path: Path) -> None:
    argv = ["test", "--checkpoint", str(stage2), *SMALL, *FEW, "--trainer.limit_test_batches", "4"]
    run_deocc(*argv, "--run", str(tmp_path / "first"))
    away = stage1.rename(stage1.with_name("away"))
    try:
        run_deocc(*argv, "--run", str(tmp_path / "second"))
    finally:
        away.rename(stage1)
    first, second = read_results(tmp_path / "first"), read_results(tmp_path / "second")
    assert [first[key] for key in ("rows", "manifest_hash")] == [second[key] for key in ("rows", "manifest_hash")]


def test_test_measures_restoration_of_stage1(stage1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fewer_images():
        run_deocc("test", "--checkpoint", str(stage1), "--run", str(tmp_path), *SMALL, *FEW)
    results = read_results(tmp_path)
    assert results["rows"] == {}
    assert 0 < results["restoration"]["given_mask"]["psnr_covered"] < 40
    assert "PSNR" in capsys.readouterr().out


def test_evaluation_takes_the_newest_run(
    stage2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(stage2)
    monkeypatch.chdir(tmp_path)
    run_deocc("validate", *SMALL, "--trainer.limit_val_batches", "2", "--run", str(tmp_path / "out"))
    printed = capsys.readouterr()
    assert "taking the newest run, runs/mine" in printed.err
    assert "val/student/eer" in printed.out and "val/student_predicted_mask/eer" in printed.out


@pytest.mark.parametrize("batches", [0, 1])
def test_missing_validation_is_reported(batches: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It calibrates the segmenter's gate."""
    validated = ["--trainer.limit_val_batches", str(batches), "--trainer.check_val_every_n_epoch", "1"]
    run_deocc("fit", "--config", "inpaint", *SMALL, *TINY_STAGE1, *ONE_STEP, *validated, "--run", str(tmp_path))
    assert ("gate of the mask segmenter is not calibrated" in capsys.readouterr().err) == (batches == 0)


def test_training_validates_with_given_masks(stage1: Path, tmp_path: Path) -> None:
    """Predicting the masks of all validation faces would slow a training down."""
    validated = ["--trainer.limit_val_batches", "2", "--trainer.check_val_every_n_epoch", "1"]
    argv = ["fit", "--config", "distill", *SMALL, *ONE_STEP, *validated, "--run", str(tmp_path)]
    run_deocc(*argv, "--model.init_args.inpainting_checkpoint", str(stage1))
    logged = (tmp_path / "metrics.csv").read_text()
    assert "val/student/eer" in logged and "val/student_predicted_mask" not in logged


def test_predict_writes_sheets_and_embeddings(stage2: Path, tmp_path: Path) -> None:
    one_batch = [*SMALL, *FEW, "--trainer.limit_predict_batches", "1"]
    run_deocc("predict", "--checkpoint", str(stage2), "--run", str(tmp_path), *one_batch)
    arrays = np.load(tmp_path / "predictions" / "embeddings-0.npz")
    assert arrays["embedding"].shape == (8, 128)
    assert np.allclose(np.linalg.norm(arrays["embedding"], axis=1), 1, atol=1e-5)
    assert (tmp_path / "predictions" / "sheet-0-0000.png").is_file()
