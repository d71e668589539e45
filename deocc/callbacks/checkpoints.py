"""A run's checkpoints: the newest and the one before, written in between steps, so that a training resumes bit for bit.

A checkpoint is written after every epoch, every so many minutes in between, and when a signal asks the training to stop. It arrives as
`next.ckpt`, `last.ckpt` becomes `previous.ckpt`, and `next.ckpt` becomes `last.ckpt`: whenever a kill comes, an intact one is there.

A step begins where all of the one before is done, its log included; there it is saved, and there it is resumed. Everything random follows
from seeds, images, epochs and steps, so no generator's state belongs to a checkpoint.
"""

import sys
import time
from pathlib import Path
from typing import Any, Final

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.strategies import ModelParallelStrategy

from deocc import runs
from deocc.callbacks.checkpoint_io import DurableCheckpointIO
from deocc.callbacks.dashboard import logged_step
from deocc.callbacks.stopping import StopSignals, TrainingStopped

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

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
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
        raise OSError(f"the trained weights cannot be written to {folder} ({self._io.failure}): make room and resume the run")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
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
        print(f"deocc: cannot rename {folder / runs.NEXT} ({error.strerror}): it is the newest checkpoint", file=sys.stderr, flush=True)


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
