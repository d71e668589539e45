"""Accidents of a training, as callbacks for `--trainer.callbacks+`, and `deocc` in its own process."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from tests.conftest import ROOT, SMALL, TINY_STAGE1

DEOCC = str(Path(sys.executable).with_name("deocc"))
SHORT = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "5", "--trainer.limit_val_batches", "1"]
SHORT += [
    "--trainer.check_val_every_n_epoch",
    "1",
    "--trainer.log_every_n_steps",
    "1",
    "--checkpoints.every_batches",
    "2",
]
TWO_PROCESSES = [
    "--config",
    str(ROOT / "configs/trainer/ddp.yaml"),
    "--trainer.accelerator",
    "cpu",
    "--trainer.devices",
    "2",
]


class Strike(pl.Callback):
    """Sends a signal to this process during a step: the loss is computed, the weights are not yet updated.

    Args:
        epoch: of the step.
        batch: of the step.
        signum: the signal; 9 kills.
        rank: of the process.
        times: how often the signal is sent.
    """

    def __init__(self, epoch: int = 1, batch: int = 3, signum: int = 9, rank: int = 0, times: int = 1) -> None:
        self.place, self.signum, self.rank, self.times = (epoch, batch), signum, rank, times

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Send the signal at its step."""
        place = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx
        if place == self.place and trainer.global_rank == self.rank:
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)
            self.times = 0


def struck(**settings: int) -> list[str]:
    """Return the arguments that add a `Strike`."""
    argv = ["--trainer.callbacks+", "tests.faults.accidents.Strike"]
    return argv + [f"--trainer.callbacks.init_args.{name}={value}" for name, value in settings.items()]


def fit(
    *argv: str, stage: str = "inpaint", timeout: float = 240, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a small training from the root of the repository; it may fail."""
    own = TINY_STAGE1 if stage == "inpaint" else []
    command = [DEOCC, "fit", "--config", str(ROOT / f"configs/{stage}.yaml"), *SMALL, *own, *SHORT, *argv]
    return run(command, timeout, **environment)


def resume(folder: Path, *argv: str, timeout: float = 240, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `deocc fit --resume` with the changed settings only."""
    return run([DEOCC, "fit", "--resume", str(folder), *argv], timeout, **environment)


def run(command: list[str], timeout: float = 240, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command and return its exit code and output."""
    known = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    known["DEOCC_BFLOAT16"] = "0"  # which importing an accident would set, too
    passed = {name: value for name, value in os.environ.items() if name in ("HOME", "DEOCC_CACHE", "TMPDIR")}
    heard = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job ignores it, and its children would too
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=known | passed | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    finally:
        signal.signal(signal.SIGINT, heard)


class Spoil(pl.Callback):
    """Sets the clean faces of the second batch of the second epoch to NaN.

    Args:
        rank: of the process; None: all.
    """

    def __init__(self, rank: int | None = None) -> None:
        self.rank = rank

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Spoil the batch."""
        if (trainer.current_epoch, batch_idx) == (1, 1) and self.rank in (None, trainer.global_rank):
            batch["face"].fill_(float("nan"))


class FillDisk(pl.Callback):
    """Lets the next checkpoint be written to a full disk; the attempt after it succeeds.

    Args:
        epoch: of the step.
        batch: of the step.
    """

    def __init__(self, epoch: int = 0, batch: int = 1) -> None:
        self.place = (epoch, batch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Replace the draft by a device that is always full."""
        if (trainer.current_epoch, batch_idx) == self.place:
            folder = Path(trainer.default_root_dir) / "checkpoints"
            folder.mkdir(exist_ok=True)
            (folder / ".next.ckpt.part").symlink_to("/dev/full")
