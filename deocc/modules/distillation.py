"""Stage 2, distillation: a student that sees completed faces learns a frozen teacher's relations among the clean ones.

[0] Li et al., ACM MM 2020 (arXiv 2409.12385): frozen generator and teacher; instance-, pair- and triplet-wise relations beside an identity
    task loss; the instance one optionally softened towards the identity's centre. Weights of the losses, optimiser, networks and
    temperature are not known; those here are OURS, as are the centring of embeddings and the running average of the student.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from deocc.batch import MaskedFaceBatch
from deocc.losses import InstanceRelationLoss, PredictionRelationLoss, ShardedIdentityLoss
from deocc.losses.distributed import gathered_pair_relation_loss, gathered_triplet_relation_loss
from deocc.masking.random import chosen_share
from deocc.modules.evaluation import FROM_CHECKPOINT, Comparison, RecognitionModule, centred, identity_centers
from deocc.modules.identity_head import (
    HeadType,
    IdentityHead,
    blended_identity_loss,
    build_identity_head,
    check_head,
    check_loadable,
    check_shareable,
    clip_gradients,
    gather_head,
    leave_to_processes,
    own_centers,
    share_out,
    split_head,
)
from deocc.modules.optimization import (
    check_stage,
    check_weights,
    gradient_norms,
    leave_out,
    put_back,
    warmup_cosine,
    weighted_terms,
)
from deocc.modules.row_adamw import student_optimizer
from deocc.modules.teacher_cache import TeacherCache, TrainingData
from deocc.networks.averaging import WeightAverage
from deocc.networks.deoccluder import Deoccluder
from deocc.networks.embedders.registry import create_embedder, create_teacher, read_options
from deocc.networks.student import Student, StudentInput, check_start

STAGE = "distillation"
MarginType = Literal["softmax", "cosface", "arcface"]
_TERMS = ("identity", "instance", "pair", "triplet", "prediction")


class DistillationModule(RecognitionModule):
    """Trains the student; evaluates its running average beside the teacher, given and predicted masks apart.

    An embedding is (raw - mean) / |raw - mean|, with the mean of the teacher's identity centres: raw dlib embeddings of different people
    are alike to 0.86. Centring needs training people only.

    Where training shows nothing but aligned faces and their mirror images, the teacher's embeddings of clean faces are looked up and not
    computed again (`deocc.modules.teacher_cache`).

    Args:
        inpainting_checkpoint: a stage-1 checkpoint file; "from_checkpoint" where a checkpoint of this module, which holds the de-occluder,
            is about to be loaded; None only where the student sees masked faces and no completion is evaluated.
        segmenter_checkpoint: a checkpoint of `SegmentationModule`, whose segmenter predicts the masks; None takes the one that stage 1
            trained beside its generator.
        teacher: a name of `deocc.networks.list_embedders`.
        teacher_weights: its weights file; default what its package ships.
        teacher_options: its template, size, color, mean and std, where they are not what `create_embedder` takes for granted.
        teacher_view: which clean face the teacher sees in training: "augmented", the student's own before it was masked, or "aligned", the
            photograph's aligned face, whose embedding is computed once and which teaches the student to ignore the augmentation.
        student: likewise; None starts from a copy of the teacher.
        student_weights: the student's weights file to start from.
        student_options: as `teacher_options`.
        student_input: "completed", "masked" or "both".
        mask_channel: whether the student sees the mask too.
        trainable_blocks: train the head and this many last blocks only; None trains everything.
        predicted_mask_share: share of training images completed with the predicted in place of the given mask.
        identity_weight: weight of the identity task loss. A weight of 0 leaves a loss out.
        instance_weight: weight of the instance relation.
        beta: 0 = hard instance relation, 1 = towards the identity's centre only.
        pair_weight: weight of the pair relation (distances).
        triplet_weight: weight of the triplet relation (angles).
        triplet_vertices: take the angles at so many of a process's images a step at most, in turn; None takes all.
        prediction_weight: weight of the prediction relation.
        temperature: of the prediction relation.
        margin_type: of the identity loss: "softmax", "cosface" or "arcface".
        margin: of the identity loss.
        scale: of identity and prediction logits.
        identity_head: "full": every process has the classifier of all identities; "sharded": each holds its share of the rows.
        identity_sample_share: of the identities not in the batch, the share that a step compares with; below 1 only with "sharded".
        optimizer: "adamw", or "sgd" with Nesterov momentum 0.9, which disturbs a well-trained student less in its first steps.
        learning_rate: peak; the classifier, which is new, learns ten times as fast.
        weight_decay: of the optimiser, for the student.
        ema_decay: of the student's running average, per step.
        interpolation: how far that average goes from the student's start (0) to its trained weights (1); below 1 that start must be trained
            weights alone, no random ones.
        compile_deoccluder: compile stage 1's generator; slower on a CPU, untried on a GPU.

    Raises:
        ValueError: settings that contradict each other, or unknown ones.
    """

    identity_centers: Tensor
    _pulling: tuple[dict[str, Tensor], Tensor]

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
        student_input: StudentInput = "completed",
        mask_channel: bool = False,
        trainable_blocks: int | None = None,
        predicted_mask_share: float = 0.0,
        identity_weight: float = 0.0,
        instance_weight: float = 1.0,
        beta: float = 0.0,
        pair_weight: float = 1.0,
        triplet_weight: float = 1.0,
        triplet_vertices: int | None = None,
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
        compile_deoccluder: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["inpainting_checkpoint", "segmenter_checkpoint"])
        # A path means nothing to whoever loads the checkpoint, which holds the de-occluder itself.
        self.hparams["inpainting_checkpoint"] = FROM_CHECKPOINT if inpainting_checkpoint is not None else None
        self.hparams["segmenter_checkpoint"] = None
        check_weights(self.hparams, _TERMS)
        check_head(identity_head, identity_sample_share)
        self.teacher = create_teacher(teacher, teacher_weights, **read_options(teacher_options))
        if student is None:
            student, student_weights, student_options = (
                teacher,
                student_weights or teacher_weights,
                student_options or teacher_options,
            )
        start = create_embedder(student, student_weights, **read_options(student_options))
        self.student = Student(start, self.teacher.embedding_dim, student_input, mask_channel)
        check_start(self.student, self.teacher.embedding_dim, interpolation)
        self.average = WeightAverage(self.student, ema_decay, interpolation)
        if inpainting_checkpoint is None and self.student.needs_completion:
            raise ValueError(
                f"student_input {student_input!r} needs a de-occluder: give a stage-1 run as inpainting_checkpoint, or student_input masked"
            )
        self.awaits_deoccluder = inpainting_checkpoint == FROM_CHECKPOINT
        known = inpainting_checkpoint is not None and not self.awaits_deoccluder
        self.deoccluder = (
            Deoccluder.from_checkpoint(str(inpainting_checkpoint), segmenter_checkpoint) if known else None
        )
        self.register_buffer("center", torch.zeros(self.teacher.embedding_dim))
        self.register_buffer("identity_centers", torch.zeros(0, self.teacher.embedding_dim))
        self.classifier: IdentityHead | None = None
        self.instance = InstanceRelationLoss(beta)
        self.prediction = PredictionRelationLoss(scale, temperature)
        self.comparison = Comparison()
        self._teacher_cache: TeacherCache | None = None

    def training_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """The weighted sum of the losses; each share is logged, mean over processes."""
        mask = self._training_mask(batch)
        completed_face = self._shown(batch["masked_face"], mask)
        student = centred(self.student(batch["masked_face"], completed_face, mask), self.center)
        with torch.no_grad():
            known = batch.get("teacher_embedding")
            teacher = self._embed_teacher(batch["face"]) if known is None else centred(known, self.center)
        terms = self._terms(student, teacher, batch)
        loss = torch.stack(list(terms.values())).sum()
        self.terms = {name: term.detach() for name, term in terms.items()}
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        self.log_dict({f"train/{name}_term": term for name, term in self.terms.items()}, sync_dist=True)
        self._pulling = (terms, student)
        return {"loss": loss, "completed_face": completed_face.detach()}

    def on_before_backward(self, loss: Tensor) -> None:
        """Log how hard each term pulls at the embeddings, at the steps that are logged."""
        terms, student = self._pulling
        if (self.global_step + 1) % max(1, self.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            norms = gradient_norms(terms, student, self.trainer.world_size)
            self.log_dict({f"train/{name}_gradient": norm for name, norm in norms.items()}, sync_dist=True)
        del self._pulling  # the graph is not needed beyond this step

    def on_train_batch_end(self, outputs: Any, batch: MaskedFaceBatch, batch_idx: int) -> None:
        """Let the average follow, where the optimiser has stepped (not so while gradients accumulate)."""
        if self.trainer.global_step > int(self.average.steps):
            self.average.update(self.student)

    def setup(self, stage: str) -> None:
        """Build the classifier, whose size the data decide; say what processes need not send each other."""
        if stage == "fit" and self.hparams["identity_weight"] > 0 and self.classifier is None:
            self._build_classifier(self.trainer.datamodule.num_identities)  # type: ignore[attr-defined]
        # Every process computes equal centres: sending them in each step would be 2 GB at a million people.
        leave_to_processes(
            self, "identity_centers", *(["classifier"] if isinstance(self.classifier, ShardedIdentityLoss) else [])
        )

    def configure_model(self) -> None:
        """Share the student out where the strategy brings a mesh of processes."""
        check_shareable(self.device_mesh, self.classifier)
        share_out(self.device_mesh, self.student, self.average.network, self.average.start)

    def on_fit_start(self) -> None:
        """Learn what the teacher gives for clean faces, where training can use it, and the identity centres, where they are not yet known.

        Raises:
            ValueError: the de-occluder was to come with a checkpoint, and none was loaded.
        """
        self._check_deoccluder()
        data: TrainingData = self.trainer.datamodule  # type: ignore[attr-defined]
        fresh = len(self.identity_centers) == 0
        aligned = self.hparams["teacher_view"] == "aligned"
        if aligned and data.blends:
            raise ValueError(
                "teacher_view aligned knows no blended faces: set data.blend_probability to 0, or teacher_view to augmented"
            )
        views = (False,) if aligned else data.plain_views
        if fresh or views:
            cache = TeacherCache(self.teacher, self.trainer, views)
            self._teacher_cache = cache if cache.knows_training else None
            if fresh:
                self.center, self.identity_centers = identity_centers(cache.faces, data.training_identity, self.device)
        if fresh and self.classifier is not None:
            self.classifier.initialise(self.identity_centers)
        if self.hparams["compile_deoccluder"] and self.deoccluder is not None:
            self.deoccluder.generator.compile()

    def on_before_batch_transfer(self, batch: MaskedFaceBatch, dataloader_idx: int) -> MaskedFaceBatch:
        """Add to a training batch, while it is on the CPU, what the teacher is known to give for its clean faces."""
        cache = self._teacher_cache if self.trainer.training else None
        known = cache.look_up(batch) if cache is not None else None
        return batch if known is None else {**batch, "teacher_embedding": known}

    def on_fit_end(self) -> None:
        """Let go of the files."""
        self._teacher_cache = None

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW or SGD over the trainable part of the student and the classifier, with warm-up and cosine decay."""
        blocks, rate, decay = (self.hparams[name] for name in ("trainable_blocks", "learning_rate", "weight_decay"))
        optimizer = student_optimizer(self.student, blocks, self.classifier, rate, decay, self.hparams["optimizer"])
        scheduler = warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm over all processes where the classifier lies on several."""
        if isinstance(self.classifier, ShardedIdentityLoss):
            clip_gradients(self.classifier, optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which stage this is and how to rebuild the de-occluder; leave out the teacher and the student's start, its copy.

        Their weights are not ours to spread.
        """
        checkpoint["stage"] = STAGE
        checkpoint["deoccluder"] = self.deoccluder.config if self.deoccluder is not None else None
        leave_out(checkpoint, "teacher")
        leave_out(checkpoint, "average.start")
        if isinstance(self.classifier, ShardedIdentityLoss):
            gather_head(checkpoint, "classifier", self.classifier)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild what the checkpoint holds and the settings do not tell.

        Raises:
            ValueError: the checkpoint is of another stage.
        """
        check_stage(checkpoint, STAGE)
        check_loadable(checkpoint)
        put_back(checkpoint, "teacher", self.teacher)
        put_back(checkpoint, "average.start", self.average.start)
        state = checkpoint["state_dict"]
        config = checkpoint["deoccluder"]
        self.deoccluder = Deoccluder(**config).to(self.device) if config is not None else None
        self.awaits_deoccluder = False
        self.identity_centers = torch.zeros_like(state["identity_centers"], device=self.device)
        if "classifier.weight" in state:
            self._build_classifier(len(state["classifier.weight"]))
        if isinstance(self.classifier, ShardedIdentityLoss):
            split_head(checkpoint, "classifier", self.classifier)

    def _terms(self, student: Tensor, teacher: Tensor, batch: MaskedFaceBatch) -> dict[str, Tensor]:
        """The weighted losses whose weight is not 0."""
        losses: dict[str, Callable[[], Tensor]] = {
            "identity": lambda: blended_identity_loss(
                cast(IdentityHead, self.classifier), student, batch, self.global_step
            ),
            "instance": lambda: self.instance(student, teacher, own_centers(self.identity_centers, batch)),
            "pair": lambda: gathered_pair_relation_loss(student, teacher),
            "triplet": lambda: gathered_triplet_relation_loss(
                student, teacher, max_vertices=self.hparams["triplet_vertices"], turn=self.global_step
            ),
            "prediction": lambda: self.prediction(student, teacher, self.identity_centers),
        }
        return weighted_terms(self.hparams, losses)

    def _training_mask(self, batch: MaskedFaceBatch) -> Tensor:
        """The given mask, or for a share of the images, chosen by their seeds, the predicted one."""
        share = self.hparams["predicted_mask_share"]
        if share == 0:
            return batch["mask"]
        chosen = chosen_share(batch["seed"], share)
        return torch.where(chosen[:, None, None, None], self._predicted_mask(batch["masked_face"]), batch["mask"])

    def _build_classifier(self, num_identities: int) -> None:
        head, share = self.hparams["identity_head"], self.hparams["identity_sample_share"]
        margin = (self.hparams["margin_type"], self.hparams["margin"], self.hparams["scale"])
        self.classifier = build_identity_head(head, share, num_identities, self.teacher.embedding_dim, *margin).to(
            self.device
        )
