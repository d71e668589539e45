"""Contact sheets of faces: after each validation and test, and of `deocc predict`, with its embeddings."""

import io
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from deocc.callbacks.dashboards import continue_without, log_image, shows_images
from deocc.callbacks.loggers import logged_step
from deocc.evaluation.figures import panel_image
from deocc.files import replace_file, write_file
from deocc.masking import list_kinds

# Keys of a batch or of a step's output, and the titles of their columns, in the order of a panel
COLUMNS: Final = {
    "face": "clean",
    "masked_face": "masked",
    "mask": "mask",
    "completed_face": "completed",
    "predicted_mask": "predicted mask",
    "completed_face_predicted_mask": "completed by it",
}

PREDICTIONS: Final = "predictions"  # the folder in a run folder with the results of `deocc predict`
_SHEET_ROWS = 16


class PanelCallback(pl.Callback):
    """Draw the first masked face of every kind of occluder after each validation and test.

    The images come from the batch and from the mapping that `validation_step` or `test_step` returns, in either stage.
    A validation writes `panels/` in the run folder and logs `val/panel` and, per kind, `val/face/KIND`.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Tensor]] = []
        self.kinds: list[int] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start a new panel."""
        self.rows, self.kinds = [], []

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the images of the panel."""
        shown: dict[str, Any] = {**batch, **(outputs or {})}
        for position, kind in enumerate(batch["kind"].tolist()):
            if kind >= 0 and kind not in self.kinds:
                self.kinds.append(kind)
                self.rows.append({key: shown[key][position].float().cpu() for key in COLUMNS if key in shown})

    on_test_epoch_start, on_test_batch_end = on_validation_epoch_start, on_validation_batch_end

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write and log the panel."""
        skipped = trainer.sanity_checking or getattr(trainer, "fast_dev_run", False)
        if not self.rows or skipped or not trainer.is_global_zero:
            return
        columns, labels = self.panel()
        image, png = panel_image(columns, labels), io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        path = Path(trainer.default_root_dir) / "panels" / f"step-{logged_step(trainer):07d}.png"
        with continue_without(path):
            write_file(path, png.getvalue())
        if shows_images(trainer):
            log_image(trainer, "val/panel", image)
            for row, kind in enumerate(labels):
                face = {title: images[row : row + 1] for title, images in columns.items()}
                log_image(trainer, f"val/face/{kind}", panel_image(face, [kind]))

    def panel(self) -> tuple[dict[str, Tensor], list[str]]:
        """Return the images by column title, and the kind of each row."""
        shown = [key for key in COLUMNS if key in self.rows[0]]
        columns = {COLUMNS[key]: torch.stack([row[key] for row in self.rows]) for key in shown}
        return columns, [list_kinds()[kind] for kind in self.kinds]


class PredictionCallback(pl.Callback):
    """Write `predictions/` in the run folder: `sheet-RANK-BATCH.png`, and `embeddings-RANK.npz` if the module embeds.

    A sheet shows the first 16 images of a batch: masked face, predicted mask and, if there is one, completed face. The
    other file contains `embedding` (N, D), `identity`, `index`, `kind` and `seed`.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Tensor]] = []

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write the sheet of a batch and keep its embeddings."""
        images = {"masked": batch["masked_face"], "predicted mask": outputs["mask"]}
        if "completed_face" in outputs:
            images["completed"] = outputs["completed_face"]
        columns = {title: each[:_SHEET_ROWS].float().cpu() for title, each in images.items()}
        sheet = panel_image(columns, [list_kinds()[kind] for kind in batch["kind"][:_SHEET_ROWS].tolist()])
        folder = Path(trainer.default_root_dir) / PREDICTIONS
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(folder / f"sheet-{trainer.global_rank}-{batch_idx:04d}.png")
        if "embedding" in outputs:
            ids = {name: batch[name].cpu() for name in ("identity", "index", "kind", "seed")}
            self.rows.append({"embedding": outputs["embedding"].float().cpu(), **ids})

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the embeddings and print the folder."""
        folder = Path(trainer.default_root_dir) / PREDICTIONS
        if self.rows:
            arrays: Any = {name: torch.cat([row[name] for row in self.rows]).numpy() for name in self.rows[0]}
            path = folder / f"embeddings-{trainer.global_rank}.npz"
            with replace_file(path) as draft, draft.open("wb") as file:
                np.savez(file, **arrays)
        print(f"predictions: {folder}", flush=True)
