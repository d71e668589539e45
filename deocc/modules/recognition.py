"""Embedding and evaluation in stage 2: a frozen teacher, and the running average of a student that sees completed faces."""

import torch
from torch import Tensor

from deocc.batch import MaskedFaceBatch
from deocc.evaluation import AllPairs, build_results, flat_scores, mask_prediction_results, score_row
from deocc.masking import list_kinds
from deocc.modules.comparison import GALLERIES, Comparison, centred
from deocc.modules.precision import outside_autocast
from deocc.modules.stepping import SteppingModule
from deocc.networks.averaging import WeightAverage
from deocc.networks.deoccluder import Deoccluder
from deocc.networks.embedder import Embedder
from deocc.networks.student import Student

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
        return {"mask": mask, "completed_face": completed_face, "embedding": self._embed_student(masked_face, completed_face, mask)}

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
            predicted_mask_galleries={name: galleries[f"{name}_predicted_mask"] for name in ("teacher", "student") if len(galleries) == 4},
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
            shown = self._embed_completed(batch, batch["mask"] if known else self._predicted_mask(masked_face), "given_mask", "")
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
            raise ValueError("no mask given, and no de-occluder to predict it: train with model.init_args.inpainting_checkpoint")
        return _no_mask(masked_face)

    def _check_deoccluder(self) -> None:
        if self.awaits_deoccluder:
            raise ValueError(
                f"inpainting_checkpoint {FROM_CHECKPOINT!r} goes with a checkpoint of stage 2, and none was loaded: give a stage-1 run"
            )


def _no_mask(face: Tensor) -> Tensor:
    return torch.zeros_like(face[:, :1])
