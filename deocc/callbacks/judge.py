"""A recogniser that took no part in training judges the completed faces of a test."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from deocc.networks import create_teacher
from deocc.networks.embedders.registry import read_options

_FACES = {
    "judge_masked": "masked_face",
    "judge_completed": "completed_face",
    "judge_completed_predicted_mask": "completed_face_predicted_mask",
}
"""By row, the key of its faces in the batch or in the output of a test step."""


class JudgeCallback(pl.Callback):
    """Add the rows `judge_clean`, `judge_masked` and `judge_completed` to the results of stage 2's test.

    The teacher's own figures favour completions that were trained with its features. Another recogniser shows whether
    completion restores the identity for others too.

    Args:
        network: a name of `deocc.networks.list_embedders`, not that of the teacher.
        weights: its weights file; None: the weights that its package contains.
        options: template, size, color, mean, std and mirror, if they differ from those of `create_embedder`.

    Raises:
        ValueError: an unknown network, or one without trained weights.
        FileNotFoundError: there is no weights file.
        ImportError: a required package is not installed.
    """

    def __init__(
        self, network: str = "sface", weights: str | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self.network = create_teacher(network, weights, **read_options(options))

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move the network to the module's device.

        Raises:
            ValueError: the module embeds no faces.
        """
        if not hasattr(pl_module, "teacher"):
            raise ValueError("JudgeCallback compares embeddings, which stage 1 has none of: test a stage-2 run")
        self.network.to(pl_module.device)

    @torch.no_grad()
    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Embed the clean faces (loader 0), or the masked and the completed ones (loader 1)."""
        faces = {row: {**batch, **(outputs or {})}.get(key) for row, key in _FACES.items()}
        if dataloader_idx == 0:
            faces = {"judge_clean": batch["face"]}
        for row, face in faces.items():
            if face is not None:
                pl_module.comparison.add(row, F.normalize(self.network(face), dim=1), batch)
