"""Nothing that was computed on a part of the data looks like a result of the whole."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deocc import runs
from deocc.runs import part_of_data
from tests.conftest import SMALL, TINY_STAGE1, run_deocc

FEW = ["--data.kinds", "[surgical]", "--data.test_seeds", "[1]"]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"limit_test_batches": None}, {}),
        ({"limit_test_batches": 1.0}, {}),
        ({"limit_test_batches": 1}, {"limit_test_batches": 1}),  # a number of batches
        ({"limit_test_batches": 0.5}, {"limit_test_batches": 0.5}),
        ({"limit_val_batches": 1}, {}),  # another split
        ({"fast_dev_run": 2}, {"fast_dev_run": 2}),
    ],
)
def test_settings(settings: dict[str, Any], found: dict[str, float]) -> None:
    assert part_of_data(SimpleNamespace(**settings), "test") == found


def test_fast_dev_run_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_deocc(
        "fit", "--config", "inpaint", "--run", str(tmp_path / "x"), *SMALL, *TINY_STAGE1, "--trainer.fast_dev_run=1"
    )
    out = capsys.readouterr().out
    assert "nothing was saved" in out and "deocc test" not in out
    assert not (tmp_path / "x").exists()


def test_training_on_a_part(stage1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(stage1, run)
    run_deocc("fit", "--resume", str(run))
    assert "trained on a part of the data (limit_train_batches 1)" in capsys.readouterr().out


def test_test_on_a_part(stage2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results, thresholds and model of an earlier test stay, and the new results name the setting."""
    run = tmp_path / "run"
    shutil.copytree(stage2, run)
    (run / runs.RESULTS).write_text("{}")
    run_deocc("test", "--checkpoint", str(run), *SMALL, *FEW, "--trainer.limit_test_batches", "2")
    part = {"limit_train_batches": 1, "limit_test_batches": 2}
    assert json.loads((run / "test-part" / runs.RESULTS).read_text())["part_of_data"] == part
    assert "Computed on a part of the data:" in (run / "test-part" / runs.REPORT).read_text()
    assert "part of the data: limit_train_batches 1, limit_test_batches 2" in capsys.readouterr().out
    assert (run / runs.RESULTS).read_text() == "{}"
    assert not (run / "model").exists() and not (run / "test-part" / "model").exists()
    assert not list((run / runs.CHECKPOINTS).glob("*.thresholds.json"))
