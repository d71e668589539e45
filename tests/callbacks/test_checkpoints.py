"""Checkpoints are written at their intervals and after signals, completely or not at all."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from deocc.callbacks import CheckpointCallback
from deocc.callbacks.checkpoints import DurableCheckpointIO, TrainingStopped
from tests.callbacks.small_training import Small, fit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Written(pl.Callback):
    """Notes the steps at which a checkpoint is written."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.steps.append(trainer.global_step)


class Send(pl.Callback):
    """Sends signals to this process during the third step."""

    def __init__(self, *signals: int) -> None:
        self.signals = signals

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if trainer.global_step == 2:
            for signum in self.signals:
                os.kill(os.getpid(), signum)


def step_of(run: Path, name: str) -> int:
    return int(torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"])


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [4, 8]),
        ({"every_batches": 3}, [3, 4, 7, 8]),
        ({"every_minutes": 1e-9}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"every_minutes": None}, [4, 8]),
    ],
    ids=["epochs", "batches", "minutes", "none"],
)
def test_checkpoint_intervals(settings: dict[str, Any], steps: list[int], tmp_path: Path) -> None:
    written = Written()
    fit(Small(), tmp_path, written, CheckpointCallback(**settings), epochs=2)
    assert written.steps == steps
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert (step_of(tmp_path, "last"), step_of(tmp_path, "previous")) == (steps[-1], steps[-2])


def test_clock_changes_write_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 86400.0 * next(days))
    written = Written()
    fit(Small(), tmp_path, written, CheckpointCallback(every_minutes=1))
    assert written.steps == [4]


@pytest.fixture
def _default_handlers() -> Iterator[None]:
    """Default signal handlers, restored after the test."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_ignored_signal_stays_ignored(_default_handlers: None, tmp_path: Path) -> None:
    """As in a background job of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fit(Small(), tmp_path, Send(signal.SIGINT), CheckpointCallback())
    assert step_of(tmp_path, "last") == 4 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("_default_handlers")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_first_signal_waits_for_the_step(signum: signal.Signals, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped) as stop:
        fit(Small(), tmp_path, Send(signum), CheckpointCallback())
    assert (stop.value.signum, stop.value.saved, stop.value.run) == (signum, True, str(tmp_path))
    assert step_of(tmp_path, "last") == 3
    with pytest.raises(KeyboardInterrupt):  # the handler that Lightning restores passes it on
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


@pytest.mark.usefixtures("_default_handlers")
def test_second_signal_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped) as stop:
        fit(Small(), tmp_path, Send(signal.SIGTERM, signal.SIGINT), CheckpointCallback())
    assert not stop.value.saved and not (tmp_path / "checkpoints").exists()


def test_full_disk_keeps_earlier_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target, writer = tmp_path / "a.ckpt", DurableCheckpointIO()
    writer.save_checkpoint({"value": torch.ones(3)}, target)
    (tmp_path / ".a.ckpt.part").symlink_to("/dev/full")
    writer.save_checkpoint({"value": torch.zeros(10**6)}, target)
    assert writer.failure == "No space left on device"
    assert f"cannot write {target} (No space left on device)" in caplog.text
    assert torch.equal(torch.load(target, weights_only=True)["value"], torch.ones(3))
    writer.save_checkpoint({"value": torch.zeros(3)}, target)
    assert writer.failure is None and [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("settings", [{"every_minutes": 0}, {"every_batches": -1}])
def test_intervals_must_be_positive(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="choose a number above 0"):
        CheckpointCallback(**settings)


class Weights(Small):
    """Updates a running average after each step, as stage 2 does, and validates within an epoch."""

    average: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(4, 8))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.average.mul_(0.5).add_(self.layer.weight.detach())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/weight", self.average.sum(), batch_size=4)

    def val_dataloader(self) -> Any:
        items: Any = [{"face": torch.zeros(8)}]
        return torch.utils.data.DataLoader(items)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_checkpoint_contains_the_whole_step(every: int, tmp_path: Path) -> None:
    """The counters are those of an epoch's middle, and the module's average includes the step."""

    class Stop(pl.Callback):
        def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step == 3:
                raise InterruptedError

    module = Weights()
    with pytest.raises(InterruptedError):
        checkpoints = CheckpointCallback(every_batches=every)
        fit(module, tmp_path, checkpoints, Stop(), val_check_interval=2, num_sanity_val_steps=0)
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    step = content["global_step"]
    assert step == {1: 3, 2: 2, 3: 3}[every] and content["epoch"] == 0
    progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert progress == {"ready": step, "started": step, "processed": step, "completed": step - 1}
    average = torch.zeros(4, 8)
    for state in [*module.seen[1:step], content["state_dict"]]:
        average = average * 0.5 + state["layer.weight"]
    torch.testing.assert_close(content["state_dict"]["average"], average)


def test_final_checkpoint_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deocc.callbacks.checkpoints._PAUSE", 0.0)
    waiting, save = iter(range(10)), torch.save

    def full(content: Any, file: Any) -> None:
        if next(waiting) < 3:
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    fit(Small(), tmp_path, CheckpointCallback())
    assert step_of(tmp_path, "last") == 4 and next(waiting) == 4

    def always(content: Any, file: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", always)
    with pytest.raises(OSError, match=r"cannot write the trained weights .*No space left on device"):
        fit(Small(), tmp_path, CheckpointCallback())
