"""Faults of a training: losses that are not finite, and images that cannot be read."""

import json
from pathlib import Path
from typing import Any, Final, Literal

import pytorch_lightning as pl
import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from deocc.callbacks.dashboards import continue_without
from deocc.callbacks.loggers import logged_step
from deocc.data.loader import Quarantine
from deocc.files import write_file

FOLDER: Final = "non_finite"  # in a run folder, with a file per step and process whose loss is not finite
QUARANTINE: Final = "quarantine.csv"  # in a run folder, with the images that cannot be read, and the reasons

_BATCH_IDS = ("index", "identity", "kind", "seed", "flipped")  # from which a batch can be recreated
_MOST_IN_A_ROW = 20  # our choice: more than that is not an accident


class FiniteCallback(pl.Callback):
    """Check the loss terms and the gradients before every optimiser step.

    If one is not finite on any rank, every rank writes `non_finite/step-N.json`: the loss terms, and the positions,
    identities, kinds and seeds of its batch, from which the batch can be recreated. With a GradScaler only the terms
    are checked, because the scaler itself skips steps whose gradients overflow. While gradients accumulate, a step has
    several batches: their terms are averaged, and their images are listed one after the other.

    Args:
        action: "stop" ends the training with an error. "skip" leaves the step out, with neither gradients nor changes
            of the running statistics of batch normalisation; 20 skipped steps in a row also end the training.

    Raises:
        ValueError: `action` is unknown.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop") -> None:
        if action not in ("stop", "skip"):
            raise ValueError(f"non_finite.action is {action!r}: choose stop or skip")
        self.action, self.skipped = action, 0
        self._skipped_in_a_row, self._stepping, self._skipping = 0, False, False
        self._batches: list[dict[str, Tensor]] = []  # `_BATCH_IDS` of the batches of this step
        self._terms: list[dict[str, Tensor]] = []  # loss terms of those before the last
        self._statistics: list[tuple[Tensor, Tensor]] = []  # buffers and their values before this step

    def on_train_batch_start(self, trainer: Any, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the images of the batch, and the running statistics that a skipped step must not change."""
        if not self._batches and self.action == "skip":
            for layer in pl_module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
                    self._statistics += [(buffer, buffer.clone()) for buffer in layer.buffers()]
        self._batches.append({name: batch[name] for name in _BATCH_IDS if name in batch})

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Raise ValueError, or remove the gradients, if something is not finite."""
        self._stepping = True
        every: list[dict[str, Tensor]] = [*self._terms, getattr(pl_module, "terms", {})]
        terms = {name: torch.stack([part[name] for part in every]).mean() for name in every[-1]}
        finite = _all_finite(terms, optimizer, scaled=getattr(trainer.precision_plugin, "scaler", None) is not None)
        if trainer.world_size > 1:
            finite = trainer.strategy.reduce_boolean_decision(finite, all=True)
        if finite:
            return
        self._skipping = True
        step, folder = logged_step(trainer), Path(trainer.default_root_dir) / FOLDER
        self._write(trainer, folder, terms)
        if self.action == "stop" or self._skipped_in_a_row >= _MOST_IN_A_ROW:
            shown = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
            raise ValueError(
                f"a loss or its gradient is not finite at step {step} ({shown}): {folder} describes the batch; "
                "lower the learning rate or the weight of a term, or resume with --non_finite.action skip"
            )
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After the last batch of a step, count a skipped step and restore the running statistics."""
        if not self._stepping:  # gradients accumulate
            self._terms.append(getattr(pl_module, "terms", {}))
            return
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if self._skipping else 0
        if self._skipping:
            self.skipped += 1
            for buffer, before in self._statistics:
                buffer.copy_(before)
            pl_module.log("train/skipped", float(self.skipped))
        self._stepping, self._skipping = False, False
        self._batches, self._terms, self._statistics = [], [], []

    def state_dict(self) -> dict[str, Any]:
        """Return the number of skipped steps."""
        return {"skipped": self.skipped, "row": self._skipped_in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to count."""
        self.skipped, self._skipped_in_a_row = state_dict["skipped"], state_dict["row"]

    def _write(self, trainer: pl.Trainer, folder: Path, terms: dict[str, Tensor]) -> None:
        """Describe the batches of this step in a file, if possible."""
        step = logged_step(trainer)
        content = {
            "step": step,
            "epoch": trainer.current_epoch,
            "terms": {name: str(value.item()) for name, value in terms.items()},
            **{name: torch.cat([batch[name] for batch in self._batches]).tolist() for name in self._batches[0]},
        }
        rank = f"-process-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = folder / f"step-{step:07d}{rank}.json"
        with continue_without(path):
            write_file(path, json.dumps(content, indent=1))


def _all_finite(terms: dict[str, Tensor], optimizer: Optimizer, scaled: bool) -> bool:
    """Check the loss terms and, unless a GradScaler has scaled them, the gradients."""
    values = [term.float() for term in terms.values()]
    if not scaled:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        values.append(nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None]))
    return not values or bool(torch.stack([value.to(values[0].device) for value in values]).isfinite().all())


class QuarantineCallback(pl.Callback):
    """Report the images that the training leaves out because they cannot be read.

    Whenever there are more of them, `quarantine.csv` is written and `train/quarantined`, their number, is logged. Each
    rank finds unreadable images among its own; they are collected after every epoch.
    """

    def __init__(self) -> None:
        self._reported = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report new images."""
        self._report(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Collect the images of all ranks, which may together be too many (ValueError)."""
        if trainer.world_size > 1:
            quarantine: Quarantine = trainer.datamodule.quarantine
            found: list[dict[str, str]] = [{}] * trainer.world_size
            torch.distributed.all_gather_object(found, quarantine.reasons)
            quarantine.merge({name: reason for reasons in found for name, reason in reasons.items()})
        self._report(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the images of a training that stops because there are too many."""
        self._report(trainer)

    def on_fit_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Print their number and the file."""
        quarantine: Quarantine = trainer.datamodule.quarantine
        if quarantine.reasons and trainer.is_global_zero:
            count = f"{len(quarantine.reasons):,} of {quarantine.number:,} images could not be read and were left out"
            file = "" if trainer.fast_dev_run else f": {Path(trainer.default_root_dir) / QUARANTINE}"
            print(f"deocc fit: {count}{file}", flush=True)

    def _report(self, trainer: Any) -> None:
        quarantine: Quarantine = trainer.datamodule.quarantine
        if len(quarantine.reasons) == self._reported or not trainer.is_global_zero:
            return
        self._reported = len(quarantine.reasons)
        if not trainer.fast_dev_run:
            path = Path(trainer.default_root_dir) / QUARANTINE
            with continue_without(path):
                quarantine.write(path)
        for logger in trainer.loggers:
            logger.log_metrics({"train/quarantined": self._reported}, step=logged_step(trainer))
