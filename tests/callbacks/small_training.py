"""A tiny training: a layer with batch normalisation on eight numbers, whose loss a test can change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

ChangeLoss = Callable[[Tensor, int], Tensor]
"""Takes the loss and the step."""
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Small(pl.LightningModule):
    """Keeps a copy of its state before every step."""

    def __init__(self, change: ChangeLoss = lambda loss, _: loss) -> None:
        super().__init__()
        self.layer, self.norm, self.change = nn.Linear(8, 4), nn.BatchNorm1d(4), change
        self.seen: list[dict[str, Tensor]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append({name: value.clone() for name, value in self.state_dict().items()})
        loss = self.norm(self.layer(batch["face"])).square().mean()
        loss = self.change(loss, self.trainer.fit_loop.epoch_loop.total_batch_idx)
        self.terms = {"square": loss.detach()}
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    module: Small, folder: Path, *callbacks: Callback, steps: int = 4, epochs: int = 1, **settings: Any
) -> pl.Trainer:
    """Train for a number of batches per epoch."""
    generator = torch.Generator().manual_seed(0)
    items: Any = [
        {"face": torch.randn(8, generator=generator), "index": torch.tensor(n), "seed": torch.tensor(n)}
        for n in range(4 * steps)
    ]
    trainer = pl.Trainer(
        default_root_dir=folder, max_epochs=epochs, callbacks=[*callbacks], **QUIET, **{"logger": False, **settings}
    )
    trainer.fit(module, DataLoader(items, batch_size=4))
    return trainer
