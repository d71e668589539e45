"""Stage 2, distillation: a student that sees completed faces learns a frozen teacher's relations among the clean ones.

[0] Li et al., ACM MM 2020 (arXiv 2409.12385): frozen generator and teacher; instance-, pair- and triplet-wise relations beside an identity
    task loss; the instance one optionally softened towards the identity's centre. Weights of the losses, optimiser, networks and
    temperature are not known; those here are OURS, as are the centring of embeddings and the running average of the student.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import AdamW

from deocc.batch import MaskedFaceBatch
from deocc.evaluation import build_results, flat_scores, score_row
from deocc.losses import IdentityLoss, InstanceRelationLoss, PairRelationLoss, PredictionRelationLoss, TripletRelationLoss, margin_logits
from deocc.masking import list_kinds
from deocc.modules.comparison import Comparison, centred
from deocc.modules.frozen import check_stage, leave_out, put_back
from deocc.modules.schedule import warmup_cosine
from deocc.networks.averaging import WeightAverage
from deocc.networks.deoccluder import Deoccluder
from deocc.networks.embedder import create_embedder, create_teacher
from deocc.networks.student import Student, StudentInput

STAGE = "distillation"
MarginType = Literal["softmax", "cosface", "arcface"]
_SEED_STEPS = 1000  # a share is kept to a thousandth
_CLASSIFIER_RATE = 10.0  # the classifier is new, the rest of the student is pretrained


class DistillationModule(pl.LightningModule):
    """Trains the student; evaluates its running average beside the teacher, given and predicted masks apart.

    An embedding is (raw - mean) / |raw - mean|, with the mean of the teacher's identity centres: raw dlib embeddings of different people
    are alike to 0.86. Centring needs training people only.

    Args:
        inpainting_checkpoint: a stage-1 checkpoint file; None only where the student sees masked faces and no completion is evaluated.
        teacher: a name of `deocc.networks.list_embedders`.
        teacher_weights: its weights file; default what its package ships.
        student: likewise; None starts from a copy of the teacher.
        student_weights: the student's weights file to start from.
        student_input: "completed", "masked" or "both".
        mask_channel: whether the student sees the mask too.
        trainable_blocks: train the head and this many last blocks only; None trains everything.
        predicted_mask_share: share of training images completed with the predicted in place of the given mask.
        identity_weight: weight of the identity task loss. A weight of 0 leaves a loss out.
        instance_weight: weight of the instance relation.
        beta: 0 = hard instance relation, 1 = towards the identity's centre only.
        pair_weight: weight of the pair relation (distances).
        triplet_weight: weight of the triplet relation (angles).
        prediction_weight: weight of the prediction relation.
        temperature: of the prediction relation.
        margin_type: of the identity loss: "softmax", "cosface" or "arcface".
        margin: of the identity loss.
        scale: of identity and prediction logits.
        learning_rate: peak; the classifier, which is new, learns ten times as fast.
        weight_decay: of AdamW.
        ema_decay: of the student's running average, per step.
        interpolation: how far that average goes from the student's start (0) to its trained weights (1).
    """

    center: Tensor
    identity_centers: Tensor

    def __init__(
        self,
        inpainting_checkpoint: str | None = None,
        teacher: str = "dlib_resnet",
        teacher_weights: str | None = None,
        student: str | None = None,
        student_weights: str | None = None,
        student_input: StudentInput = "completed",
        mask_channel: bool = False,
        trainable_blocks: int | None = None,
        predicted_mask_share: float = 0.0,
        identity_weight: float = 0.0,
        instance_weight: float = 1.0,
        beta: float = 0.0,
        pair_weight: float = 1.0,
        triplet_weight: float = 1.0,
        prediction_weight: float = 0.0,
        temperature: float = 4.0,
        margin_type: MarginType = "cosface",
        margin: float = 0.2,
        scale: float = 16.0,
        learning_rate: float = 3e-5,
        weight_decay: float = 1e-2,
        ema_decay: float = 0.97,
        interpolation: float = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.teacher = create_teacher(teacher, teacher_weights)
        start = create_embedder(student or teacher, weights=student_weights if student else (student_weights or teacher_weights))
        self.student = Student(start, self.teacher.embedding_dim, student_input, mask_channel)
        self.average = WeightAverage(self.student, ema_decay, interpolation)
        self.deoccluder = Deoccluder.from_checkpoint(inpainting_checkpoint) if inpainting_checkpoint is not None else None
        self.register_buffer("center", torch.zeros(self.teacher.embedding_dim))
        self.register_buffer("identity_centers", torch.zeros(0, self.teacher.embedding_dim))
        self.classifier: IdentityLoss | None = None
        self.instance, self.pair, self.triplet = InstanceRelationLoss(beta), PairRelationLoss(), TripletRelationLoss()
        self.prediction = PredictionRelationLoss(scale, temperature)
        self.comparison = Comparison()

    def forward(self, masked_face: Tensor, mask: Tensor | None = None) -> Tensor:
        """Unit embeddings (B, D) of masked faces (B, 3, H, W) in [-1, 1]; the mask (B, 1, H, W) is predicted where none is given."""
        mask = self._predicted_mask(masked_face) if mask is None else mask
        return centred(self.average.network(masked_face, self._complete(masked_face, mask), mask), self.center)

    def training_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """The weighted sum of the losses; each share is logged."""
        mask = self._training_mask(batch)
        completed_face = self._complete(batch["masked_face"], mask)
        student = centred(self.student(batch["masked_face"], completed_face, mask), self.center)
        with torch.no_grad():
            teacher = centred(self.teacher(batch["face"]), self.center)
        terms = self._terms(student, teacher, batch)
        loss = torch.stack(list(terms.values())).sum()
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log_dict({f"train/{name}_term": term.detach() for name, term in terms.items()})
        return {"loss": loss, "completed_face": completed_face.detach()}

    def on_train_batch_end(self, outputs: Any, batch: MaskedFaceBatch, batch_idx: int) -> None:
        """Let the average follow, where the optimiser has stepped (not so while gradients accumulate)."""
        if self.trainer.global_step > int(self.average.steps):
            self.average.update(self.student)

    def validation_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Embed clean faces (the first loader), then masked ones by their given masks."""
        return self._embed_batch(batch, dataloader_idx, predicted=False)

    def test_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As in validation, by given and by predicted masks."""
        return self._embed_batch(batch, dataloader_idx, predicted=True)

    def predict_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Predicted mask, completed face and embedding."""
        mask = self._predicted_mask(batch["masked_face"])
        completed_face = self._complete(batch["masked_face"], mask)
        return {"mask": mask, "completed_face": completed_face, "embedding": self(batch["masked_face"], mask)}

    def on_validation_epoch_end(self) -> None:
        """Log verification and identification of teacher and student on the validation people."""
        embeddings, restoration = self.comparison.collect()
        if not self.trainer.sanity_checking:
            for row in embeddings.keys() - {"gallery_teacher", "gallery_student"}:
                self.log_dict(flat_scores(score_row(embeddings[f"gallery_{row.split('_')[0]}"], embeddings[row]), f"val/{row}"))
            for source, scores in restoration.items():
                self.log_dict(flat_scores(scores["mean"], f"val/{source}"))

    def on_test_epoch_end(self) -> None:
        """Put the results together; `deocc.callbacks` writes them down."""
        embeddings, restoration = self.comparison.collect()
        self.embeddings = dict(embeddings)
        teacher, student = (embeddings.pop(f"gallery_{name}") for name in ("teacher", "student"))
        provenance = self.trainer.datamodule.provenance()  # type: ignore[attr-defined]
        self.results = build_results(teacher, student, embeddings, restoration, list_kinds(), provenance)

    def setup(self, stage: str) -> None:
        """Build the classifier, whose size the data decide."""
        if stage == "fit" and self.hparams["identity_weight"] > 0 and self.classifier is None:
            self._build_classifier(self.trainer.datamodule.num_identities)  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        """Compute the identity centres, once: the teacher is frozen. A resumed run has them already."""
        if len(self.identity_centers) == 0:
            self._compute_centers()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the trainable part of the student and the classifier, with warm-up and cosine decay."""
        rate, blocks = self.hparams["learning_rate"], self.hparams["trainable_blocks"]
        trained = self.student.trainable(blocks)
        chosen = {id(parameter) for parameter in trained}
        for parameter in self.student.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        groups: list[dict[str, Any]] = [{"params": trained, "lr": rate, "weight_decay": self.hparams["weight_decay"]}]
        if self.classifier is not None:
            groups.append({"params": list(self.classifier.parameters()), "lr": _CLASSIFIER_RATE * rate, "weight_decay": 0.0})
        optimizer = AdamW(groups)
        scheduler = warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which stage this is and how to rebuild the de-occluder; leave out the teacher, whose weights are not ours to spread."""
        checkpoint["stage"] = STAGE
        checkpoint["deoccluder"] = self.deoccluder.config if self.deoccluder is not None else None
        leave_out(checkpoint, "teacher")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild what the checkpoint holds and the settings do not tell.

        Raises:
            ValueError: the checkpoint is of another stage.
        """
        check_stage(checkpoint, STAGE)
        put_back(checkpoint, "teacher", self.teacher)
        state = checkpoint["state_dict"]
        if checkpoint["deoccluder"] is not None:
            self.deoccluder = Deoccluder(**checkpoint["deoccluder"]).to(self.device)
        self.identity_centers = torch.zeros_like(state["identity_centers"], device=self.device)
        if "classifier.weight" in state:
            self._build_classifier(len(state["classifier.weight"]))

    def _terms(self, student: Tensor, teacher: Tensor, batch: MaskedFaceBatch) -> dict[str, Tensor]:
        """The weighted losses whose weight is not 0."""
        losses: dict[str, Callable[[], Tensor]] = {
            "identity": lambda: self._identity_term(student, batch),
            "instance": lambda: self.instance(student, teacher, self._own_centers(batch)),
            "pair": lambda: self.pair(student, teacher),
            "triplet": lambda: self.triplet(student, teacher),
            "prediction": lambda: self.prediction(student, teacher, self.identity_centers),
        }
        weights = {name: self.hparams[f"{name}_weight"] for name in losses}
        return {name: weights[name] * loss() for name, loss in losses.items() if weights[name] > 0}

    def _identity_term(self, student: Tensor, batch: MaskedFaceBatch) -> Tensor:
        """Cross-entropy over the training identities; a blended face belongs to all of its people by their shares."""
        cosine = cast(IdentityLoss, self.classifier).cosine(student)
        losses = [self._cross_entropy(cosine, identity) for identity in _people(batch).T]
        return (torch.stack(losses, 1) * _shares(batch)).sum(1).mean()

    def _cross_entropy(self, cosine: Tensor, identity: Tensor) -> Tensor:
        logits = margin_logits(cosine, identity, self.hparams["margin_type"], self.hparams["margin"])
        return F.cross_entropy(self.hparams["scale"] * logits, identity, reduction="none")

    def _own_centers(self, batch: MaskedFaceBatch) -> Tensor:
        """(B, D), each sample's identity centre, between its people's where faces are blended."""
        return F.normalize((self.identity_centers[_people(batch)] * _shares(batch)[:, :, None]).sum(1), dim=1)

    def _embed_batch(self, batch: MaskedFaceBatch, dataloader_idx: int, predicted: bool) -> dict[str, Tensor]:
        face, masked_face = batch["face"], batch["masked_face"]
        if dataloader_idx == 0:
            self.comparison.add("gallery_teacher", self._embed_teacher(face), batch)
            self.comparison.add("gallery_student", self(face, torch.zeros_like(batch["mask"])), batch)
            return {}
        self.comparison.add("teacher_masked", self._embed_teacher(masked_face), batch)
        shown = self._embed_completed(batch, batch["mask"], "given_mask", "")
        if predicted and self.deoccluder is not None:
            mask = self._predicted_mask(masked_face)
            shown |= {"predicted_mask": mask} | self._embed_completed(batch, mask, "predicted_mask", "_predicted_mask")
        return shown

    def _embed_completed(self, batch: MaskedFaceBatch, mask: Tensor, source: str, suffix: str) -> dict[str, Tensor]:
        """Teacher and student on the face completed by `mask`; returns it for the panels."""
        completed_face = self._complete(batch["masked_face"], mask)
        student = centred(self.average.network(batch["masked_face"], completed_face, mask), self.center)
        self.comparison.add(f"student{suffix}", student, batch)
        if self.deoccluder is None:
            return {}
        self.comparison.add(f"teacher_completed{suffix}", self._embed_teacher(completed_face), batch)
        self.comparison.add_restoration(source, completed_face, batch)
        return {f"completed_face{suffix}": completed_face}

    def _embed_teacher(self, face: Tensor) -> Tensor:
        return centred(self.teacher(face), self.center)

    def _complete(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """The completed face; the masked one as it is where there is no de-occluder."""
        completed_face: Tensor = self.deoccluder(masked_face, mask) if self.deoccluder is not None else masked_face
        return completed_face

    def _predicted_mask(self, masked_face: Tensor) -> Tensor:
        if self.deoccluder is None:
            raise ValueError("no mask given, and no de-occluder to predict it: train with model.init_args.inpainting_checkpoint")
        return self.deoccluder.predict_mask(masked_face)

    def _training_mask(self, batch: MaskedFaceBatch) -> Tensor:
        """The given mask, or for a share of the images, chosen by their seeds, the predicted one."""
        share = self.hparams["predicted_mask_share"]
        if share == 0:
            return batch["mask"]
        chosen = (batch["seed"] % _SEED_STEPS).float() < share * _SEED_STEPS
        return torch.where(chosen[:, None, None, None], self._predicted_mask(batch["masked_face"]), batch["mask"])

    def _build_classifier(self, num_identities: int) -> None:
        settings = self.hparams
        dim = self.teacher.embedding_dim
        self.classifier = IdentityLoss(num_identities, dim, settings["margin_type"], settings["margin"], settings["scale"]).to(self.device)

    @torch.no_grad()
    def _compute_centers(self) -> None:
        """The teacher's centre of every training identity, from clean faces, and the mean of these centres."""
        raw, identity = [], []
        for batch in self.trainer.datamodule.reference_dataloader():  # type: ignore[attr-defined]
            raw.append(self.teacher(batch["face"].to(self.device)).float())
            identity.append(batch["identity"].to(self.device))
        embeddings, people = torch.cat(raw), torch.cat(identity)
        sums = torch.zeros(int(people.max()) + 1, embeddings.shape[1], device=self.device).index_add_(0, people, embeddings)
        self.center = (sums / torch.bincount(people)[:, None]).mean(0)
        unit = torch.zeros_like(sums).index_add_(0, people, centred(embeddings, self.center))
        self.identity_centers = F.normalize(unit, dim=1)
        if self.classifier is not None:
            self.classifier.initialise(self.identity_centers)


def _people(batch: MaskedFaceBatch) -> Tensor:
    """(B, 3), whose faces a face is made of."""
    return torch.cat([batch["identity"][:, None], batch["other_identity"]], 1)


def _shares(batch: MaskedFaceBatch) -> Tensor:
    """(B, 3), by which shares; they sum to 1."""
    return torch.cat([1 - batch["other_share"].sum(1, keepdim=True), batch["other_share"]], 1)
