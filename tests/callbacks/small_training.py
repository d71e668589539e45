"""A training of a moment: a layer with batch normalisation on eight numbers, whose loss a test can spoil."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

Spoil = Callable[[Tensor, int], Tensor]
"""What becomes of a loss at a step."""


class Small(pl.LightningModule):
    """Learns nothing of use; its statistics and weights move at every step."""

    def __init__(self, spoil: Spoil = lambda loss, _: loss) -> None:
        super().__init__()
        self.layer, self.norm, self.spoil = nn.Linear(8, 4), nn.BatchNorm1d(4), spoil
        self.seen: list[dict[str, Tensor]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append({name: value.clone() for name, value in self.state_dict().items()})
        loss = self.spoil(
            self.norm(self.layer(batch["face"])).square().mean(), self.trainer.fit_loop.epoch_loop.total_batch_idx
        )
        self.terms = {"square": loss.detach()}
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    module: Small, folder: Path, *callbacks: Callback, steps: int = 4, epochs: int = 1, **settings: Any
) -> pl.Trainer:
    """Train for so many batches in each epoch."""
    generator = torch.Generator().manual_seed(0)
    items = [
        {"face": torch.randn(8, generator=generator), "index": torch.tensor(n), "seed": torch.tensor(n)}
        for n in range(4 * steps)
    ]
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        default_root_dir=folder, max_epochs=epochs, callbacks=[*callbacks], accelerator="cpu", **quiet, **settings
    )
    trainer.fit(module, DataLoader(items, batch_size=4))  # type: ignore[arg-type]
    return trainer
