"""What Weights & Biases without an account, TensorBoard and metrics.csv contain after a run."""

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import yaml
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.callbacks.wandb_file import OfflineRun, read_run
from tests.conftest import ROOT, SMALL, TINY_STAGE1, fewer_images, run_deocc

ONE_KIND = ["--data.kinds", "[surgical]", "--data.test_seeds", "[1]"]
SHORT = [*SMALL, *ONE_KIND, "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "2"]
SHORT += ["--trainer.log_every_n_steps", "1", "--trainer.check_val_every_n_epoch", "1"]
STEP = "trainer/global_step"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home without a key, in an environment that says nothing of W&B."""
    for name in {"WANDB_MODE", *(name for name in os.environ if name.startswith("WANDB_"))}:
        monkeypatch.setenv(name, "")  # so that what the command sets is taken back as well
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    wandb.finish()


def run_recorded(run: Path, *words: str) -> OfflineRun:
    """Run `deocc` as in a process of its own, whose end ends its W&B run, and read what W&B recorded.

    It writes in a process of its own, after `finish` has returned, so this waits for the last record.
    """
    before = set(run.glob("wandb/offline-run-*/*.wandb"))
    run_deocc(*words)
    wandb.finish()
    (file,) = set(run.glob("wandb/offline-run-*/*.wandb")) - before
    for _ in range(100):
        if (found := read_run(file)).ended:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file} has no end after ten seconds")


def columns(sheet: NDArray[np.uint8], first: int, last: int) -> NDArray[np.uint8]:
    """Some columns of a panel of 64-pixel faces, as `deocc.evaluation.panel_figure` lays them out."""
    return sheet[24:, 110 + 68 * first : 110 + 68 * last]


@pytest.mark.slow
def test_wandb_without_a_key_keeps_losses_panels_and_test_results_offline(
    home: Path, stage1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "group" / "name"
    fit = [
        "fit",
        "--config",
        str(ROOT / "configs/distill.yaml"),
        "--config",
        str(ROOT / "configs/logger/wandb.yaml"),
        *SHORT,
    ]
    fit += ["--model.init_args.inpainting_checkpoint", str(stage1)]
    trained = run_recorded(run, *fit, "--run", str(run), "--trainer.max_epochs", "1")
    assert f"logging offline to {run / 'wandb'}" in capsys.readouterr().out
    check_training(trained, run)
    assert "train/loss" in (run / "metrics.csv").read_text()

    with fewer_images():
        tested = run_recorded(run, "test", "--checkpoint", str(run), *SMALL, *ONE_KIND)
    check_test(tested, json.loads((run / "results.json").read_text()))

    resumed = run_recorded(
        run, *fit, "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--trainer.max_epochs", "2"
    )
    check_second_panel(trained, resumed)
    for part in (trained, tested, resumed):
        assert part.run.run_id == trained.run.run_id, "every part goes on in the one W&B run"
        assert (part.run.display_name, part.run.run_group, part.run.job_type) == ("name", "group", "distill")


def check_training(found: OfflineRun, run: Path) -> None:
    row = found.logged("train/loss")
    assert row["train/loss"] == pytest.approx(
        sum(row[f"train/{term}_term"] for term in ("identity", "instance", "pair", "triplet"))
    )
    assert all(row[f"train/{term}_gradient"] > 0 for term in ("identity", "instance", "pair", "triplet"))
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert {key: found.config[key] for key in written} == written, "the whole configuration is W&B's"
    for name in ("eer", "rank1"):
        value = found.logged(f"val/student/{name}")[f"val/student/{name}"]
        assert found.summary[f"val/student/{name}"] == {"min" if name == "eer" else "max": value, "last": value}
    assert found.logged("val/panel")[STEP] == found.logged("val/student/eer")[STEP]
    np.testing.assert_array_equal(found.picture("val/panel"), np.array(Image.open(run / "panels" / "step-0000000.png")))
    np.testing.assert_array_equal(found.picture("val/face/surgical"), found.picture("val/panel"))  # the only kind


def check_test(found: OfflineRun, results: dict[str, Any]) -> None:
    student = results["rows"]["student"]
    assert found.logged("test/student/eer")["test/student/eer"] == student["eer"]
    table = found.table("test/recognition")
    cells = dict(
        zip(table["columns"], *[row for row in table["data"] if row[0] == "student (given mask)"], strict=True)
    )
    assert cells["EER %"] == float(f"{100 * student['eer']:.2f}")
    for key in ("test/roc", "test/scores", "test/panel"):
        assert found.picture(key).std() > 10, f"{key} is blank"


def check_second_panel(first: OfflineRun, second: OfflineRun) -> None:
    """The same faces under the same masks, a step later."""
    assert (first.logged("val/panel")[STEP], second.logged("val/panel")[STEP]) == (0, 1)
    before, after = first.picture("val/panel"), second.picture("val/panel")
    np.testing.assert_array_equal(columns(before, 0, 3), columns(after, 0, 3))


def test_tensorboard_beside_metrics_csv(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit = [
        "fit",
        "--config",
        str(ROOT / "configs/inpaint.yaml"),
        "--config",
        str(ROOT / "configs/logger/tensorboard.yaml"),
        *SHORT,
    ]
    run_deocc(*fit, *TINY_STAGE1, "--trainer.max_epochs", "1", "--run", str(run))
    events = EventAccumulator(str(run))
    events.Reload()
    (loss,), (score,), (panel,) = (
        events.Scalars("train/loss"),
        events.Scalars("val/given_mask/psnr"),
        events.Images("val/panel"),
    )
    assert panel.step == score.step == loss.step == 0, "a step is a batch, though two optimisers step in it"
    sheet = np.array(Image.open(io.BytesIO(panel.encoded_image_string)))
    np.testing.assert_array_equal(sheet, np.array(Image.open(run / "panels" / "step-0000000.png")))
    (text,) = events.Tensors("config/text_summary")
    shown = text.tensor_proto.string_val[0].decode().removeprefix("```yaml\n").removesuffix("```")
    assert yaml.safe_load(shown) == yaml.safe_load((run / "config.yaml").read_text())
    assert "train/loss" in (run / "metrics.csv").read_text()
