"""Logs under faults: a kill at any moment, a disk that is full for a while, a run that is resumed."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from deocc.callbacks import PanelCallback
from deocc.callbacks.dashboards import logged_step
from deocc.callbacks.loggers import MetricsLogger
from tests.callbacks.full_disk import log, no_file_above

LOGGED: list[tuple[dict[str, float], int]] = [
    ({"epoch": 0, "train/loss": 0.5}, 0),
    ({"epoch": 0, "train/loss": 1 / 3, 'odd, "name"': -1e-30}, 1),
    ({"epoch": 0, "val/eer": float("nan")}, 1),
    ({"epoch": 1, "train/loss": 0.125}, 2),
    ({"epoch": 1, "train/loss": 2.0, "more": 7}, 3),
    ({"epoch": 1, "val/eer": 0.25}, 3),
]
"""Rows as Lightning logs them: a validation carries the step of the batch before it."""


def metrics_logger(folder: Path) -> MetricsLogger:
    return MetricsLogger(str(folder), name="", version="")


def content_of(folder: Path, steps: int) -> bytes:
    """The file of a run that logged the batches before `steps` in one go; empty where that is no row."""
    log(metrics_logger(folder), [row for row in LOGGED if row[1] < steps])
    file = folder / "metrics.csv"
    return file.read_bytes() if file.is_file() else b""


def test_rows_are_what_was_logged_under_a_column_each(tmp_path: Path) -> None:
    log(metrics_logger(tmp_path), LOGGED)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [{key: str(value) for key, value in {**metrics, "step": step}.items()} for metrics, step in LOGGED]
    assert [{key: value for key, value in row.items() if value} for row in rows] == expected


@pytest.mark.parametrize("step", range(1, 5))
def test_a_run_killed_at_any_byte_and_resumed_has_the_file_of_one_in_one_go(step: int, tmp_path: Path) -> None:
    """Byte for byte: right after it has forgotten, and when it has logged again what the kill has cut off."""
    whole, before = content_of(tmp_path / "whole", 4), content_of(tmp_path / "before", step)
    saved = whole.index(b"\r\n", whole.rindex(f",{step - 1},".encode())) + 2  # the checkpoint came after this row
    cut = tmp_path / "cut" / "metrics.csv"
    cut.parent.mkdir()
    for length in range(saved, len(whole) + 1):
        cut.write_bytes(whole[:length])
        logger = metrics_logger(cut.parent)
        logger.forget_after(step)
        assert cut.read_bytes() == before
        log(logger, [row for row in LOGGED if row[1] >= step])
        assert cut.read_bytes() == whole


@pytest.mark.parametrize(
    "left", [b"", b"epo", b"epoch,st", b"\0" * 40, b"\xff\xfe\n\x00\n", b"epoch,step\r\n", b'epoch,step\r\n0,"1\r\n']
)
def test_a_file_without_a_whole_row_is_begun_anew(left: bytes, tmp_path: Path) -> None:
    whole = content_of(tmp_path / "whole", 4)
    (tmp_path / "metrics.csv").write_bytes(left)
    log(metrics_logger(tmp_path), LOGGED)
    assert (tmp_path / "metrics.csv").read_bytes() == whole


def test_what_a_crash_left_amid_the_rows_goes_and_they_stay(tmp_path: Path) -> None:
    whole = content_of(tmp_path, 4)
    lines = whole.splitlines(keepends=True)
    (tmp_path / "metrics.csv").write_bytes(b"".join([*lines[:2], b"\0" * 7 + b"\r\n", *lines[2:]]))
    metrics_logger(tmp_path).save()
    assert (tmp_path / "metrics.csv").read_bytes() == whole


def test_a_new_run_forgets_all_and_one_without_rows_makes_no_file(tmp_path: Path) -> None:
    logger = metrics_logger(tmp_path)
    logger.forget_after(0)
    assert not (tmp_path / "metrics.csv").exists()
    log(logger, LOGGED)
    logger.forget_after(0)
    log(logger, LOGGED[:1])
    assert (tmp_path / "metrics.csv").read_bytes() == content_of(tmp_path / "first", 1)


def test_a_kill_while_columns_are_added_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = metrics_logger(tmp_path)
    log(logger, LOGGED[:1])
    before = (tmp_path / "metrics.csv").read_bytes()

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        log(logger, LOGGED[1:2])
    assert (tmp_path / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("room", range(0, 130, 10))
def test_rows_wait_while_the_disk_is_full_and_none_is_ever_half_there(
    room: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, logger = content_of(tmp_path / "whole", 4), metrics_logger(tmp_path)
    file = tmp_path / "metrics.csv"
    with no_file_above(room):
        log(logger, LOGGED[:-1])
        assert not file.exists() or metrics_logger(tmp_path).experiment._instead is None, "a row is torn"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"cannot write {file} (File too large): training goes on; make room" in said
    log(logger, LOGGED[-1:])
    assert file.read_bytes() == whole and [path.name for path in tmp_path.iterdir() if path.is_file()] == [
        "metrics.csv"
    ]
    assert capsys.readouterr().err == f"deocc: {file} can be written again\n"


@pytest.mark.parametrize("written", [0, 3, 6])
def test_rows_are_forgotten_in_the_file_and_in_memory_where_it_cannot_be_written(
    written: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log(metrics_logger(tmp_path), LOGGED[:written])
    logger = metrics_logger(tmp_path)
    with no_file_above(0):
        log(logger, LOGGED[written:])
        logger.forget_after(2)
        log(logger, LOGGED[3:4])
    assert "cannot write" in capsys.readouterr().err
    log(logger, LOGGED[4:])
    assert (tmp_path / "metrics.csv").read_bytes() == content_of(tmp_path / "whole", 4)


def panel_of(folder: Path, step: int) -> None:
    callback, loop = PanelCallback(), SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=step))
    trainer: Any = SimpleNamespace(
        loggers=[],
        fit_loop=loop,
        sanity_checking=False,
        fast_dev_run=False,
        is_global_zero=True,
        default_root_dir=str(folder),
    )
    callback.on_validation_epoch_start(trainer, None)  # type: ignore[arg-type]
    faces = torch.zeros(1, 3, 8, 8)
    callback.on_validation_batch_end(
        trainer, None, {}, {"face": faces, "masked_face": faces, "kind": torch.tensor([0])}, 0
    )
    callback.on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]


def test_a_panel_that_finds_no_room_is_left_out_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_file_above(20):
        panel_of(tmp_path, 3)
    assert list((tmp_path / "panels").iterdir()) == []
    assert f"cannot write {tmp_path / 'panels'} (File too large): training goes on" in capsys.readouterr().err
    panel_of(tmp_path, 4)
    with Image.open(tmp_path / "panels" / "step-0000004.png") as picture:
        assert picture.size[0] > 100


class Line(pl.LightningModule):
    """A weight that follows from the batches alone; a row a batch and one a validation."""

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


class KeepAndBreak(pl.Callback):
    """Saves the loggers and keeps the step where a batch begins, and breaks the run some batches later."""

    def __init__(self, keep: int, fail: int) -> None:
        self.keep, self.fail = keep, fail

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if logged_step(trainer) == self.keep:
            for logger in trainer.loggers:
                logger.save()
            self.kept = logged_step(trainer)
        if logged_step(trainer) == self.fail:
            raise OSError("the machine was switched off")


@pytest.mark.parametrize("keep", [3, 4, 6])
def test_lightnings_steps_are_the_ones_that_are_forgotten(keep: int, tmp_path: Path) -> None:
    """The rows of the validation right before the checkpoint stay, those of the batch that begins there go: by the file in one go."""
    data = DataLoader(TensorDataset(torch.arange(1.0, 4.0)))

    def fit(folder: Path, callback: pl.Callback) -> None:
        quiet = {
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
        }
        settings = {"accelerator": "cpu", "max_epochs": 3, "log_every_n_steps": 1, "default_root_dir": folder}
        pl.Trainer(**settings, **quiet, logger=metrics_logger(folder), callbacks=callback).fit(Line(), data, data)  # type: ignore[arg-type]

    fit(tmp_path / "whole", KeepAndBreak(-1, -1))
    rows = (tmp_path / "whole" / "metrics.csv").read_text().splitlines(keepends=True)
    stop = KeepAndBreak(keep, 8)
    with pytest.raises(OSError, match="switched off"):
        fit(tmp_path / "broken", stop)
    metrics_logger(tmp_path / "broken").forget_after(stop.kept)
    kept = (tmp_path / "broken" / "metrics.csv").read_text().splitlines(keepends=True)
    validations = (keep // 3) if keep >= 3 else 0
    assert len(kept) == 1 + keep + validations
    assert [line.rstrip() for line in kept] == [line.rstrip() for line in rows[: len(kept)]]


def test_a_row_is_added_and_the_file_not_written_anew(tmp_path: Path) -> None:
    logger = metrics_logger(tmp_path)
    log(logger, LOGGED[:1])
    before = (tmp_path / "metrics.csv").stat().st_ino
    log(logger, LOGGED[:1])
    assert (tmp_path / "metrics.csv").stat().st_ino == before
