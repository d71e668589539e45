"""Tells of the images that a training left out because they cannot be read: in the run folder, to the loggers, in the terminal."""

import warnings
from pathlib import Path
from typing import Any, Final

import pytorch_lightning as pl
import torch.distributed

from deocc.callbacks.dashboard import logged_step
from deocc.data.quarantine import Quarantine

QUARANTINE: Final = "quarantine.csv"
"""The file in a run folder that names the images which could not be read, and why."""


class QuarantineCallback(pl.Callback):
    """Writes `quarantine.csv` and logs `train/quarantined`, how many images were left out, whenever there are more.

    Each process finds the unreadable images among its own; what all have found is put together after each epoch. Nothing is written or
    logged where every image can be read. The data module must have a `quarantine`; one without has nothing to tell.
    """

    def __init__(self) -> None:
        self._told = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Tell of new ones."""
        self._tell(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put together what all processes have found.

        Raises:
            ValueError: together, too many images cannot be read.
        """
        quarantine = _quarantine(trainer)
        if quarantine is None:
            return
        if trainer.world_size > 1:
            found: list[dict[str, str]] = [{}] * trainer.world_size
            torch.distributed.all_gather_object(found, quarantine.state_dict())
            quarantine.merge({name: reason for reasons in found for name, reason in reasons.items()})
        self._tell(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the last count."""
        self._tell(trainer)
        if self._told:
            _log(trainer, self._told)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write down also those that were too many."""
        self._tell(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how many there are and where they are named."""
        quarantine = _quarantine(trainer)
        if quarantine is not None and quarantine.reasons and trainer.is_global_zero:
            count = f"{len(quarantine.reasons):,} of {quarantine.number:,} images could not be read and were left out"
            where = "" if getattr(trainer, "fast_dev_run", False) else f": {_path(trainer)}"
            print(f"deocc fit: {count}{where}", flush=True)

    def _tell(self, trainer: pl.Trainer) -> None:
        quarantine = _quarantine(trainer)
        if quarantine is None or len(quarantine.reasons) == self._told or not trainer.is_global_zero:
            return
        self._told = len(quarantine.reasons)
        _log(trainer, self._told)
        if not getattr(trainer, "fast_dev_run", False):
            _write(quarantine, _path(trainer))


def _quarantine(trainer: pl.Trainer) -> Quarantine | None:
    quarantine: Quarantine | None = getattr(getattr(trainer, "datamodule", None), "quarantine", None)
    return quarantine


def _path(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / QUARANTINE


def _write(quarantine: Quarantine, path: Path) -> None:
    """Write the file; a full disk stops no training for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        quarantine.write(path)
    except OSError as error:
        warnings.warn(f"cannot write {path} ({error.strerror}): make room; it is written again with the next image", stacklevel=2)


def _log(trainer: pl.Trainer, count: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics({"train/quarantined": count}, step=logged_step(trainer))
