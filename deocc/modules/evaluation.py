"""Evaluation: metrics of an epoch, identity centres, and inference and evaluation of stage 2.

Scores do not depend on the precision of the trainer (see `deocc.modules.precision`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics.utilities.distributed import gather_all_tensors

from deocc.batch import FaceBatch, MaskedFaceBatch
from deocc.evaluation.embeddings import EmbeddingBank, EmbeddingSet
from deocc.evaluation.protocol import AllPairs
from deocc.evaluation.restoration import MaskPredictionMetric, RestorationMetric
from deocc.evaluation.results import CLEAN_ROWS, ROWS, Results, build_results, flat_scores, gallery_of, score_row
from deocc.masking import list_kinds
from deocc.modules.precision import frozen_precision, outside_autocast, uses_bfloat16
from deocc.networks.deoccluder import Deoccluder
from deocc.networks.embedders.embedder import Embedder, unit_embedding
from deocc.networks.student import Student, embed_by_mask
from deocc.processes import rank_and_world_size

FROM_CHECKPOINT = "from_checkpoint"
"""Given instead of a stage-1 checkpoint if the de-occluder will be restored from a stage-2 checkpoint."""
SUFFIXES = {"given_mask": "", "predicted_mask": "_predicted_mask"}
"""Ends of the names of rows and images, by the source of the mask."""
_CHUNK = 16384  # rows of embeddings read at a time: 32 MiB of 512 numbers each


def mean_of_identities(embeddings: NDArray[np.float32], identity: NDArray[np.int64]) -> Tensor:
    """Return the mean (D,) over identities of their mean raw embedding; arguments as for `identity_centers`."""
    counts = torch.zeros(int(identity.max()) + 1)
    sums = torch.zeros(len(counts), embeddings.shape[1])
    for label, raw in _chunks(embeddings, identity):
        sums.index_add_(0, label, raw)
        counts.index_add_(0, label, torch.ones(len(label)))
    return (sums / counts[:, None])[counts > 0].mean(0)


def identity_centers(
    embeddings: NDArray[np.float32],
    identity: NDArray[np.int64],
    center: Tensor,
    normalise: Callable[[Tensor, Tensor], Tensor] = unit_embedding,
) -> Tensor:
    """Compute the centre of each identity from the teacher's embeddings of clean faces.

    Args:
        embeddings: raw embeddings (N, D), read in chunks, since they may be mapped from disk. Rows of zeros stand for
            unreadable images and are ignored.
        identity: (N,) class labels 0 to K - 1 without gaps; rows with -1 are ignored.
        center: (D,), mean embedding.
        normalise: `unit_embedding` or `centred`.

    Returns:
        Unit vectors (K, D), the normalised mean of each identity's embeddings, or 0 without a readable image, on the
        device of `center`.
    """
    directions = torch.zeros(int(identity.max()) + 1, embeddings.shape[1])
    for label, raw in _chunks(embeddings, identity):
        directions.index_add_(0, label, normalise(raw, center.cpu()))
    return F.normalize(directions, dim=1).to(center.device)


def _chunks(embeddings: NDArray[np.float32], identity: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over labels (n,) and raw embeddings (n, D) of the readable images."""
    used = np.flatnonzero(identity >= 0)
    for rows in np.array_split(used, -(-len(used) // _CHUNK)):
        raw = torch.from_numpy(embeddings[rows])
        readable = raw.any(1)
        yield torch.from_numpy(identity[rows])[readable], raw[readable]


def gather_evidence(bare_evidence: Sequence[Tensor], device: torch.device) -> Tensor:
    """Concatenate the evidence (N,) of all ranks, which may hold different numbers of readable bare faces, or none."""
    evidence = torch.cat([torch.zeros(0, device=device), *bare_evidence])
    return torch.cat(gather_all_tensors(evidence)) if rank_and_world_size()[1] > 1 else evidence


class Comparison(nn.Module):
    """Metrics of an evaluation epoch, reduced over ranks; those without an update are left out of the results."""

    banks: Any  # torch types the values of a ModuleDict too narrowly
    restoration: Any

    def __init__(self) -> None:
        super().__init__()
        self.banks = nn.ModuleDict({name: EmbeddingBank() for name in ROWS})
        self.restoration = nn.ModuleDict({source: RestorationMetric() for source in ("given_mask", "predicted_mask")})
        self.mask_prediction = MaskPredictionMetric()

    def add(self, row: str, embedding: Tensor, batch: FaceBatch) -> None:
        """Add unit embeddings (B, D) to one of `ROWS`."""
        mask = cast(MaskedFaceBatch, batch).get("mask")
        coverage = mask.mean((1, 2, 3)) if mask is not None else None
        ids = (batch["identity"], batch["index"], batch["kind"], batch["seed"])
        self.banks[row].update(embedding, *ids, coverage)

    def collect(self) -> tuple[dict[str, EmbeddingSet], dict[str, dict[str, Any]], dict[str, Any] | None]:
        """Compute embeddings by row, restoration by mask source, and mask prediction or None; reset all metrics."""
        embeddings = {row: bank.compute() for row, bank in self.banks.items() if bank.update_called}
        restoration = {source: metric.compute() for source, metric in self.restoration.items() if metric.update_called}
        mask_prediction = self.mask_prediction.compute() if self.mask_prediction.update_called else None
        for metric in (*self.banks.values(), *self.restoration.values(), self.mask_prediction):
            metric.reset()
        return embeddings, restoration, mask_prediction


class RecognitionModule(pl.LightningModule):
    """Inference and evaluation of stage 2; `DistillationModule` builds the networks and trains the student.

    The averaged student's embeddings are compared with the teacher's of masked and of completed faces.
    """

    teacher: Embedder
    student: Student
    average: AveragedModel  # running average of the student
    deoccluder: Deoccluder | None
    awaits_deoccluder: bool  # it will be restored from a stage-2 checkpoint that has not been loaded yet
    center: Tensor  # (D,), mean raw embedding of the training identities
    comparison: Comparison
    results: Results

    @outside_autocast
    def forward(self, masked_face: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed masked faces (B, 3, H, W) in [-1, 1] as unit vectors (B, D).

        The mask is (B, 1, H, W), 1 = covered; None predicts it if the student depends on it.
        """
        if mask is None:
            mask = self._predict_mask(masked_face) if self.student.needs_mask else torch.zeros_like(masked_face[:, :1])
        return self._embed_student(masked_face, self._student_input(masked_face, mask), mask)

    def validation_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Embed clean (loader 0) and masked faces (loader 1), completed by the given or else predicted mask.

        `deocc validate` predicts all masks too, as a test does; within a training this would take too long.
        """
        return self._evaluation_step(batch, dataloader_idx, predict_masks=self.trainer.state.fn == TrainerFn.VALIDATING)

    def test_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Embed clean (loader 0) and masked faces (loader 1), completed by given and by predicted masks."""
        return self._evaluation_step(batch, dataloader_idx, predict_masks=True)

    @outside_autocast
    def predict_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return predicted mask, completed face and embedding; the mask is empty without a de-occluder."""
        masked_face = batch["masked_face"]
        mask = self._predict_mask(masked_face)
        completed_face = self._complete(masked_face, mask)
        embedding = self._embed_student(masked_face, completed_face, mask)
        return {"mask": mask, "completed_face": completed_face, "embedding": embedding}

    def on_validation_epoch_end(self) -> None:
        """Log verification and identification scores of teacher and student on the validation identities."""
        embeddings, restoration, _ = self.comparison.collect()
        if self.trainer.sanity_checking:
            return
        embeddings = AllPairs().narrow(embeddings)
        for row in embeddings.keys() - set(CLEAN_ROWS):
            self.log_dict(flat_scores(score_row(gallery_of(row, embeddings), embeddings[row]), f"val/{row}"))
        for source, scores in restoration.items():
            self.log_dict(flat_scores(scores["mean"], f"val/{source}"))

    def on_test_epoch_end(self) -> None:
        """Build `results`, which `deocc.callbacks` writes."""
        embeddings, restoration, mask_prediction = self.comparison.collect()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        bfloat16 = uses_bfloat16(self.device, self.teacher.name, self.student.embedder.name)
        provenance = {**data.provenance(), "frozen_precision": "bfloat16" if bfloat16 else "float32"}
        self.results = build_results(
            embeddings, restoration, list_kinds(), provenance, data.protocol, mask_prediction=mask_prediction
        )

    @outside_autocast
    def _evaluation_step(self, batch: MaskedFaceBatch, dataloader_idx: int, predict_masks: bool) -> dict[str, Tensor]:
        """Update the comparison; return the completed faces and predicted masks for the panels."""
        with self._frozen_precision():
            if dataloader_idx == 1:
                return self._embed_probes(batch, predict_masks)
            self._embed_gallery(batch, predict_masks)
            return {}

    def _embed_probes(self, batch: MaskedFaceBatch, predict_masks: bool) -> dict[str, Tensor]:
        """Embed masked faces, completed by the given mask and, if wanted or there is none, by the predicted one."""
        masked_face, known = batch["masked_face"], "mask" in batch
        self.comparison.add("teacher_masked", self._embed_teacher(masked_face), batch)
        masks: dict[str, Tensor] = {}
        if known or self.deoccluder is None:  # without a de-occluder, an empty mask stands for a missing one
            masks["given_mask"] = batch["mask"] if known else self._predict_mask(masked_face)
        images: dict[str, Tensor] = {}
        if self.deoccluder is not None and (predict_masks or not known):
            masks["predicted_mask"] = images["predicted_mask"] = self._predict_mask(masked_face)
            if known:
                self.comparison.mask_prediction.update(masks["predicted_mask"], batch["mask"], batch["kind"])
        for source, mask in masks.items():
            suffix = SUFFIXES[source]
            completed_face = self._complete(masked_face, mask)
            self.comparison.add(f"student{suffix}", self._embed_student(masked_face, completed_face, mask), batch)
            if self.deoccluder is not None:
                self.comparison.add(f"teacher_completed{suffix}", self._embed_teacher(completed_face), batch)
                images[f"completed_face{suffix}"] = completed_face
                if known:
                    metric = self.comparison.restoration[source]
                    metric.update(completed_face, batch["face"], batch["mask"], batch["kind"])
        return images

    def _embed_gallery(self, batch: MaskedFaceBatch, predict_masks: bool) -> None:
        """Embed clean faces with an empty mask and, if `predict_masks`, with the predicted one, as in deployment."""
        face = batch["face"]
        teacher = self._embed_teacher(face)
        keeps_teacher = self.hparams["bare_faces"] == "teacher"
        empty = torch.zeros_like(face[:, :1])
        student = teacher if keeps_teacher else self._embed_student(face, self._student_input(face, empty), empty)
        self.comparison.add("teacher_clean", teacher, batch)
        self.comparison.add("student_clean", student, batch)
        if not predict_masks or self.deoccluder is None:
            return
        mask = self._predict_mask(face)
        self.comparison.mask_prediction.update(mask, empty, batch["kind"])
        alarmed = mask.flatten(1).any(1)  # faces without a predicted mask keep the embedding above
        if bool(alarmed.any()):
            completed_face = self._complete(face[alarmed], mask[alarmed])
            teacher, student = teacher.clone(), student.clone()
            teacher[alarmed] = self._embed_teacher(completed_face)
            student[alarmed] = self._embed_student(face[alarmed], completed_face, mask[alarmed])
        self.comparison.add("teacher_clean_predicted_mask", teacher, batch)
        self.comparison.add("student_clean_predicted_mask", student, batch)

    def _frozen_precision(self) -> AbstractContextManager[Any]:
        return frozen_precision(self.device, self.teacher.name, self.student.embedder.name)

    @outside_autocast
    def _embed_teacher(self, face: Tensor) -> Tensor:
        with self._frozen_precision():
            return unit_embedding(self.teacher(face), self.center)

    def _embed_student(self, masked_face: Tensor, completed_face: Tensor, mask: Tensor) -> Tensor:
        if self.hparams["bare_faces"] == "teacher":
            embedding = embed_by_mask(self.average, self.teacher, masked_face, completed_face, mask)
        else:
            embedding = self.average(masked_face, completed_face, mask)
        return unit_embedding(embedding, self.center)

    def _student_input(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """Return the completed face, or the masked face if the student does not use the completion."""
        return self._complete(masked_face, mask) if self.student.needs_completion else masked_face

    def _complete(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """Return the completed face; without de-occluder the masked face itself."""
        self._check_deoccluder()
        completed_face: Tensor = masked_face if self.deoccluder is None else self.deoccluder(masked_face, mask)
        return completed_face

    def _predict_mask(self, masked_face: Tensor) -> Tensor:
        """Return the predicted mask; without de-occluder an empty one, if the student does not depend on it."""
        self._check_deoccluder()
        if self.deoccluder is not None:
            return self.deoccluder.predict_mask(masked_face)
        if self.student.needs_mask:
            raise ValueError(
                "no mask given, and no de-occluder to predict it: train with model.init_args.inpainting_checkpoint"
            )
        return torch.zeros_like(masked_face[:, :1])

    def _check_deoccluder(self) -> None:
        if self.awaits_deoccluder:
            raise ValueError(
                f"inpainting_checkpoint {FROM_CHECKPOINT!r} needs a checkpoint of stage 2, and none was loaded: "
                "give a stage-1 run"
            )
