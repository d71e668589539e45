"""Tells of the images that a training left out because they cannot be read: in the run folder, to the loggers, in the terminal."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any, Final, Literal, cast

import pytorch_lightning as pl
import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from deocc.callbacks.dashboards import logged_step
from deocc.data.quarantine import Quarantine

FOLDER: Final = "non_finite"
"""The folder in a run folder that holds a file a step and process."""

_NORMALISATIONS = nn.modules.batchnorm._BatchNorm
_IDS = ("index", "identity", "kind", "seed", "flipped")
_MOST_FILES, _MOST_IN_A_ROW = 100, 20  # OURS: more files tell no more; so many bad steps in a row are no accident


class FiniteCallback(pl.Callback):
    """Looks at the loss terms and the gradients before every optimiser's step.

    Where one is not finite in any process, each process writes `RUN/non_finite/step-N.json`: the terms, and of its batch the images'
    positions in the face set, identities, kinds and seeds, from which the batch can be made again. Under a GradScaler only the terms count:
    gradients that overflow are its daily work, and it leaves such steps out itself.

    Args:
        action: "stop" ends the training with an error; "skip" leaves the step out, as if its gradients were not there, and puts the running
            statistics of batch normalisation back; 20 steps in a row that are left out end the training all the same.

    Raises:
        ValueError: an unknown action.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop") -> None:
        if action not in ("stop", "skip"):
            raise ValueError(f"non_finite.action is {action!r}: choose stop or skip")
        self.action, self.skipped = action, 0
        self._row, self._bad = 0, False
        self._batch: Any = None
        self._statistics: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep what may have to be told or put back."""
        self._batch, self._bad = batch, False
        if self.action == "skip":
            layers = [
                module for module in pl_module.modules() if isinstance(module, _NORMALISATIONS) and module.training
            ]
            self._statistics = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Stop, or take the gradients away, where something is not finite.

        Raises:
            ValueError: something is not finite, and the training is to stop.
        """
        terms: dict[str, Tensor] = getattr(pl_module, "terms", {})
        if self._all_finite(trainer, terms, optimizer):
            return
        self._bad = True
        self._write(trainer, terms)
        if self.action == "stop" or self._row >= _MOST_IN_A_ROW:
            raise ValueError(_told(trainer, terms))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step that was left out, and undo what it did to running statistics."""
        self._batch, self._row = None, self._row + 1 if self._bad else 0
        if self._bad:
            self.skipped += 1
            for buffer, former in self._statistics:
                buffer.copy_(former)
            pl_module.log("train/skipped", float(self.skipped))

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out."""
        return {"skipped": self.skipped, "row": self._row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped, self._row = state_dict["skipped"], state_dict["row"]

    def _all_finite(self, trainer: pl.Trainer, terms: dict[str, Tensor], optimizer: Optimizer) -> bool:
        values = [torch.stack([term.float() for term in terms.values()]).sum()] if terms else []
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            values += [torch.nn.utils.get_total_norm(_gradients(optimizer))]
        finite = (
            bool(torch.stack([value.to(values[0].device).isfinite() for value in values]).all()) if values else True
        )
        return bool(trainer.strategy.reduce_boolean_decision(finite, all=True)) if trainer.world_size > 1 else finite

    def _write(self, trainer: pl.Trainer, terms: dict[str, Tensor]) -> None:
        folder, step = Path(trainer.default_root_dir) / FOLDER, logged_step(trainer)
        rank = f"-process-{trainer.global_rank}" if trainer.world_size > 1 else ""
        found = {
            "step": step,
            "epoch": trainer.current_epoch,
            "terms": {name: str(value.item()) for name, value in terms.items()},
        }
        batch = {name: self._batch[name].tolist() for name in _IDS if name in self._batch}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if len(list(folder.iterdir())) < _MOST_FILES:
                (folder / f"step-{step:07d}{rank}.json").write_text(json.dumps(found | batch, indent=1))
        except OSError as error:
            print(f"deocc: cannot write to {folder} ({error.strerror})", file=sys.stderr, flush=True)


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    """The numbers of all gradients: of a sparse one its rows, of one that lies on several processes this one's part."""
    found: list[Any] = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    local = [gradient.to_local() if hasattr(gradient, "to_local") else gradient for gradient in found]
    return [cast(Tensor, gradient.coalesce().values() if gradient.is_sparse else gradient) for gradient in local]


def _told(trainer: pl.Trainer, terms: dict[str, Tensor]) -> str:
    shown = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
    return (
        f"a loss or its gradient is not finite at step {logged_step(trainer)} ({shown}): the batch is told in "
        f"{Path(trainer.default_root_dir) / FOLDER}; lower the rate or weight, or resume with --non_finite.action skip"
    )


QUARANTINE: Final = "quarantine.csv"
"""The file in a run folder that names the images which could not be read, and why."""


class QuarantineCallback(pl.Callback):
    """Writes `quarantine.csv` and logs `train/quarantined`, how many images were left out, whenever there are more.

    Each process finds the unreadable images among its own; what all have found is put together after each epoch. Nothing is written or
    logged where every image can be read. The data module must have a `quarantine`; one without has nothing to tell.
    """

    def __init__(self) -> None:
        self._told = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
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
        warnings.warn(
            f"cannot write {path} ({error.strerror}): make room; it is written again with the next image", stacklevel=2
        )


def _log(trainer: pl.Trainer, count: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics({"train/quarantined": count}, step=logged_step(trainer))
