"""What `deocc predict` leaves behind: a sheet of completed faces a batch, and one file of embeddings."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deocc.batch import MaskedFaceBatch
from deocc.callbacks.dashboards import log_image, logged_step, shows_images
from deocc.callbacks.loggers import WriteFaults, write_whole
from deocc.evaluation import panel_image
from deocc.masking import list_kinds

COLUMNS = {
    "face": "clean",
    "masked_face": "masked",
    "mask": "mask",
    "completed_face": "completed",
    "predicted_mask": "predicted mask",
    "completed_face_predicted_mask": "completed by it",
}
"""What a panel shows of a batch and of what a step returned, in this order; what is not there is left out."""


class PanelCallback(pl.Callback):
    """After each validation, draws the first masked face of every kind.

    Draws from the batch and from the mapping that the module's `validation_step` or `test_step` returns, so it fits either stage.
    """

    def __init__(self, per_kind: int = 1) -> None:
        """`per_kind`: how many images of each kind."""
        self.per_kind = per_kind
        self.rows: list[dict[str, Tensor]] = []
        self.kinds: list[int] = []
        self._faults = WriteFaults()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start a new panel."""
        self._restart()

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start a new panel."""
        self._restart()

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the images that are to be shown."""
        self._keep(outputs, batch)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the images that are to be shown."""
        self._keep(outputs, batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the panel to `panels/` in the run folder; log it as `val/panel`, and each kind of occluder as `val/face/KIND`."""
        if (
            self.rows
            and not trainer.sanity_checking
            and not getattr(trainer, "fast_dev_run", False)
            and trainer.is_global_zero
        ):
            image = panel_image(*self.panel())
            folder = Path(trainer.default_root_dir) / "panels"
            with self._faults.spared(folder, "panels are left out until then"):
                write_whole(folder / f"step-{logged_step(trainer):07d}.png", _png(image))
            if shows_images(trainer):
                log_image(trainer, "val/panel", image)
                self._log_faces(trainer)

    def panel(self) -> tuple[dict[str, Tensor], list[str]]:
        """The images by column title, and the kind of each row."""
        columns = {
            title: torch.stack([row[key] for row in self.rows]) for key, title in COLUMNS.items() if key in self.rows[0]
        }
        return columns, [list_kinds()[kind] for kind in self.kinds]

    def _log_faces(self, trainer: pl.Trainer) -> None:
        """A picture a kind, which stays legible in a dashboard's narrow panels."""
        columns, labels = self.panel()
        for kind in dict.fromkeys(labels):
            chosen = torch.tensor([label == kind for label in labels])
            strip = panel_image(
                {title: images[chosen] for title, images in columns.items()}, [kind] * int(chosen.sum())
            )
            log_image(trainer, f"val/face/{kind}", strip)

    def _restart(self) -> None:
        self.rows, self.kinds = [], []

    def _keep(self, outputs: Mapping[str, Tensor], batch: MaskedFaceBatch) -> None:
        shown: dict[str, Any] = {**batch, **(outputs or {})}
        for position, kind in enumerate(batch["kind"].tolist()):
            if kind >= 0 and self.kinds.count(kind) < self.per_kind:
                self.kinds.append(kind)
                self.rows.append({key: shown[key][position].float().cpu() for key in COLUMNS if key in shown})


def _png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


_SHOWN = 16  # rows a sheet


class PredictionCallback(pl.Callback):
    """Writes `predictions/` in the run folder: `sheet-RANK-BATCH.png`, and `embeddings-RANK.npz` where the module embeds.

    The sheets show masked face, predicted mask and completed face. The latter holds embedding (N, D), identity, index, kind and seed.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Tensor]] = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the sheet, keep the embeddings."""
        folder = _folder(trainer)
        columns = {
            "masked": batch["masked_face"],
            "predicted mask": outputs["mask"],
            "completed": outputs["completed_face"],
        }
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
