"""Content of Weights & Biases without an account, TensorBoard and metrics.csv after a run."""

import io
import json
import os
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

from deocc.callbacks.loggers import BEST
from tests.conftest import SMALL, TINY_STAGE1, fewer_images, run_deocc

ONE_KIND = ["--data.kinds", "[surgical]", "--data.test_seeds", "[1]"]
SHORT = [*SMALL, *ONE_KIND, "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "2"]
SHORT += ["--trainer.log_every_n_steps", "1", "--trainer.check_val_every_n_epoch", "1"]
STEP = "trainer/global_step"


class Recorded:
    """Content of the W&B run of a command, which ends afterwards, as with the command's process."""

    def __init__(self, *words: str) -> None:
        self.rows: list[dict[str, Any]] = []
        log = wandb.Run.log

        def record(run: wandb.Run, row: dict[str, Any]) -> None:
            self.rows.append(row)
            log(run, row)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wandb.Run, "log", record)
            run_deocc(*words)
        run = wandb.run
        assert run is not None
        self.run = (run.id, run.name, run.group, run.job_type)
        self.config = dict(run.config)
        self.summary = {key: dict(best) for key, best in dict(run.summary).items() if key in BEST}
        run.finish()

    def logged(self, key: str) -> dict[str, Any]:
        """The row in which a key was logged last."""
        return [row for row in self.rows if key in row][-1]

    def picture(self, key: str) -> NDArray[np.uint8]:
        (picture,) = self.logged(key)[key]
        return np.array(picture.image)


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


@pytest.mark.slow
def test_wandb_without_a_key(home: Path, stage1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Losses, panels and test results are logged offline, in one W&B run, which a resumed training continues."""
    run = tmp_path / "group" / "name"
    fit = ["fit", "--config", "distill", "--config", "logger/wandb", *SHORT]
    fit += ["--model.init_args.inpainting_checkpoint", str(stage1)]
    trained = Recorded(*fit, "--run", str(run), "--trainer.max_epochs", "1")
    assert f"logging offline to {run / 'wandb'}" in capsys.readouterr().out
    check_training(trained, run)
    assert "train/loss" in (run / "metrics.csv").read_text()

    with fewer_images():
        tested = Recorded("test", "--checkpoint", str(run), *SMALL, *ONE_KIND)
    check_test(tested, json.loads((run / "results.json").read_text()))

    checkpoint = run / "checkpoints" / "last.ckpt"
    resumed = Recorded(*fit, "--ckpt_path", str(checkpoint), "--trainer.max_epochs", "2")
    assert (trained.logged("val/panel")[STEP], resumed.logged("val/panel")[STEP]) == (0, 1)
    before, after = (found.picture("val/panel")[24:, 110:314] for found in (trained, resumed))
    np.testing.assert_array_equal(before, after)  # clean face, masked face and mask of 64-pixel faces
    assert trained.run == tested.run == resumed.run and trained.run[1:] == ("name", "group", "distill")
    assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 3


def check_training(found: Recorded, run: Path) -> None:
    row = found.logged("train/loss")
    terms = ("identity", "instance", "pair", "triplet")
    assert row["train/loss"] == pytest.approx(sum(row[f"train/{term}_term"] for term in terms))
    assert all(row[f"train/{term}_gradient"] > 0 for term in terms)
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert {key: found.config[key] for key in written} == written, "the whole configuration is W&B's"
    for name in ("eer", "rank1"):
        value = found.logged(f"val/student/{name}")[f"val/student/{name}"]
        assert found.summary[f"val/student/{name}"] == {"min" if name == "eer" else "max": value, "last": value}
    assert found.logged("val/panel")[STEP] == found.logged("val/student/eer")[STEP]
    np.testing.assert_array_equal(found.picture("val/panel"), np.array(Image.open(run / "panels" / "step-0000000.png")))
    np.testing.assert_array_equal(found.picture("val/face/surgical"), found.picture("val/panel"))  # the only kind


def check_test(found: Recorded, results: dict[str, Any]) -> None:
    student = results["rows"]["student"]
    assert found.logged("test/student/eer")["test/student/eer"] == student["eer"]
    table = found.logged("test/recognition")["test/recognition"]
    (cells,) = [row for row in table.data if row[0] == "student (given mask)"]
    assert cells[table.columns.index("EER %")] == float(f"{100 * student['eer']:.2f}")
    for key in ("test/roc", "test/scores", "test/panel"):
        assert found.picture(key).std() > 10, f"{key} is blank"


def test_tensorboard_beside_metrics_csv(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit = ["fit", "--config", "inpaint", "--config", "logger/tensorboard", *SHORT, *TINY_STAGE1]
    run_deocc(*fit, "--trainer.max_epochs", "1", "--run", str(run))
    events = EventAccumulator(str(run))
    events.Reload()
    (loss,), (score,) = events.Scalars("train/loss"), events.Scalars("val/given_mask/psnr")
    (panel,) = events.Images("val/panel")
    assert panel.step == score.step == loss.step == 0, "a step is a batch, though two optimisers step in it"
    sheet = np.array(Image.open(io.BytesIO(panel.encoded_image_string)))
    np.testing.assert_array_equal(sheet, np.array(Image.open(run / "panels" / "step-0000000.png")))
    (text,) = events.Tensors("config/text_summary")
    shown = text.tensor_proto.string_val[0].decode().removeprefix("```yaml\n").removesuffix("```")
    assert yaml.safe_load(shown) == yaml.safe_load((run / "config.yaml").read_text())
    assert "train/loss" in (run / "metrics.csv").read_text()
