"""What `deocc predict` leaves behind: a sheet of completed faces a batch, and one file of embeddings."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from deocc.evaluation import panel_image
from deocc.masking import list_kinds

_SHOWN = 16  # rows a sheet


class PredictionCallback(pl.Callback):
    """Writes `predictions/` in the run folder: `sheet-RANK-BATCH.png`, and `embeddings-RANK.npz` where the module embeds.

    The sheets show masked face, predicted mask and completed face. The latter holds embedding (N, D), identity, index, kind and seed.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Tensor]] = []

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write the sheet, keep the embeddings."""
        folder = _folder(trainer)
        columns = {"masked": batch["masked_face"], "predicted mask": outputs["mask"], "completed": outputs["completed_face"]}
        labels = [list_kinds()[kind] for kind in batch["kind"][:_SHOWN].tolist()]
        image = panel_image({title: images[:_SHOWN].float().cpu() for title, images in columns.items()}, labels)
        Image.fromarray(image).save(folder / f"sheet-{trainer.global_rank}-{batch_idx:04d}.png")
        if "embedding" in outputs:
            kept = {name: batch[name].cpu() for name in ("identity", "index", "kind", "seed")}
            self.rows.append({"embedding": outputs["embedding"].float().cpu(), **kept})

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the embeddings and say where everything is."""
        folder = _folder(trainer)
        if self.rows:
            arrays = {name: torch.cat([row[name] for row in self.rows]).numpy() for name in self.rows[0]}
            np.savez(folder / f"embeddings-{trainer.global_rank}.npz", **cast(Any, arrays))
        print(f"predictions: {folder}", flush=True)


def _folder(trainer: pl.Trainer) -> Path:
    folder = Path(trainer.default_root_dir) / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
