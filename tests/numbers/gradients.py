"""Callback that saves the gradients of a training started by the command line, also with several processes."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

Gradients = dict[str, Tensor]
"""By the parameter's name within the module."""


class GradientFile(pl.Callback):
    """Write the gradients of each optimiser step before clipping to `gradients-RANK.pt` in the run folder."""

    def __init__(self) -> None:
        self._steps: list[Gradients] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Record the gradients of this optimiser."""
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        named = ((name, parameter.grad) for name, parameter in pl_module.named_parameters() if id(parameter) in own)
        self._steps.append({name: gradient.detach().clone() for name, gradient in named if gradient is not None})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        torch.save(self._steps, Path(trainer.default_root_dir) / f"gradients-{trainer.global_rank}.pt")
