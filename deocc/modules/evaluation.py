"""Completion and its evaluation in stage 1: the generator's running average fills what a given or a predicted mask covers."""

import os
from collections.abc import Callable
from functools import wraps
from hashlib import blake2b
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from deocc.batch import FaceBatch, MaskedFaceBatch
from deocc.evaluation import (
    AllPairs,
    EmbeddingBank,
    EmbeddingSet,
    MaskPredictionMetric,
    RestorationMetric,
    build_restoration_results,
    build_results,
    flat_scores,
    mask_prediction_results,
    score_row,
)
from deocc.masking import list_kinds
from deocc.networks.averaging import WeightAverage
from deocc.networks.deoccluder import Deoccluder
from deocc.networks.embedders.registry import Embedder
from deocc.networks.generator import compose
from deocc.networks.segmenter import MaskSegmenter, predicted_share
from deocc.networks.student import Student

_Module = TypeVar("_Module", bound=pl.LightningModule)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def outside_autocast(
    method: Callable[Concatenate[_Module, _Arguments], _Result],
) -> Callable[Concatenate[_Module, _Arguments], _Result]:
    """Decorates a module's method: autocast is off while it runs, so that what is measured does not depend on the trainer's precision."""

    @wraps(method)
    def exact(self: _Module, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return exact


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


GALLERIES = ("gallery_teacher", "gallery_student", "gallery_teacher_predicted_mask", "gallery_student_predicted_mask")
"""Clean faces: by an empty mask, and as photographs are embedded, by the predicted mask."""
PROBES = (
    "teacher_masked",
    "teacher_completed",
    "teacher_completed_predicted_mask",
    "student",
    "student_predicted_mask",
)
SOURCES = ("given_mask", "predicted_mask")


class Comparison(nn.Module):
    """Embeddings by row of the results, and restoration by source of the mask; reduces across processes."""

    def __init__(self) -> None:
        super().__init__()
        self.banks = nn.ModuleDict({name: EmbeddingBank() for name in (*GALLERIES, *PROBES)})
        self.restoration = nn.ModuleDict({source: RestorationMetric() for source in SOURCES})
        self.mask_prediction = MaskPredictionMetric()
        self.seen: set[str] = set()

    def add(self, row: str, embedding: Tensor, batch: FaceBatch) -> None:
        """Add a batch's embeddings, (B, D) unit vectors, to one of `GALLERIES` or `PROBES`."""
        self.seen.add(row)
        bank = cast(EmbeddingBank, self.banks[row])
        mask = cast(MaskedFaceBatch, batch).get("mask")
        coverage = mask.mean((1, 2, 3)) if mask is not None else None
        bank.update(embedding, batch["identity"], batch["index"], batch["kind"], batch["seed"], coverage)

    def add_restoration(self, source: str, completed_face: Tensor, batch: MaskedFaceBatch) -> None:
        """Add a batch's completed faces, (B, 3, H, W) in [-1, 1], to one of `SOURCES`."""
        self.seen.add(source)
        cast(RestorationMetric, self.restoration[source]).update(
            completed_face, batch["face"], batch["mask"], batch["kind"]
        )

    def add_mask_prediction(self, predicted_mask: Tensor, batch: MaskedFaceBatch) -> None:
        """Add a batch's predicted masks, (B, 1, H, W) in [0, 1]; those of bare faces measure false alarms."""
        self.seen.add("mask_prediction")
        self.mask_prediction.update(predicted_mask, batch["mask"], batch["kind"])

    def collect(self) -> tuple[dict[str, EmbeddingSet], dict[str, dict[str, Any]]]:
        """The embeddings by row and the restoration by source, of what was seen; then start anew."""
        embeddings = {
            name: cast(EmbeddingBank, bank).compute() for name, bank in self.banks.items() if name in self.seen
        }
        restoration = {
            name: cast(RestorationMetric, metric).compute()
            for name, metric in self.restoration.items()
            if name in self.seen
        }
        self.reset()
        return embeddings, restoration

    def reset(self) -> None:
        """Forget everything seen."""
        self.seen.clear()
        for metric in (*self.banks.values(), *self.restoration.values(), self.mask_prediction):
            cast(EmbeddingBank, metric).reset()


def centred(raw: Tensor, center: Tensor) -> Tensor:
    """(B, D) raw embeddings -> unit vectors (raw - center) / |raw - center|, in float32 whatever the autocast state."""
    return F.normalize(raw.float() - center, dim=1)


_CHUNK = 16384  # rows: 32 MiB of 512 numbers each


def identity_centers(
    embeddings: NDArray[np.float32], identity: NDArray[np.int64], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The mean over people, by which embeddings are centred, and every person's centre, from clean faces.

    Args:
        embeddings: (N, D), the teacher's raw ones; read in parts, so that they may lie on disk. A row of zeros is that of an image which
            could not be read, and counts nowhere.
        identity: (N,) whose face each is, 0 to K - 1 without a gap; -1 leaves a row out.
        device: where the results go.

    Returns:
        (D,), the mean of the people's mean raw embeddings; (K, D) unit vectors, the direction of the mean of a person's centred embeddings,
        0 for a person of whom no image could be read.
    """
    taken = np.flatnonzero(identity >= 0)
    parts = [(rows, torch.from_numpy(identity[rows])) for rows in np.array_split(taken, -(-len(taken) // _CHUNK))]
    counts = torch.zeros(int(identity.max()) + 1)
    sums = torch.zeros(len(counts), embeddings.shape[1])
    for rows, people in parts:
        raw = torch.from_numpy(embeddings[rows])
        sums.index_add_(0, people, raw)
        counts.index_add_(0, people, raw.any(1).float())
    center = (sums / counts[:, None])[counts > 0].mean(0)
    directions = torch.zeros_like(sums)
    for rows, people in parts:
        raw = torch.from_numpy(embeddings[rows])
        known = raw.any(1)
        directions.index_add_(0, people[known], centred(raw[known], center))
    return center.to(device), F.normalize(directions, dim=1).to(device)


FROM_CHECKPOINT = "from_checkpoint"
"""In place of a stage-1 checkpoint: the de-occluder comes with the checkpoint of stage 2 that is about to be loaded."""


class RecognitionModule(SteppingModule):
    """What a trained stage 2 does, in float32 in any trainer; `DistillationModule` builds its parts and trains the student."""

    teacher: Embedder
    student: Student
    average: WeightAverage
    deoccluder: Deoccluder | None
    awaits_deoccluder: bool
    """Whether the de-occluder is still to come with a checkpoint."""
    center: Tensor
    """(D,), subtracted from every raw embedding."""
    comparison: Comparison

    @outside_autocast
    def forward(self, masked_face: Tensor, mask: Tensor | None = None) -> Tensor:
        """Unit embeddings (B, D) of masked faces (B, 3, H, W) in [-1, 1]; the mask (B, 1, H, W) is predicted where needed and not given."""
        if mask is None:
            mask = self._predicted_mask(masked_face) if self.student.needs_mask else _no_mask(masked_face)
        return self._embed_student(masked_face, self._shown(masked_face, mask), mask)

    def validation_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Embed clean faces (the first loader), then masked ones by their given masks where they are known, else by predicted ones."""
        return self._embed_batch(batch, dataloader_idx, predicted=False)

    def test_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Embed clean faces, then masked ones by given masks, where they are known, and by predicted masks."""
        return self._embed_batch(batch, dataloader_idx, predicted=True)

    @outside_autocast
    def predict_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Predicted mask, completed face and embedding; an empty mask and the masked face where there is no de-occluder."""
        masked_face = batch["masked_face"]
        mask = self._predicted_mask(masked_face)
        completed_face = self._complete(masked_face, mask)
        return {
            "mask": mask,
            "completed_face": completed_face,
            "embedding": self._embed_student(masked_face, completed_face, mask),
        }

    def on_validation_epoch_end(self) -> None:
        """Log verification and identification of teacher and student on the validation people."""
        embeddings, restoration = self.comparison.collect()
        if not self.trainer.sanity_checking:
            embeddings = AllPairs().narrow(embeddings)
            for row in embeddings.keys() - set(GALLERIES):
                scores = score_row(embeddings[f"gallery_{row.split('_')[0]}"], embeddings[row])
                self.log_dict(flat_scores(scores, f"val/{row}"))
            for source, scores in restoration.items():
                self.log_dict(flat_scores(scores["mean"], f"val/{source}"))

    def on_test_epoch_end(self) -> None:
        """Put the results together; `deocc.callbacks` writes them down."""
        predicted = self.comparison.mask_prediction.compute() if "mask_prediction" in self.comparison.seen else None
        embeddings, restoration = self.comparison.collect()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.embeddings = data.protocol.narrow(embeddings)
        galleries = {name.removeprefix("gallery_"): embeddings.pop(name) for name in GALLERIES if name in embeddings}
        self.results = build_results(
            galleries["teacher"],
            galleries["student"],
            embeddings,
            restoration,
            list_kinds(),
            data.provenance(),
            data.protocol,
            predicted_mask_galleries={
                name: galleries[f"{name}_predicted_mask"] for name in ("teacher", "student") if len(galleries) == 4
            },
        )
        if predicted is not None:
            self.results |= mask_prediction_results(predicted, list_kinds())

    @outside_autocast
    def _embed_batch(self, batch: MaskedFaceBatch, dataloader_idx: int, predicted: bool) -> dict[str, Tensor]:
        masked_face = batch["masked_face"]
        if dataloader_idx == 0:
            self._embed_clean(batch, predicted)
            return {}
        self.comparison.add("teacher_masked", self._embed_teacher(masked_face), batch)
        shown: dict[str, Tensor] = {}
        known = "mask" in batch
        if known or self.deoccluder is None:
            shown = self._embed_completed(
                batch, batch["mask"] if known else self._predicted_mask(masked_face), "given_mask", ""
            )
        if (predicted or not known) and self.deoccluder is not None:
            mask = self._predicted_mask(masked_face)
            if known:
                self.comparison.add_mask_prediction(mask, batch)
            shown |= {"predicted_mask": mask} | self._embed_completed(batch, mask, "predicted_mask", "_predicted_mask")
        return shown

    def _embed_clean(self, batch: MaskedFaceBatch, predicted: bool) -> None:
        """Teacher and student on clean faces by an empty mask and, where `predicted`, as photographs are embedded, by the predicted one."""
        face = batch["face"]
        teacher, student = self._embed_teacher(face), self(face, _no_mask(face))
        self.comparison.add("gallery_teacher", teacher, batch)
        self.comparison.add("gallery_student", student, batch)
        if not predicted or self.deoccluder is None:
            return
        mask = self._predicted_mask(face)
        self.comparison.add_mask_prediction(mask, {**batch, "masked_face": face, "mask": _no_mask(face)})
        found = mask.flatten(1).any(1)
        if bool(found.any()):  # the others would be embedded as above
            completed_face = self._complete(face[found], mask[found])
            teacher, student = teacher.clone(), student.clone()
            teacher[found] = self._embed_teacher(completed_face)
            student[found] = self._embed_student(face[found], completed_face, mask[found])
        self.comparison.add("gallery_teacher_predicted_mask", teacher, batch)
        self.comparison.add("gallery_student_predicted_mask", student, batch)

    def _embed_completed(self, batch: MaskedFaceBatch, mask: Tensor, source: str, suffix: str) -> dict[str, Tensor]:
        """Teacher and student on the face completed by `mask`; returns it for the panels."""
        completed_face = self._complete(batch["masked_face"], mask)
        self.comparison.add(f"student{suffix}", self._embed_student(batch["masked_face"], completed_face, mask), batch)
        if self.deoccluder is None:
            return {}
        self.comparison.add(f"teacher_completed{suffix}", self._embed_teacher(completed_face), batch)
        if "mask" in batch:
            self.comparison.add_restoration(source, completed_face, batch)
        return {f"completed_face{suffix}": completed_face}

    @outside_autocast
    def _embed_teacher(self, face: Tensor) -> Tensor:
        return centred(self.teacher(face), self.center)

    def _embed_student(self, masked_face: Tensor, completed_face: Tensor, mask: Tensor) -> Tensor:
        """By the running average."""
        return centred(self.average.network(masked_face, completed_face, mask), self.center)

    def _shown(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """What the student gets as completed face: nothing is completed for one that does not look at it."""
        return self._complete(masked_face, mask) if self.student.needs_completion else masked_face

    def _complete(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """The completed face; the masked one as it is where there is no de-occluder."""
        self._check_deoccluder()
        completed_face: Tensor = self.deoccluder(masked_face, mask) if self.deoccluder is not None else masked_face
        return completed_face

    def _predicted_mask(self, masked_face: Tensor) -> Tensor:
        """The predicted mask; an empty one where there is no de-occluder and the student does not depend on it."""
        self._check_deoccluder()
        if self.deoccluder is not None:
            return self.deoccluder.predict_mask(masked_face)
        if self.student.needs_mask:
            raise ValueError(
                "no mask given, and no de-occluder to predict it: train with model.init_args.inpainting_checkpoint"
            )
        return _no_mask(masked_face)

    def _check_deoccluder(self) -> None:
        if self.awaits_deoccluder:
            raise ValueError(
                f"inpainting_checkpoint {FROM_CHECKPOINT!r} goes with a checkpoint of stage 2, and none was loaded: give a stage-1 run"
            )


def _no_mask(face: Tensor) -> Tensor:
    return torch.zeros_like(face[:, :1])


class RestorationModule(SteppingModule):
    """What a trained stage 1 does, in float32 in any trainer; `InpaintingModule` builds its parts and trains them."""

    average: AveragedModel
    segmenter: MaskSegmenter | None
    restoration: nn.ModuleDict
    """A `RestorationMetric` by source of the mask."""
    mask_prediction: MaskPredictionMetric
    bare_shares: list[Tensor]
    """Of the bare validation faces, on which the segmenter's gate is calibrated."""

    @outside_autocast
    def forward(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """The completed face, (B, 3, H, W) in [-1, 1], by the generator's running average."""
        return compose(masked_face, self.average(masked_face, mask), mask)

    @outside_autocast
    def validation_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Restore the masked faces (the second loader), with the given and with the predicted mask."""
        if dataloader_idx == 1:
            return self._restore(batch)
        if self.segmenter is not None:
            self.bare_shares.append(predicted_share(self.segmenter(batch["face"]).sigmoid()))
        return {}

    @outside_autocast
    def test_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As in validation; bare faces show how often the segmenter predicts a mask where there is none."""
        if dataloader_idx == 1:
            return self._restore(batch)
        if self.segmenter is not None:
            self.mask_prediction.update(self.segmenter.predict_mask(batch["face"]), batch["mask"], batch["kind"])
        return {}

    @outside_autocast
    def predict_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Completed face, by the predicted mask where there is a segmenter and else by the given one."""
        masked_face = batch["masked_face"]
        mask = batch["mask"] if self.segmenter is None else self.segmenter.predict_mask(masked_face)
        return {"mask": mask, "completed_face": self(masked_face, mask)}

    def on_validation_epoch_end(self) -> None:
        """Calibrate the segmenter's gate, and log the restoration."""
        if self.segmenter is not None and self.bare_shares:
            self.segmenter.calibrate_gate(cast(Tensor, self.all_gather(torch.cat(self.bare_shares))).flatten())
        self.bare_shares = []
        self.mask_prediction.reset()
        for source, scores in self._collect_restoration().items():
            self.log_dict(flat_scores(scores["mean"], f"val/{source}"))

    def on_test_epoch_end(self) -> None:
        """Build the results, which `deocc.callbacks` writes."""
        provenance = self.trainer.datamodule.provenance()  # type: ignore[attr-defined]
        self.results = build_restoration_results(self._collect_restoration(), list_kinds(), provenance)
        if self.segmenter is not None:
            self.results |= mask_prediction_results(self.mask_prediction.compute(), list_kinds())
        self.mask_prediction.reset()

    def _restore(self, batch: MaskedFaceBatch) -> dict[str, Tensor]:
        if "mask" not in batch:
            raise ValueError(
                "these faces carry real occluders, of which neither mask nor clean face is known: stage 1 cannot be measured on them; "
                "test a stage-2 run"
            )
        masks = {"given_mask": batch["mask"]}
        if self.segmenter is not None:
            masks["predicted_mask"] = self.segmenter.predict_mask(batch["masked_face"])
            self.mask_prediction.update(masks["predicted_mask"], batch["mask"], batch["kind"])
        shown: dict[str, Tensor] = {key: mask for key, mask in masks.items() if key == "predicted_mask"}
        for source, mask in masks.items():
            completed_face = self(batch["masked_face"], mask)
            shown["completed_face" if source == "given_mask" else "completed_face_predicted_mask"] = completed_face
            metric = cast(RestorationMetric, self.restoration[source])
            metric.update(completed_face, batch["face"], batch["mask"], batch["kind"])
        return shown

    def _collect_restoration(self) -> dict[str, Any]:
        """The restoration by source of the mask since the last call."""
        restoration = {
            source: cast(RestorationMetric, metric).compute()
            for source, metric in self.restoration.items()
            if source == "given_mask" or self.segmenter is not None
        }
        for metric in self.restoration.values():
            cast(RestorationMetric, metric).reset()
        return restoration
