"""Logs of a resumed run show each step once, a full disk stops nothing, and W&B runs are continued."""

import csv
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonargparse
import pytest
import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from deocc.callbacks.loggers import (
    BEST,
    WANDB_ID,
    MetricsLogger,
    WandbRunLogger,
    logged_step,
    place_loggers,
    truncate_logs,
)
from tests.callbacks.small_training import QUIET

LOGGED: list[tuple[dict[str, float], int]] = [
    ({"epoch": 0, "train/loss": 0.5}, 0),
    ({"epoch": 0, "train/loss": 1 / 3, 'odd, "name"': -1e-30}, 1),
    ({"epoch": 1, "train/loss": 0.125}, 2),
    ({"epoch": 1, "train/loss": 2.0, "more": 7}, 3),
    ({"epoch": 1, "val/eer": 0.25}, 3),
]
"""Rows as Lightning logs them: a validation has the step of the batch before it."""
STAGE1 = "deocc.modules.InpaintingModule"


def metrics_logger(folder: Path) -> MetricsLogger:
    return MetricsLogger(str(folder), name="", version="")


def log(logger: Any, rows: list[tuple[dict[str, float], int]]) -> None:
    for metrics, step in rows:
        logger.log_metrics(metrics, step)
        logger.save()


def content_of(folder: Path, steps: int) -> bytes:
    """Return the file of an uninterrupted run after some steps."""
    log(metrics_logger(folder), [row for row in LOGGED if row[1] < steps])
    return (folder / "metrics.csv").read_bytes()


def test_rows_are_what_was_logged(tmp_path: Path) -> None:
    log(metrics_logger(tmp_path), LOGGED)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    assert rows == [{key: str(value) for key, value in {**metrics, "step": step}.items()} for metrics, step in LOGGED]


@pytest.mark.parametrize("step", range(1, 5))
def test_resumed_file_equals_uninterrupted_one(step: int, tmp_path: Path) -> None:
    """Byte by byte, wherever a kill has cut the file."""
    whole, before = content_of(tmp_path / "whole", 4), content_of(tmp_path / "before", step)
    saved = whole.index(b"\r\n", whole.rindex(f",{step - 1},".encode())) + 2  # the checkpoint came after this row
    cut = tmp_path / "cut" / "metrics.csv"
    cut.parent.mkdir()
    for length in range(saved, len(whole) + 1):
        cut.write_bytes(whole[:length])
        logger = metrics_logger(cut.parent)
        logger.experiment.truncate(step)
        assert cut.read_bytes() == before
        log(logger, [row for row in LOGGED if row[1] >= step])
        assert cut.read_bytes() == whole


@pytest.mark.parametrize(
    "damage", [b"", b"epo", b"epoch,st", b"\0" * 40, b"\xff\xfe\n\x00\n", b"epoch,step\r\n", b'epoch,step\r\n0,"1\r\n']
)
def test_damaged_file_is_replaced(damage: bytes, tmp_path: Path) -> None:
    whole = content_of(tmp_path / "whole", 4)
    (tmp_path / "metrics.csv").write_bytes(damage)
    logger = metrics_logger(tmp_path)
    logger.experiment.truncate(4)
    log(logger, LOGGED)
    assert (tmp_path / "metrics.csv").read_bytes() == whole


def test_new_run_makes_no_empty_file(tmp_path: Path) -> None:
    metrics_logger(tmp_path).experiment.truncate(0)
    assert not (tmp_path / "metrics.csv").exists()


def test_kill_while_adding_columns_keeps_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    logger = metrics_logger(tmp_path)
    log(logger, LOGGED[:1])
    before = (tmp_path / "metrics.csv").read_bytes()
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        log(logger, LOGGED[1:2])
    assert (tmp_path / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("room", [0, 10, 40, 60, 100])
def test_rows_wait_while_the_disk_is_full(room: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import resource

    whole, logger = content_of(tmp_path / "whole", 4), metrics_logger(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # as a full disk: the kernel writes what fits
    try:
        log(logger, LOGGED[:-1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"cannot write {tmp_path / 'metrics.csv'}" in caplog.text and "the training continues" in caplog.text
    log(logger, LOGGED[-1:])
    assert (tmp_path / "metrics.csv").read_bytes() == whole


class Line(pl.LightningModule):
    """A weight that follows from the batches; logs each batch and each validation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = (self.weight * batch[0]).square().sum()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val/weight", self.weight.detach()[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


class Break(pl.Callback):
    """Stops the run at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if logged_step(trainer) == self.step:
            raise InterruptedError


@pytest.mark.parametrize("step", [3, 4, 6])
def test_validation_before_a_checkpoint_stays(step: int, tmp_path: Path) -> None:
    """Of a run with three batches and a validation per epoch."""
    data = DataLoader(TensorDataset(torch.arange(1.0, 4.0)))

    def fit(folder: Path, stop: int) -> list[str]:
        settings: dict[str, Any] = {"enable_checkpointing": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
        settings |= {"logger": metrics_logger(folder), "callbacks": Break(stop), "default_root_dir": folder}
        trainer = pl.Trainer(max_epochs=3, **settings, **QUIET)
        if stop < 9:
            with pytest.raises(InterruptedError):
                trainer.fit(Line(), data, data)
            metrics_logger(folder).experiment.truncate(step)
        else:
            trainer.fit(Line(), data, data)
        return (folder / "metrics.csv").read_text().splitlines()

    whole, kept = fit(tmp_path / "whole", 9), fit(tmp_path / "broken", 8)
    assert kept == whole[: 1 + step + step // 3]


def test_tensorboard_shows_repeated_steps_once(tmp_path: Path) -> None:
    for first in (0, 3):
        logger = TensorBoardLogger(tmp_path, name="", version="")
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=first))
        truncate_logs(SimpleNamespace(fit_loop=loop, is_global_zero=True, loggers=[logger]))  # type: ignore[arg-type]
        log(logger, [({"train/loss": step + first}, step) for step in range(first, 5)])
        logger.experiment.close()
        time.sleep(1.1)  # event files are read in the order of their names, which begin with the second
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 6),
        (4, 7),
    ]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # so that no key is looked for
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "")  # so that the logger's change is undone
    monkeypatch.delenv("WANDB_FINISH_TIMEOUT")


def namespace(**values: Any) -> Any:
    return jsonargparse.Namespace(**values)  # type: ignore[no-untyped-call]


def placed(folder: Path, home: Path | None = None, subfolder: str = "", model: str = STAGE1, **settings: Any) -> Any:
    """Return the settings of the placed W&B logger."""
    logger = namespace(class_path="deocc.callbacks.loggers.WandbRunLogger", init_args=namespace(**settings))
    trainer = namespace(logger=logger)
    place_loggers(trainer, folder, subfolder, home or folder, model)
    assert trainer.logger[0].class_path == "deocc.callbacks.loggers.MetricsLogger"
    return trainer.logger[1].init_args


def test_wandb_run_is_named_after_its_folder(tmp_path: Path) -> None:
    found = placed(tmp_path / "ablation" / "hard", resume=None)
    assert (found.name, found.group, found.job_type) == ("hard", "ablation", "inpaint")
    assert found.save_dir == str(tmp_path / "ablation" / "hard")
    assert found.resume == "allow", "with the parser's None, W&B would replace the run"
    configured = placed(tmp_path / "run", name="mine", group="ours")
    assert (configured.name, configured.group) == ("mine", "ours") and "resume" not in configured


def test_wandb_name_of_another_folder_is_replaced(tmp_path: Path) -> None:
    first = placed(tmp_path / "a" / "first", group="ours")
    second = placed(tmp_path / "b" / "second", **vars(first))
    assert (second.name, second.group) == ("second", "ours") and second.id != first.id


@pytest.mark.parametrize(
    ("model", "job"),
    [(STAGE1, "inpaint"), ("deocc.modules.DistillationModule", "distill"), ("mine.OtherModule", "OtherModule")],
)
def test_wandb_test_continues_the_training(model: str, job: str, tmp_path: Path) -> None:
    """Under its name, group and job type, wherever the test writes to."""
    home = tmp_path / "runs" / "trained"
    trained = placed(home, model=model)
    assert re.fullmatch("r[0-9a-f]{8}", trained.id) and trained.id == (home / "wandb" / WANDB_ID).read_text()
    (home / "config.yaml").write_text("")
    tested = placed(tmp_path / "elsewhere", home, "test", model)
    names = ("id", "name", "group", "job_type")
    assert [tested[key] for key in names] == [trained[key] for key in names] and tested.job_type == job
    assert placed(tmp_path / "untrained", subfolder="test").job_type == "test"


def test_silent_wandb_server_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    defined: dict[str, dict[str, Any]] = {}

    def init(**settings: Any) -> Any:
        if os.environ["WANDB_MODE"] != "offline":
            raise wandb.errors.CommError("timed out\n after 90 s")
        assert (settings["id"], settings["resume"]) == ("r1", "allow")
        return SimpleNamespace(define_metric=lambda name, **definition: defined.update({name: definition}))

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "run", None)
    logger = WandbRunLogger(save_dir=str(tmp_path), id="r1")
    assert logger.experiment is logger.experiment
    assert "W&B does not answer (timed out after 90 s): logging offline" in caplog.text
    assert set(defined) == set(BEST)
    assert defined["val/student/eer"]["summary"] == "min,last"
    assert defined["val/student/rank1"]["summary"] == "max,last"
    assert os.environ["WANDB_FINISH_TIMEOUT"] == "60"
