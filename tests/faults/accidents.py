"""What happens to a training: a callback that a test adds by `--trainer.callbacks+`, and `deocc` as a process of its own."""

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
    """Sends a signal to this process, or fails, in the midst of a step: its loss is computed and its weights are not yet moved.

    Args:
        epoch: in which it strikes.
        batch: at which it strikes.
        signum: what is sent; 9 kills.
        rank: the process that is struck.
        times: how often it is sent.
    """

    def __init__(self, epoch: int = 1, batch: int = 3, signum: int = 9, rank: int = 0, times: int = 1) -> None:
        self.place, self.signum, self.rank, self.times = (epoch, batch), signum, rank, times

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Strike where it is time."""
        place = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx
        if place == self.place and trainer.global_rank == self.rank:
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)
            self.times = 0


def struck(**settings: int) -> list[str]:
    """The words that add a `Strike`."""
    words = ["--trainer.callbacks+", "tests.faults.accidents.Strike"]
    return words + [f"--trainer.callbacks.init_args.{name}={value}" for name, value in settings.items()]


def fit(
    *words: str, stage: str = "inpaint", timeout: float = 240, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """A small training, from the repository's root as a person would start it; it may fail."""
    own = TINY_STAGE1 if stage == "inpaint" else []
    command = [DEOCC, "fit", "--config", str(ROOT / f"configs/{stage}.yaml"), *SMALL, *own, *SHORT, *words]
    return run(command, timeout, **environment)


def resume(folder: Path, *words: str, timeout: float = 240, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`deocc fit --resume`, with nothing said again but what is to differ."""
    return run([DEOCC, "fit", "--resume", str(folder), *words], timeout, **environment)


def run(command: list[str], timeout: float = 240, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A command's end, its output as text."""
    known = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    passed = {name: value for name, value in os.environ.items() if name in ("HOME", "DEOCC_CACHE", "TMPDIR")}
    heard = signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a suite in the background ignores it, and so would what it starts
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
    """Makes the clean faces of the second epoch's second batch into what is no number.

    Args:
        rank: the process in which it does; None: all.
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
    """Lets the file that the next checkpoint is written to lie on a full disk; what is tried again finds room.

    Args:
        epoch: in which the disk is full.
        batch: at which it is.
    """

    def __init__(self, epoch: int = 0, batch: int = 1) -> None:
        self.place = (epoch, batch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the device there that Linux has for that."""
        if (trainer.current_epoch, batch_idx) == self.place:
            folder = Path(trainer.default_root_dir) / "checkpoints"
            folder.mkdir(exist_ok=True)
            (folder / ".next.ckpt.part").symlink_to("/dev/full")
