"""Further networks judge the completed faces of a test: by distances of their features, or as a recogniser."""

from typing import Any, Final

import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from deocc.evaluation.perceptual import FrechetDistance, KernelDistance, PerceptualDistance
from deocc.networks import create_teacher
from deocc.networks.embedders.registry import read_options

# Source of the mask by the key of a step's output
_SOURCES: Final = {"completed_face": "given_mask", "completed_face_predicted_mask": "predicted_mask"}

# By loader and row of the judge, the key of its faces in the batch or in the output of a test step
_FACES: Final = (
    {"judge_clean": "face"},
    {
        "judge_masked": "masked_face",
        "judge_completed": "completed_face",
        "judge_completed_predicted_mask": "completed_face_predicted_mask",
    },
)


class PerceptualCallback(pl.Callback):
    """Add `perceptual`, `perceptual_covered`, `frechet` and `kernel` to the restoration results of a test.

    Values by different networks cannot be compared. To compare generators, use another network than the teacher, which
    favours a stage 1 that was trained with it.

    Args:
        network: a name of `deocc.networks.list_embedders`.
        weights: its weights file; None: the weights that its package contains.
        options: template, size, color, mean and std of its input, and mirror, if they differ from `create_embedder`'s.
    """

    def __init__(
        self, network: str = "dlib_resnet", weights: str | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self.network = create_teacher(network, weights, **read_options(options))
        self.scores: dict[str, dict[str, float]] = {}
        self._metrics: dict[str, tuple[PerceptualDistance, FrechetDistance, KernelDistance]] = {}

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the metrics and move the network to the module's device."""
        self.network.to(pl_module.device)
        self._metrics, self.scores = {}, {}

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compare the completed faces of a batch with its clean faces, if these are known."""
        for key, source in _SOURCES.items():
            if "mask" not in batch or key not in (outputs or {}):
                continue
            if source not in self._metrics:
                self._metrics[source] = (
                    PerceptualDistance(lambda face: self.network.embed_with_features(face)[1]).to(pl_module.device),
                    FrechetDistance(self.network, self.network.embedding_dim).to(pl_module.device),
                    KernelDistance(self.network).to(pl_module.device),
                )
            distance, frechet, kernel = self._metrics[source]
            distance.update(outputs[key], batch["face"], batch["mask"], batch["kind"])
            frechet.update(outputs[key], batch["face"])
            kernel.update(outputs[key], batch["face"])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute the scores over all ranks."""
        for source, (distance, frechet, kernel) in self._metrics.items():
            crowds = {"frechet": float(frechet.compute()), "kernel": float(kernel.compute())}
            self.scores[source] = {**distance.compute()["mean"], **crowds}


class JudgeCallback(pl.Callback):
    """Add the rows `judge_clean`, `judge_masked` and `judge_completed` to the results of stage 2's test.

    The teacher's own figures favour completions that were trained with its features; another recogniser shows whether
    completion restores the identity for others too. Its embeddings are only normalised; those of `dlib_resnet` would
    have to lose part of their mean. The arguments are those of `PerceptualCallback`; choose another network than the
    teacher.
    """

    def __init__(
        self, network: str = "sface", weights: str | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self.network = create_teacher(network, weights, **read_options(options))

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move the network to the module's device; a module that embeds no faces is refused."""
        if not hasattr(pl_module, "teacher"):
            raise ValueError("JudgeCallback compares embeddings, and stage 1 computes none: test a stage-2 run")
        self.network.to(pl_module.device)

    @torch.no_grad()
    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Embed the clean faces (loader 0), or the masked and the completed ones (loader 1)."""
        images: dict[str, Any] = {**batch, **(outputs or {})}
        for row, key in _FACES[dataloader_idx].items():
            if key in images:
                pl_module.comparison.add(row, F.normalize(self.network(images[key]), dim=1), batch)
