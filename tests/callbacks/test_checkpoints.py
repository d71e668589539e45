"""When checkpoints are written, under which names, and what signals do."""

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
    """Notes after how many steps a checkpoint is written."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.steps.append(trainer.global_step)


class Send(pl.Callback):
    """Sends this process signals in the midst of the third step."""

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
def test_when_one_is_written(settings: dict[str, Any], steps: list[int], tmp_path: Path) -> None:
    written = Written()
    fit(Small(), tmp_path, written, CheckpointCallback(**settings), epochs=2)
    assert written.steps == steps
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert (step_of(tmp_path, "last"), step_of(tmp_path, "previous")) == (steps[-1], steps[-2])


def test_a_clock_that_jumps_writes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 86400.0 * next(days))
    written = Written()
    fit(Small(), tmp_path, written, CheckpointCallback(every_minutes=1))
    assert written.steps == [4]


@pytest.fixture
def _as_in_a_terminal() -> Iterator[None]:
    """Whatever the test suite itself was told to ignore, and whatever a test leaves."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_signal_that_is_ignored_stays_so(_as_in_a_terminal: None, tmp_path: Path) -> None:
    """As in the background of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fit(Small(), tmp_path, Send(signal.SIGINT), CheckpointCallback())
    assert step_of(tmp_path, "last") == 4 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("_as_in_a_terminal")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_waits_for_the_step_and_the_signals_are_given_back(
    signum: signal.Signals, tmp_path: Path
) -> None:
    with pytest.raises(TrainingStopped) as stop:
        fit(Small(), tmp_path, Send(signum), CheckpointCallback())
    assert (stop.value.signum, stop.value.saved, stop.value.run) == (signum, True, str(tmp_path))
    assert step_of(tmp_path, "last") == 3
    with pytest.raises(KeyboardInterrupt):  # what is left of ours hands it on
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


@pytest.mark.usefixtures("_as_in_a_terminal")
def test_the_second_signal_does_not_wait(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped) as stop:
        fit(Small(), tmp_path, Send(signal.SIGTERM, signal.SIGINT), CheckpointCallback())
    assert not stop.value.saved and not (tmp_path / "checkpoints").exists()


def test_a_file_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, writer = tmp_path / "a.ckpt", DurableCheckpointIO()
    writer.save_checkpoint({"value": torch.ones(3)}, target)
    (tmp_path / ".a.ckpt.part").symlink_to("/dev/full")
    writer.save_checkpoint({"value": torch.zeros(10**6)}, target)
    assert writer.failure == "No space left on device"
    assert f"cannot write {target} (No space left on device)" in capsys.readouterr().err
    assert torch.equal(torch.load(target, weights_only=True)["value"], torch.ones(3))
    writer.save_checkpoint({"value": torch.zeros(3)}, target)
    assert writer.failure is None and [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("settings", [{"every_minutes": 0}, {"every_batches": -1}])
def test_intervals_above_0_are_asked_for(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="choose a number above 0"):
        CheckpointCallback(**settings)
