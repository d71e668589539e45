"""Checkpoints of a run, from which a training resumes bit for bit, and the signals that stop a training.

A checkpoint is written to `next.ckpt`; then `last.ckpt` becomes `previous.ckpt`, and `next.ckpt` becomes `last.ckpt`. A
kill at any time leaves at least one complete file.

Resuming within an epoch uses Lightning's own state: the loops resume from their state at the end of a batch, and the
data loader (`deocc.data.loader.FaceLoader`) from its `state_dict`. Everything random follows from seeds, images, epochs
and steps, so that no random state belongs to a checkpoint.
"""

import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from deocc import runs
from deocc.callbacks.loggers import truncate_logs
from deocc.files import replace_file
from deocc.messages import describe_error
from deocc.networks.weights import read_checkpoint

# Ctrl-C; the end of a machine or job; what SLURM sends before a time limit (`--signal=USR1@120`)
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_SAVE: Final = 1  # requested action, smaller than the number of any signal in STOP_SIGNALS
_ATTEMPTS, _PAUSE = 40, 15.0  # the final checkpoint is retried for ten minutes, in which the user can free space
_logger = logging.getLogger(__name__)


class TrainingStopped(BaseException):
    """A signal has stopped the training. Not an `Exception`, so that no handler of errors catches it."""

    def __init__(self, signum: int, run: str, saved: bool) -> None:
        super().__init__(signum, run, saved)
        self.signum, self.run = signum, run
        self.saved = saved  # a checkpoint of the last step was written; False after a second signal


class StopSignals:
    """Record the first of `STOP_SIGNALS` in `received`; a second one raises `TrainingStopped` immediately."""

    def __init__(self) -> None:
        self.received = 0  # number of the first signal; 0 before it
        self._run, self._process, self._installed = "", os.getpid(), False
        self._previous: dict[int, Any] = {}

    def install(self, run: str) -> None:
        """Install the handlers, if this is the main thread; a second call takes them back from Lightning.

        A signal that is ignored stays ignored: a shell starts background jobs that way.
        """
        self._run = run
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous.setdefault(number, signal.signal(number, self._handle))
        self._installed = True

    def remove(self) -> None:
        """Restore the previous handlers."""
        self._installed, self.received = False, 0
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked loader worker, which the training stops by itself
        if not self._installed:  # Lightning restores this handler after `remove`
            signal.signal(signum, self._previous[signum] or signal.SIG_DFL)
            os.kill(self._process, signum)
        elif self.received:
            raise TrainingStopped(signum, self._run, saved=False)
        else:
            self.received = signum
            if os.environ.get("LOCAL_RANK", "0") == "0":
                hint = "; Ctrl-C again stops at once" if signum == signal.SIGINT else ""
                line = f"\ndeocc: {signal.Signals(signum).name}: stopping after this step, with a checkpoint{hint}\n"
                os.write(2, line.encode())  # a handler must not call print, which it may have interrupted


class DurableCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically and read only tensors and plain values; a failed write is logged."""

    failure: str | None = None  # why the last checkpoint could not be written; None if it was

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file, wait until it is on the disk, and rename it."""
        target, self.failure = Path(path), None
        try:
            draft = target.with_name(f".{target.name}.part")
            with replace_file(target, durable=True, draft=draft), draft.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer, on top of an OSError
            cause = error if isinstance(error, OSError) else error.__context__
            self.failure = (isinstance(cause, OSError) and cause.strerror) or describe_error(error)
            advice = "the training continues and tries again; free some space"
            _logger.warning("cannot write %s (%s): %s", target, self.failure, advice)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Return the content on the CPU; never executes anything in the file."""
        return read_checkpoint(Path(path))


class CheckpointCallback(Checkpoint):
    """Write a checkpoint after every epoch, at intervals, and after the current step when a signal stops the training.

    Args:
        every_minutes: write one after this time within an epoch; None: only after epochs.
        every_batches: also write one after this number of batches within an epoch.
    """

    def __init__(self, every_minutes: float | None = 10.0, every_batches: int | None = None) -> None:
        for name, value in (("every_minutes", every_minutes), ("every_batches", every_batches)):
            if value is not None and value <= 0:
                raise ValueError(f"checkpoints.{name} is {value}: choose a number above 0, or null")
        self.every_minutes, self.every_batches = every_minutes, every_batches
        self._signals, self._io = StopSignals(), DurableCheckpointIO()
        self._last_save, self._saved = time.monotonic(), True
        self._logs_truncated = False
        self._stop_signal = 0
        self._loops: dict[str, Any] | None = None  # state at the end of the step to be saved
        self._loader_states: list[dict[str, Any]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Install the checkpoint writer and the signal handlers."""
        trainer.strategy.checkpoint_io = self._io
        if stage == "fit":
            self._signals.install(trainer.default_root_dir)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the signal handlers."""
        self._signals.remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the signal handlers."""
        self._signals.remove()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, take the signals back from Lightning, which acts within a step, and resume the loader."""
        self._last_save, self._logs_truncated = time.monotonic(), False
        self._loops, self._stop_signal = None, 0
        self._signals.install(trainer.default_root_dir)
        loader: Any = trainer.train_dataloader
        if self._loader_states and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(self._loader_states[0])
        self._loader_states = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the state of the loops, if a checkpoint of this step is requested.

        Lightning resumes within an epoch from the state at this hook. The checkpoint is written in the next
        `on_train_batch_start`: only then the module's running average, the validation and the log include this step.
        """
        late = self.every_minutes is not None and time.monotonic() - self._last_save > 60 * self.every_minutes
        due = self.every_batches is not None and (batch_idx + 1) % self.every_batches == 0
        action = _max_over_ranks(trainer, self._signals.received or (_SAVE if late or due else 0))
        if action and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._loops = trainer.fit_loop.state_dict()
            self._stop_signal = action if action != _SAVE else 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Write the requested checkpoint of the previous step; raise `TrainingStopped` if a signal asked for it."""
        if not self._logs_truncated:
            truncate_logs(trainer)
            self._logs_truncated = True
        if self._loops is not None:
            self._save(trainer)
        if self._stop_signal:
            raise TrainingStopped(self._stop_signal, trainer.default_root_dir, self._saved)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a checkpoint of the epoch."""
        self._loops = None
        self._save(trainer)
        self._stop_signal = _max_over_ranks(trainer, self._signals.received)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Retry the final checkpoint until it succeeds; raise OSError after ten minutes."""
        for _ in range(_ATTEMPTS):
            if self._saved:
                return
            time.sleep(_PAUSE)
            self._save(trainer)
        folder = Path(trainer.default_root_dir) / runs.CHECKPOINTS
        raise OSError(f"cannot write the trained weights to {folder} ({self._io.failure}): free some space and resume")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Use the kept state of the loops, except that of a validation that has run since."""
        if self._loops is not None:
            kept = {key: value for key, value in self._loops.items() if ".val_loop." not in key}
            checkpoint["loops"]["fit_loop"].update(kept)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the data loader, which Lightning forgets if `estimated_stepping_batches` is used."""
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        self._loader_states = loop.get("state_dict", {}).get("combined_loader", [])

    def _save(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint, if possible; all ranks take part."""
        self._last_save = time.monotonic()
        if getattr(trainer, "fast_dev_run", False):
            self._loops = None
            return
        for logger in trainer.loggers:
            logger.save()
        folder = Path(trainer.default_root_dir) / runs.CHECKPOINTS
        new, last = folder / runs.NEXT, folder / runs.LAST
        self._io.failure = None
        trainer.save_checkpoint(new, weights_only=False)
        self._loops = None
        self._saved = trainer.strategy.broadcast(self._io.failure is None)
        if self._saved and trainer.is_global_zero:
            try:
                if last.exists():
                    last.replace(folder / runs.PREVIOUS)
                new.replace(last)
            except OSError as error:
                _logger.warning("cannot rename %s (%s): it is the newest checkpoint", new, error.strerror)


def _max_over_ranks(trainer: pl.Trainer, value: int) -> int:
    if trainer.world_size == 1:
        return value
    tensor = torch.tensor(float(value), device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(tensor, reduce_op="max"))
