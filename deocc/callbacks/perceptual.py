"""Completed faces as a network of the user's choice sees them: the forms of FID, KID and LPIPS, in a test."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from deocc.evaluation import FrechetDistance, KernelDistance, PerceptualDistance
from deocc.networks import create_teacher
from deocc.networks.embedder import read_options

_SOURCES = {"completed_face": "given_mask", "completed_face_predicted_mask": "predicted_mask"}
"""By the key of a step's output, the source of the mask."""


class PerceptualCallback(pl.Callback):
    """Adds `perceptual`, `perceptual_covered`, `frechet` and `kernel` to the restoration that `ResultsCallback` writes down.

    Figures by different networks do not compare. A network whose features stage 1 was trained towards flatters it: to compare generators,
    take another one than the teacher.

    Args:
        network: a name of `deocc.networks.list_embedders`.
        weights: its weights file; default what its package ships.
        options: its template, size, color, mean and std, where they are not what `create_embedder` takes for granted.

    Raises:
        ValueError: an unknown network, or one without trained weights.
        FileNotFoundError: no weights file.
    """

    def __init__(self, network: str = "dlib_resnet", weights: str | None = None, options: dict[str, Any] | None = None) -> None:
        self.network = create_teacher(network, weights, **read_options(options))
        self.scores: dict[str, dict[str, float]] = {}
        self._metrics: dict[str, tuple[PerceptualDistance, FrechetDistance, KernelDistance]] = {}

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start anew, where the module is."""
        self.network.to(pl_module.device)
        self._metrics, self.scores = {}, {}

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Take in the completed faces of a batch whose clean faces and masks are known."""
        for key, source in _SOURCES.items():
            if "mask" in batch and key in (outputs or {}):
                distance, *crowds = self._metrics.setdefault(source, self._build(pl_module))
                distance.update(outputs[key], batch["face"], batch["mask"], batch["kind"])
                for crowd in crowds:
                    crowd.update(outputs[key], batch["face"])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the figures together, over all processes."""
        for source, (distance, frechet, kernel) in self._metrics.items():
            self.scores[source] = {**distance.compute()["mean"], "frechet": float(frechet.compute()), "kernel": float(kernel.compute())}

    def _build(self, pl_module: pl.LightningModule) -> tuple[PerceptualDistance, FrechetDistance, KernelDistance]:
        def maps(face: Tensor) -> list[Tensor]:
            return self.network.embed_with_features(face)[1]

        def embed(face: Tensor) -> Tensor:
            embedding: Tensor = self.network(face)
            return embedding

        device = pl_module.device
        crowds = FrechetDistance(embed, self.network.embedding_dim).to(device), KernelDistance(embed).to(device)
        return PerceptualDistance(maps).to(device), *crowds
