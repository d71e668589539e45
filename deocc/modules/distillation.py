"""Stage 2, distillation: a student that sees completed faces learns a frozen teacher's relations among the clean faces.

Frozen generator and teacher, instance-, pair- and triplet-wise relations beside an identity loss, and the softened
instance relation are from [0]. Not known from the paper; our choice: weights of the losses, optimiser, networks,
temperature, the share of the mean in embeddings and the running average of the student.

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385.
[1] Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022: interpolation of initial and trained weights.
"""

import copy
from typing import Any, Literal, cast

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from deocc import losses
from deocc.batch import MaskedFaceBatch
from deocc.losses.distances import check_positive
from deocc.losses.relational import check_beta
from deocc.modules.evaluation import (
    FROM_CHECKPOINT,
    Comparison,
    RecognitionModule,
    identity_centers,
    mean_of_identities,
)
from deocc.modules.identity_head import (
    HeadType,
    IdentityHead,
    blended_identity_loss,
    check_head,
    clip_gradients,
    exclude_from_ddp,
    gather_head,
    own_centers,
    split_head,
)
from deocc.modules.optimization import (
    Terms,
    WarmupCosine,
    check_loss_weights,
    check_stage,
    drop_frozen,
    gradient_norms,
    restore_frozen,
    steps_left,
)
from deocc.modules.teacher_cache import TeacherCache
from deocc.networks.deoccluder import Deoccluder
from deocc.networks.embedders.embedder import centred, unit_embedding
from deocc.networks.embedders.registry import create_embedder, create_teacher, read_options
from deocc.networks.student import BareFaces, Student, StudentInput, check_bare_faces, check_start, load_student

STAGE = "distillation"
MarginType = Literal["softmax", "cosface", "arcface"]
_TERMS = ("identity", "instance", "pair", "triplet", "prediction")
_CLASSIFIER_RATE = 10.0  # relative learning rate of the classifier, which starts untrained beside a pretrained student
_MOMENTUM = 0.9


class StudentAverage(AveragedModel):
    """Exponential moving average of start + interpolation (student - start).

    With interpolation below 1, it keeps more of what the pretrained start knew about identities that the training set
    lacks [1]. The decay of step t is min(decay, t / (t + 9)), so that the start does not linger. Buffers are
    interpolated but not averaged. The average stays in evaluation mode.

    Args:
        student: network to average; its present weights are the start.
        decay: in [0, 1), largest decay of a step.
        interpolation: in (0, 1]; 1 averages the student itself.

    Raises:
        ValueError: `decay` or `interpolation` is out of range.
    """

    def __init__(self, student: nn.Module, decay: float, interpolation: float = 1.0) -> None:
        if not 0 <= decay < 1 or not 0 < interpolation <= 1:
            raise ValueError(f"expected decay in [0, 1) and interpolation in (0, 1], got {decay} and {interpolation}")
        super().__init__(student, multi_avg_fn=self._average)
        self.decay, self.interpolation = decay, interpolation
        self.start = copy.deepcopy(self.module) if interpolation < 1 else None
        self.requires_grad_(False).eval()
        self.n_averaged.fill_(1)  # the start counts; at 0, AveragedModel copies the student without interpolation

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average after an optimiser step of the student."""
        super().update_parameters(model)
        if self.start is not None:
            for buffer, start in zip(self.module.buffers(), self.start.buffers(), strict=True):
                if buffer.is_floating_point():
                    buffer.copy_(torch.lerp(start, buffer, self.interpolation))

    def train(self, mode: bool = True) -> "StudentAverage":
        """Stay in evaluation mode."""
        return super().train(False)

    def _average(self, averaged: Any, current: Any, step: Any) -> None:
        if self.start is not None:
            current = torch._foreach_lerp(list(self.start.parameters()), current, self.interpolation)
        decay = min(self.decay, float(step) / (float(step) + 9))
        torch._foreach_lerp_(averaged, current, 1 - decay)


class DistillationModule(RecognitionModule):
    """Train the student; evaluate its running average beside the teacher, with given and with predicted masks.

    Embeddings are unit vectors whose component along the mean of the training identities is scaled down (see
    `deocc.networks.embedders.embedder.unit_embedding`). Only the identity loss subtracts the mean: a part of it would
    drive the student's component along the mean to 0, away from the teacher's.

    If training shows only aligned faces and their mirror images, the teacher's embeddings of clean faces are looked up
    in a cache (`deocc.modules.teacher_cache`).

    Args:
        inpainting_checkpoint: a stage-1 checkpoint file or a model folder; "from_checkpoint" if a stage-2 checkpoint,
            which contains the de-occluder, will be loaded; None only if the student sees masked faces and no completion
            is evaluated.
        segmenter_checkpoint: a checkpoint of `SegmentationModule` for the masks; None uses stage 1's segmenter.
        teacher: a name of `deocc.networks.list_embedders`.
        teacher_weights: the teacher's weights file; None uses the packaged weights.
        teacher_options: template, size, color, mean and std of the teacher, where they differ from `create_embedder`.
        teacher_view: clean face that the teacher sees in training: "augmented" like the student's before masking, or
            "aligned", whose embedding is computed once and which teaches the student to ignore the augmentation.
        student: a name of `deocc.networks.list_embedders`; None starts from a copy of the teacher.
        student_weights: the student's initial weights file.
        student_options: as `teacher_options`.
        initial_weights: a stage-2 checkpoint, or a model folder, whose student the training starts from; the settings
            of the student must be the same. None starts from `student_weights`.
        student_input: "completed", "masked" or "both".
        mask_channel: give the mask to the student as a further channel.
        bare_faces: network that embeds faces with an empty mask, "student" or "teacher". With "teacher" nothing is lost
            on them, and the student needs no bare faces in training.
        trainable_blocks: train only the head and this many last blocks; None trains everything.
        predicted_mask_share: fraction of training images completed with the predicted mask instead of the given one.
        identity_weight: weight of the identity loss. Losses of weight 0 are not computed.
        instance_weight: weight of the instance relation.
        beta: 0 = instance relation to the teacher's embedding, 1 = to the identity's centre only.
        pair_weight: weight of the pair relation (distances).
        triplet_weight: weight of the triplet relation (angles).
        triplet_anchors: maximum number of anchors per rank and step, which take turns; None takes all.
        prediction_weight: weight of the prediction relation.
        temperature: temperature of the prediction relation.
        margin_type: margin of the identity loss: "softmax", "cosface" or "arcface".
        margin: size of the margin.
        scale: scale of identity and prediction logits.
        identity_head: "full": every rank holds the classifier of all identities; "sharded": each rank holds some rows.
        identity_sample_share: fraction of the absent identities that a step compares with; below 1 only with "sharded".
        optimizer: "adamw", or "sgd" with Nesterov momentum, which disturbs a well-trained student less at the start.
        learning_rate: peak value; the classifier, which starts untrained, learns ten times as fast.
        weight_decay: weight decay of the student.
        ema_decay: decay of the student's running average per step.
        interpolation: position of that average between the student's start (0) and its trained weights (1); below 1 the
            start must consist of trained weights only.

    Raises:
        ValueError: settings are unknown or contradict each other.
    """

    average: StudentAverage
    identity_centers: Tensor
    terms: Terms
    """Weighted losses of the current step, for callbacks that check them before the optimiser steps."""
    _graph: tuple[Terms, Tensor]
    _teacher_cache: TeacherCache | None = None

    def __init__(
        self,
        inpainting_checkpoint: str | None = None,
        segmenter_checkpoint: str | None = None,
        teacher: str = "dlib_resnet",
        teacher_weights: str | None = None,
        teacher_options: dict[str, Any] | None = None,
        teacher_view: Literal["augmented", "aligned"] = "augmented",
        student: str | None = None,
        student_weights: str | None = None,
        student_options: dict[str, Any] | None = None,
        initial_weights: str | None = None,
        student_input: StudentInput = "completed",
        mask_channel: bool = False,
        bare_faces: BareFaces = "student",
        trainable_blocks: int | None = None,
        predicted_mask_share: float = 0.0,
        identity_weight: float = 0.0,
        instance_weight: float = 1.0,
        beta: float = 0.0,
        pair_weight: float = 10.0,
        triplet_weight: float = 20.0,
        triplet_anchors: int | None = None,
        prediction_weight: float = 0.0,
        temperature: float = 4.0,
        margin_type: MarginType = "cosface",
        margin: float = 0.2,
        scale: float = 16.0,
        identity_head: HeadType = "full",
        identity_sample_share: float = 1.0,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        learning_rate: float = 3e-5,
        weight_decay: float = 1e-2,
        ema_decay: float = 0.97,
        interpolation: float = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["inpainting_checkpoint", "segmenter_checkpoint", "initial_weights"])
        # Checkpoints contain the de-occluder and the student's start; paths would mean nothing on another machine.
        restored = FROM_CHECKPOINT if inpainting_checkpoint is not None else None
        self.hparams.update(inpainting_checkpoint=restored, segmenter_checkpoint=None)
        if initial_weights is not None:
            self.hparams.update(initial_weights=FROM_CHECKPOINT)
        check_loss_weights(self.hparams, _TERMS)
        check_head(identity_head, identity_sample_share)
        check_beta(beta)
        check_positive(scale=scale, temperature=temperature)
        self.teacher = create_teacher(teacher, teacher_weights, **read_options(teacher_options))
        check_bare_faces(bare_faces, self.teacher)
        self._build_student(initial_weights)
        self._load_deoccluder(inpainting_checkpoint, segmenter_checkpoint)
        self.register_buffer("center", torch.zeros(self.teacher.embedding_dim))
        self.register_buffer("identity_centers", torch.zeros(0, self.teacher.embedding_dim))
        self.classifier: IdentityHead | None = None
        self.comparison = Comparison()

    def _build_student(self, initial_weights: str | None) -> None:
        """Build student and running average, load the student's start, and freeze what is not trained."""
        hp = self.hparams
        name, weights, options = hp["student"], hp["student_weights"], hp["student_options"]
        if name is None:  # a copy of the teacher
            name, weights = hp["teacher"], weights or hp["teacher_weights"]
            options = options or hp["teacher_options"]
        embedder, dim = create_embedder(name, weights, **read_options(options)), self.teacher.embedding_dim
        self.student = Student(embedder, dim, hp["student_input"], hp["mask_channel"])
        if initial_weights is None:
            check_start(self.student, dim, hp["interpolation"])
        elif initial_weights != FROM_CHECKPOINT:
            load_student(self.student, initial_weights)
        self.average = StudentAverage(self.student, hp["ema_decay"], hp["interpolation"])
        trainable = self.student.trainable(hp["trainable_blocks"])
        self.student.requires_grad_(False)  # here, since DDP waits for the gradients of all that is trainable by now
        for parameter in trainable:
            parameter.requires_grad_(True)

    def _load_deoccluder(self, inpainting_checkpoint: str | None, segmenter_checkpoint: str | None) -> None:
        if inpainting_checkpoint is None and self.student.needs_completion:
            raise ValueError(
                f"student_input {self.student.student_input!r} needs a de-occluder: give a stage-1 run as "
                "inpainting_checkpoint, or student_input masked"
            )
        self.awaits_deoccluder, self.deoccluder = inpainting_checkpoint == FROM_CHECKPOINT, None
        if inpainting_checkpoint is not None and not self.awaits_deoccluder:
            self.deoccluder = Deoccluder.from_checkpoint(inpainting_checkpoint, segmenter_checkpoint)

    def training_step(self, batch: MaskedFaceBatch, batch_idx: int) -> Tensor:
        """Compute and log the weighted sum of the losses."""
        mask, share = batch["mask"], self.hparams["predicted_mask_share"]
        with self._frozen_precision():
            if share > 0:  # the images are chosen by their seeds
                chosen = (batch["seed"] % 1000).float() < share * 1000
                mask = torch.where(chosen[:, None, None, None], self._predict_mask(batch["masked_face"]), mask)
            completed_face = self._student_input(batch["masked_face"], mask)
        # Dropout draws from torch's generator. Seeding it from the images makes the step reproducible after a resume.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(batch["seed"][0]))
            raw = self.student(batch["masked_face"], completed_face, mask)
        with torch.no_grad():
            known = batch.get("teacher_embedding")
            teacher = self._embed_teacher(batch["face"]) if known is None else unit_embedding(known, self.center)
        terms = self._terms(raw, teacher, batch)
        loss = torch.stack(list(terms.values())).sum()
        self.terms = {name: term.detach() for name, term in terms.items()}
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        self.log_dict({f"train/{name}_term": term for name, term in self.terms.items()}, sync_dist=True)
        self._graph = (terms, raw)
        return loss

    def _terms(self, raw: Tensor, teacher: Tensor, batch: MaskedFaceBatch) -> Terms:
        """Return the weighted losses of weight above 0 of raw student and unit teacher embeddings (B, D)."""
        hp, step, student = self.hparams, self.global_step, unit_embedding(raw, self.center)
        terms: Terms = {}
        if hp["identity_weight"] > 0:
            classifier = cast(IdentityHead, self.classifier)
            loss = blended_identity_loss(classifier, centred(raw, self.center), batch, step)
            terms["identity"] = hp["identity_weight"] * loss
        if hp["instance_weight"] > 0:
            centers = own_centers(self.identity_centers, batch)
            loss = losses.instance_relation_loss(student, teacher, centers, hp["beta"])
            terms["instance"] = hp["instance_weight"] * loss
        if hp["pair_weight"] > 0:
            terms["pair"] = hp["pair_weight"] * losses.gathered_pair_relation_loss(student, teacher)
        if hp["triplet_weight"] > 0:
            loss = losses.gathered_triplet_relation_loss(student, teacher, hp["triplet_anchors"], step)
            terms["triplet"] = hp["triplet_weight"] * loss
        if hp["prediction_weight"] > 0:
            centers = self.identity_centers
            loss = losses.prediction_relation_loss(student, teacher, centers, hp["scale"], hp["temperature"])
            terms["prediction"] = hp["prediction_weight"] * loss
        return terms

    def on_before_backward(self, loss: Tensor) -> None:
        """Log the gradient norm of each term at the embedding, at the steps that are logged."""
        terms, raw = self._graph
        del self._graph  # do not keep the graph beyond this step
        if (self.global_step + 1) % max(1, self.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            norms = gradient_norms(terms, raw, self.trainer.world_size)
            self.log_dict({f"train/{name}_gradient": norm for name, norm in norms.items()}, sync_dist=True)

    def on_train_batch_end(self, outputs: Any, batch: MaskedFaceBatch, batch_idx: int) -> None:
        """Update the running average if the optimiser stepped, which it does not while gradients accumulate."""
        if self.trainer.global_step >= int(self.average.n_averaged):
            self.average.update_parameters(self.student)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW or SGD for the trainable part of the student and the classifier, with warm-up and cosine decay."""
        hp, rate = self.hparams, self.hparams["learning_rate"]
        trainable = self.student.trainable(hp["trainable_blocks"])
        groups: list[dict[str, Any]] = [{"params": trainable, "lr": rate, "weight_decay": hp["weight_decay"]}]
        if self.classifier is not None:  # the last parameter, as `gather_head` expects
            parameters = list(self.classifier.parameters())
            groups.append({"params": parameters, "lr": _CLASSIFIER_RATE * rate, "weight_decay": 0.0})
        adamw = hp["optimizer"] == "adamw"
        optimizer = AdamW(groups) if adamw else SGD(groups, momentum=_MOMENTUM, nesterov=True)
        scheduler = WarmupCosine(optimizer, lambda: steps_left(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients; with a sharded classifier by their norm over all ranks."""
        if isinstance(self.classifier, losses.ShardedIdentityLoss):
            clip_gradients(self.classifier, optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def setup(self, stage: str) -> None:
        """Build the classifier, whose size depends on the data, and exclude from DDP what needs no synchronisation."""
        if stage == "fit" and self.hparams["identity_weight"] > 0 and self.classifier is None:
            self._build_classifier(self.trainer.datamodule.num_identities)  # type: ignore[attr-defined]
        # Every rank computes equal centres: sending them in each step would be 2 GB for a million identities.
        sharded = isinstance(self.classifier, losses.ShardedIdentityLoss)
        exclude_from_ddp(self, "identity_centers", *(["classifier"] if sharded else []))

    def on_fit_start(self) -> None:
        """Open or compute the teacher's embeddings of clean faces; for a new run, also mean and identity centres."""
        self._check_deoccluder()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        aligned = self.hparams["teacher_view"] == "aligned"
        if aligned and data.blends:
            raise ValueError(
                "teacher_view aligned knows no blended faces: set data.blend_probability to 0, "
                "or teacher_view to augmented"
            )
        new_run = len(self.identity_centers) == 0
        views = (False,) if aligned else data.plain_views
        if not new_run and not views:
            return
        cache = TeacherCache(self.teacher, self.trainer, views)
        self._teacher_cache = cache if cache.knows_training else None
        if new_run:
            embeddings, identity = cache.faces, data.training_identity
            self.center = mean_of_identities(embeddings, identity).to(self.device)
            self.identity_centers = identity_centers(embeddings, identity, self.center)
            if self.classifier is not None:
                self.classifier.initialise(identity_centers(embeddings, identity, self.center, centred))

    def on_before_batch_transfer(self, batch: MaskedFaceBatch, dataloader_idx: int) -> MaskedFaceBatch:
        """Add the teacher's cached embeddings to a training batch while it is on the CPU."""
        cache = self._teacher_cache if self.trainer.training else None
        known = cache.look_up(batch) if cache is not None else None
        return batch if known is None else {**batch, "teacher_embedding": known}

    def on_fit_end(self) -> None:
        """Close the files of the teacher cache."""
        self._teacher_cache = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the stage and the de-occluder's configuration; drop the teacher and a start that can be rebuilt."""
        checkpoint["stage"] = STAGE
        checkpoint["deoccluder"] = self.deoccluder.config if self.deoccluder is not None else None
        if self.hparams["bare_faces"] == "student" or self.hparams["teacher_weights"] is None:
            drop_frozen(checkpoint, "teacher")
        if "initial_weights" not in self.hparams:
            drop_frozen(checkpoint, "average.start")
        if isinstance(self.classifier, losses.ShardedIdentityLoss):
            gather_head(checkpoint, "classifier", self.classifier)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the frozen networks and build the de-occluder and the classifier that the checkpoint contains."""
        check_stage(checkpoint, STAGE)
        restore_frozen(checkpoint, "teacher", self.teacher)
        config, state = checkpoint["deoccluder"], checkpoint["state_dict"]
        if not any(key.startswith("average.start.") for key in state):
            restore_frozen(checkpoint, "average.start", self.average.start)
        self.deoccluder = Deoccluder(**config).to(self.device) if config is not None else None
        self.awaits_deoccluder = False
        self.identity_centers = torch.zeros_like(state["identity_centers"], device=self.device)
        if "classifier.weight" in state:
            self._build_classifier(len(state["classifier.weight"]))
        if isinstance(self.classifier, losses.ShardedIdentityLoss):
            split_head(checkpoint, "classifier", self.classifier)

    def _build_classifier(self, num_identities: int) -> None:
        hp = self.hparams
        settings = (num_identities, self.teacher.embedding_dim, hp["margin_type"], hp["margin"], hp["scale"])
        if hp["identity_head"] == "sharded":
            head: IdentityHead = losses.ShardedIdentityLoss(*settings, hp["identity_sample_share"])
        else:
            head = losses.IdentityLoss(*settings)
        self.classifier = head.to(self.device)
