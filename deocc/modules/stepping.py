"""What the training steps of both stages have in common."""

import os
from hashlib import blake2b
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor


class SteppingModule(pl.LightningModule):
    """A module whose every training step can be taken again and looked into."""

    terms: dict[str, Tensor]
    """The weighted losses, scalars by name, that the optimiser is about to step down; for callbacks that look before it moves."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let torch's own generator follow from run, process, epoch and batch alone.

        So dropout of a step is the same whether the run was resumed before it or not, and no checkpoint holds a generator's state.
        """
        place = f"{os.environ.get('PL_GLOBAL_SEED', 0)}/{self.global_rank}/{self.current_epoch}/{batch_idx}"
        torch.manual_seed(int.from_bytes(blake2b(place.encode(), digest_size=8).digest(), "big") >> 1)
