"""Training steps: learning-rate schedule, micro-batches, gradient norms, frozen networks."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from deocc.batch import MaskedFaceBatch

_WARMUP = 0.05  # fraction of the steps
Terms = dict[str, Tensor]
"""Weighted losses, scalars by name."""


class WarmupCosine(LRScheduler):
    """Linear warm-up and cosine decay to 0, to be stepped after every training step.

    The learning rates of the optimiser are the peak values; `steps_left` returns the number of steps that the training
    will still take, of which a twentieth is the warm-up. A resumed training takes its length and the settings of the
    optimiser from the present configuration: only the number of steps taken is loaded.
    """

    def __init__(self, optimizer: Optimizer, steps_left: Callable[[], int]) -> None:
        self._steps_left, self._steps = steps_left, steps_left()
        super().__init__(optimizer)
        self._step_count += 1  # torch would warn when a GradScaler skips the first step of the optimiser
        unsaved = {"params", "lr"}
        self._settings = [{k: v for k, v in group.items() if k not in unsaved} for group in optimizer.param_groups]

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each parameter group."""
        rising = max(1, round(self._steps * _WARMUP))
        if self.last_epoch < rising:
            factor = (self.last_epoch + 1) / rising
        else:
            progress = (self.last_epoch - rising) / max(1, self._steps - rising)
            factor = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return [rate * factor for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps taken, under the name that torch uses."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the steps taken. The optimiser must be loaded first, since its settings are set back."""
        self.last_epoch = state_dict["last_epoch"]
        self._steps = self.last_epoch + self._steps_left()
        self._last_lr = self.get_lr()
        for group, settings, rate in zip(self.optimizer.param_groups, self._settings, self._last_lr, strict=True):
            group.update(settings, lr=rate)


def steps_left(trainer: pl.Trainer) -> int:
    """Return the number of optimiser steps from the present position of the trainer to the end of the training."""
    if trainer.estimated_stepping_batches == math.inf:  # loads the training data, too
        raise ValueError(
            "the learning rate falls to 0 at the end of the training, but trainer.max_epochs and trainer.max_steps are "
            "both unlimited: set one of them; trainer.max_time may end the training earlier"
        )
    left: float = math.inf
    if trainer.max_epochs not in (None, -1):
        epochs: Any = trainer.fit_loop.epoch_progress.current  # typed too narrowly
        accumulated = trainer.accumulate_grad_batches
        per_epoch = math.ceil(trainer.num_training_batches / accumulated)
        left = (trainer.max_epochs - epochs.processed) * per_epoch
        if epochs.started > epochs.processed:  # within an epoch, whose number of batches may have changed since
            done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            left -= min(math.ceil(done / accumulated), per_epoch)
    if trainer.max_steps != -1:
        left = min(left, trainer.max_steps - trainer.global_step)
    return max(0, int(left))


def check_loss_weights(hparams: Mapping[str, Any], terms: tuple[str, ...]) -> None:
    """Raise ValueError unless all weights `TERM_weight` are at least 0 and one is positive."""
    weights = {f"{term}_weight": hparams[f"{term}_weight"] for term in terms}
    if not all(weight >= 0 for weight in weights.values()) or not any(weights.values()):
        given = ", ".join(f"{name} {weight}" for name, weight in weights.items())
        raise ValueError(f"the weights of the losses must be at least 0 and not all 0, got {given}")


def gradient_norms(terms: Terms, embedding: Tensor, world_size: int = 1) -> Terms:
    """Compute the gradient norm of each term at the embedding (B, D) of this rank, averaged over the batch.

    The optimiser averages gradients over `world_size` ranks. The graph is kept for the backward pass.
    """
    gradients = {name: torch.autograd.grad(term, embedding, retain_graph=True)[0] for name, term in terms.items()}
    return {name: gradient.float().norm(dim=1).mean() / world_size for name, gradient in gradients.items()}


def check_stage(checkpoint: Mapping[str, Any], expected: str) -> None:
    """Raise ValueError unless the module of the stage `expected` saved the checkpoint."""
    stage = checkpoint.get("stage", "unknown")
    if stage != expected:
        raise ValueError(
            f"this is a checkpoint of the stage {stage!r}, but one of the stage {expected!r} is needed: "
            "give another run or file"
        )


def drop_frozen(checkpoint: dict[str, Any], name: str) -> None:
    """Remove the weights of a frozen submodule, which are reloaded from their source and not redistributed."""
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}


def restore_frozen(checkpoint: dict[str, Any], name: str, module: nn.Module | None) -> None:
    """Undo `drop_frozen` with the current weights of the submodule, so that the checkpoint can be loaded strictly."""
    if module is not None:
        checkpoint["state_dict"].update({f"{name}.{key}": value for key, value in module.state_dict().items()})


class MicroBatch(NamedTuple):
    """A part of a batch and its weights, scalars, in means over the global batch."""

    batch: MaskedFaceBatch
    weight: Tensor  # in a mean over images
    covered_weight: Tensor  # in a mean over images that have covered pixels
    visible_weight: Tensor  # in a mean over images that have visible pixels


def split_micro_batches(
    batch: MaskedFaceBatch, number: int, mean_over_ranks: Callable[[Tensor], Tensor]
) -> list[MicroBatch]:
    """Split a batch so that the weighted losses of all micro-batches and ranks sum to the loss of the global batch.

    The parts have equal size except the last; there are fewer than `number` if the batch is too short.
    """
    chunks = {key: cast(Tensor, value).chunk(number) for key, value in batch.items()}
    parts = [dict(zip(chunks, values, strict=True)) for values in zip(*chunks.values(), strict=True)]
    counts = []
    for part in parts:
        mask = part["mask"].flatten(1)
        covered, visible = (mask > 0).any(1).sum(), (mask < 1).any(1).sum()
        counts.append(torch.stack([covered.new_tensor(len(mask)), covered, visible]).float())
    totals = mean_over_ranks(torch.stack(counts).sum(0)).clamp_min(torch.finfo(torch.float32).tiny)
    return [
        MicroBatch(cast(MaskedFaceBatch, part), *(count / totals)) for part, count in zip(parts, counts, strict=True)
    ]
