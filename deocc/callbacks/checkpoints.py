"""A run's checkpoints: the newest and the one before, written in between steps, so that a training resumes bit for bit.

A checkpoint is written after every epoch, every so many minutes in between, and when a signal asks the training to stop. It arrives as
`next.ckpt`, `last.ckpt` becomes `previous.ckpt`, and `next.ckpt` becomes `last.ckpt`: whenever a kill comes, an intact one is there.

A step begins where all of the one before is done, its log included; there it is saved, and there it is resumed. Everything random follows
from seeds, images, epochs and steps, so no generator's state belongs to a checkpoint.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.strategies import ModelParallelStrategy

from deocc import runs
from deocc.callbacks.dashboards import logged_step
from deocc.networks.weights import read_checkpoint

ASKING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; the end that a machine announces; what SLURM sends ahead of a time limit (`--signal=USR1@120`)."""

_SAID: Final = {
    signal.SIGINT: "Ctrl-C: stopping after this step, with a checkpoint; Ctrl-C again stops at once",
    signal.SIGTERM: "SIGTERM: stopping after this step, with a checkpoint",
    signal.SIGUSR1: "SIGUSR1: stopping after this step, with a checkpoint",
}


class TrainingStopped(BaseException):
    """A training that was asked to stop, and has; not an `Exception`, so that nothing on the way takes it for an error to be handled.

    Attributes:
        signum: the signal that asked.
        run: the run folder.
        saved: whether a checkpoint of the very last step was written; False where it was stopped at once.
    """

    def __init__(self, signum: int, run: str, saved: bool) -> None:
        super().__init__(signum, run, saved)
        self.signum, self.run, self.saved = signum, run, saved


class StopSignals:
    """Notes the first signal of `ASKING`; the second one raises `TrainingStopped` wherever the training is."""

    def __init__(self) -> None:
        self.received: int = 0
        self._run, self._process, self._listening = "", os.getpid(), False
        self._former: dict[int, Callable[..., Any] | int | None] = {}

    def listen(self, run: str) -> None:
        """Take over the signals, or take them back from whoever did since. Python allows that in the main thread only.

        One that is ignored stays so: a shell lets what it starts in the background ignore the Ctrl-C that is meant for others.

        Args:
            run: the folder of the run that a signal stops.
        """
        self._run = run
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN]
            former: dict[int, Callable[..., Any] | int | None] = {
                number: signal.signal(number, self._note) for number in heard
            }
            self._former = self._former or former
            self._listening = True

    def leave(self) -> None:
        """Give the signals back."""
        self._listening, self.received = False, 0
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked loader worker, which the training ends when it stops
        if not self._listening:  # Lightning puts back what it found, after we have left
            signal.signal(signum, self._former[signum] or signal.SIG_DFL)
            os.kill(self._process, signum)
        elif self.received:
            raise TrainingStopped(signum, self._run, saved=False)
        else:
            self.received = signum
            if os.environ.get("LOCAL_RANK", "0") == "0":
                os.write(2, f"\ndeocc: {_SAID[signal.Signals(signum)]}\n".encode())  # print could meet itself here


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and renames, so that a kill leaves the earlier file; reads tensors and plain values only.

    A file that cannot be written stops nothing: `failure` says why, and stderr gets a line.
    """

    failure: str | None = None
    """Why the last checkpoint could not be written."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write the file and let the disk confirm it, then give it its name."""
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
            _confirm(target.parent)
            self.failure = None
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer, where it could not finish the archive
            with suppress(OSError):
                part.unlink()
            self.failure = _reason(error)
            print(
                f"deocc: cannot write {target} ({self.failure}): training goes on; make room, it is tried again",
                file=sys.stderr,
                flush=True,
            )

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content, on the CPU; whatever `weights_only` says, nothing in the file is executed.

        Raises:
            FileNotFoundError: no file there.
            ValueError: the file is damaged or no checkpoint.
        """
        return read_checkpoint(Path(path))


def _confirm(folder: Path) -> None:
    """Make the new name last: a rename lies in the folder, not in the file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__context__
    return cause.strerror or str(cause) if isinstance(cause, OSError) else " ".join(str(error).split())[:120]


_SAVE: Final = 1  # below every signal's number
_ATTEMPTS, _PAUSE = 40, 15.0  # for ten minutes somebody can make room for the weights that a whole training gave


class CheckpointCallback(Checkpoint):
    """Writes checkpoints to `RUN/checkpoints`, RUN being the trainer's root folder, and obeys the signals that ask a training to stop.

    Args:
        every_minutes: write one when so much time has passed since the last; None: after epochs only. By the clock that never jumps.
        every_batches: write one after so many batches of an epoch, too.

    Raises:
        ValueError: an interval that is not above 0.
    """

    def __init__(self, every_minutes: float | None = 10.0, every_batches: int | None = None) -> None:
        for name, value in (("every_minutes", every_minutes), ("every_batches", every_batches)):
            if value is not None and value <= 0:
                raise ValueError(f"checkpoints.{name} is {value}: choose a number above 0, or null")
        self.every_minutes, self.every_batches = every_minutes, every_batches
        self._signals, self._io = StopSignals(), DurableCheckpointIO()
        self._since, self._between, self._begun, self._saved = time.monotonic(), False, False, True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write and read by `DurableCheckpointIO`; listen to signals, in place of Lightning's handlers, which act amid a step."""
        if not isinstance(trainer.strategy, ModelParallelStrategy):  # it writes by itself and takes no other way
            trainer.strategy.checkpoint_io = self._io
        if stage == "fit":
            self._signals.listen(trainer.default_root_dir)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._signals.leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._signals.leave()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count minutes; take the signals back from Lightning's handlers, which came since."""
        self._since, self._begun = time.monotonic(), False
        self._signals.listen(trainer.default_root_dir)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save the steps before this one where it is time to; stop where a signal asked."""
        if not self._begun:
            _forget_what_comes_again(trainer)
        wish = _highest(trainer, self._wish(batch_idx))
        if wish and batch_idx % trainer.accumulate_grad_batches == 0:
            if batch_idx > 0 and self._begun:  # else there is nothing new since the last one
                self._save(trainer, between=True)
            if wish > _SAVE:
                raise TrainingStopped(wish, trainer.default_root_dir, self._saved)
        self._begun = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Insist that the weights be written.

        Raises:
            OSError: they cannot, for ten minutes.
        """
        for _ in range(_ATTEMPTS):
            if self._saved:
                return
            time.sleep(_PAUSE)
            self._save(trainer)
        folder = Path(trainer.default_root_dir) / runs.CHECKPOINTS
        raise OSError(
            f"the trained weights cannot be written to {folder} ({self._io.failure}): make room and resume the run"
        )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count the batch that is fetched, but not begun, as not fetched."""
        if self._between:
            _recount(checkpoint["loops"]["fit_loop"])

    def _wish(self, batch_idx: int) -> int:
        if self._signals.received:
            return self._signals.received
        late = self.every_minutes is not None and time.monotonic() - self._since > 60 * self.every_minutes
        due = self.every_batches is not None and batch_idx > 0 and batch_idx % self.every_batches == 0
        return _SAVE if late or due else 0

    def _save(self, trainer: pl.Trainer, between: bool = False) -> None:
        """Write a checkpoint, if possible; every process takes part."""
        self._since = time.monotonic()
        if getattr(trainer, "fast_dev_run", False):
            return
        for logger in trainer.loggers:
            logger.save()
        folder = Path(trainer.default_root_dir) / runs.CHECKPOINTS
        self._between, self._io.failure = between, None
        trainer.save_checkpoint(folder / runs.NEXT, weights_only=False)
        self._between = False
        self._saved = trainer.strategy.broadcast(self._io.failure is None)
        if self._saved and trainer.is_global_zero:
            _rotate(folder)


def _forget_what_comes_again(trainer: pl.Trainer) -> None:
    """Drop what an interrupted run logged after the checkpoint that this one goes on from."""
    for logger in trainer.loggers:
        if hasattr(logger, "forget_after") and trainer.is_global_zero:
            logger.forget_after(logged_step(trainer))


def _rotate(folder: Path) -> None:
    last = folder / runs.LAST
    try:
        if last.exists():
            last.replace(folder / runs.PREVIOUS)
        (folder / runs.NEXT).replace(last)
    except OSError as error:
        print(
            f"deocc: cannot rename {folder / runs.NEXT} ({error.strerror}): it is the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )


def _highest(trainer: pl.Trainer, wish: int) -> int:
    """The greatest wish of all processes, which so save or stop together."""
    if trainer.world_size == 1:
        return wish
    return int(trainer.strategy.reduce(torch.tensor(float(wish), device=trainer.strategy.root_device), reduce_op="max"))


def _recount(fit_loop: dict[str, Any]) -> None:
    """Make counters look as at the end of the batch before, which is where Lightning knows how to go on from in an epoch.

    There it has counted the batch as processed, and counts it as completed, and its step as logged, when it resumes.
    """
    batches = fit_loop["epoch_loop.batch_progress"]
    for counts in (batches["total"], batches["current"]):
        counts["ready"] -= 1
        counts["completed"] -= 1
    batches["is_last_batch"] = False
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
