"""Stage 1, de-occlusion: a GAN completes the covered part of the face, and a segmenter learns to predict the mask.

Generator with an attention branch, discriminators and a binary mask as input are from [0]. Not known from the paper;
our choice: weights of the losses, optimiser, sizes, the two terms through a teacher and the segmenter.

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385.
[1] Gulrajani et al., "Improved training of Wasserstein GANs", NeurIPS 2017.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import do_nothing_closure
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deocc import losses
from deocc.batch import MaskedFaceBatch
from deocc.evaluation.results import Results, build_results, flat_scores
from deocc.masking import list_kinds
from deocc.masking.random import uniform
from deocc.modules.evaluation import SUFFIXES, Comparison, gather_evidence
from deocc.modules.optimization import (
    MicroBatch,
    Terms,
    WarmupCosine,
    check_loss_weights,
    check_stage,
    drop_frozen,
    restore_frozen,
    split_micro_batches,
    steps_left,
)
from deocc.modules.precision import outside_autocast
from deocc.networks.discriminator import GlobalLocalDiscriminator
from deocc.networks.embedders.registry import create_teacher, read_options
from deocc.networks.generator import Generator, compose
from deocc.networks.layers import gaussian_blur, noisy_mask
from deocc.networks.segmenter import MaskSegmenter, mask_evidence

STAGE = "inpainting"
_GENERATOR, _DISCRIMINATOR = 0, 1  # indices of the optimisers
_BETAS = (0.5, 0.99)  # a low first momentum is usual for GANs
_MAX_SHIFT = 3  # pixels in each direction; the teacher's first layers have a stride of four
_PENALTY_STREAM = 1 << 40  # random stream of an image for the gradient penalty; the renderer uses lower ones
_PENALTY_WEIGHT = 10.0  # of WGAN-GP [1]


class InpaintingModule(pl.LightningModule):
    """Train generator, discriminators and segmenter; evaluate the generator's running average.

    Args:
        width: unit of the generator's channels; 24 suits a CPU, 64 the 256-pixel crops of a GPU.
        attention: give the generator an attention branch.
        discriminator_width: channels of the discriminators' first layers.
        segmenter_width: channels of the first layer of a segmenter trained beside the generator; None trains none, and
            stage 2 then needs a run of `SegmentationModule`.
        mask_noise: grow or shrink each training mask by a pixel or two, like the errors of predicted masks, but not the
            mask that the segmenter learns.
        adversarial: "hinge", or "wgan" with gradient penalty.
        reconstruction_weight: weight of the masked l1 term.
        chroma_weight: weight of the distance of local mean chroma, against coloured spots.
        adversarial_weight: weight of the generator's adversarial term; 0 builds no discriminators.
        identity_weight: weight of |T(completed) - T(face)|^2 over raw embeddings of the teacher T.
        perceptual_weight: weight of the distance between the teacher's feature maps of completed and clean face.
        teacher: recogniser of these two terms, a name of `deocc.networks.list_embedders`; not built if unused.
        teacher_weights: the teacher's weights file; None uses the packaged weights.
        teacher_blur: standard deviation in pixels of a Gaussian blur of both faces before the teacher, whose strides
            otherwise reward a fine grid in the completed face.
        teacher_options: template, size, color, mean and std of the teacher, where they differ from `create_embedder`.
        learning_rate: peak learning rate of the generator.
        segmenter_learning_rate: peak learning rate of the segmenter.
        discriminator_learning_rate: peak learning rate of the discriminators.
        ema_decay: decay of the generator's running average per step.
        gradient_clip: maximum gradient norm, separately for generator with segmenter and for the discriminators.
        accumulate: number of micro-batches whose gradients are summed: less memory for the same steps.

    Raises:
        ValueError: accumulate below 1, weights below 0 or all 0, or a teacher without weights or without gradients.
    """

    terms: Terms
    """Weighted losses of the current optimiser step, for callbacks that check them before it is taken."""
    results: Results

    def __init__(
        self,
        width: int = 24,
        attention: bool = True,
        discriminator_width: int = 24,
        segmenter_width: int | None = 16,
        mask_noise: bool = False,
        adversarial: Literal["hinge", "wgan"] = "hinge",
        reconstruction_weight: float = 1.0,
        chroma_weight: float = 0.0,
        adversarial_weight: float = 0.01,
        identity_weight: float = 4.0,
        perceptual_weight: float = 12.0,
        teacher: str = "dlib_resnet",
        teacher_weights: str | None = None,
        teacher_options: dict[str, Any] | None = None,
        teacher_blur: float = 0.0,
        learning_rate: float = 1e-3,
        segmenter_learning_rate: float = 3e-3,
        discriminator_learning_rate: float = 4e-4,
        ema_decay: float = 0.98,
        gradient_clip: float = 1.0,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_loss_weights(self.hparams, ("reconstruction", "chroma", "adversarial", "identity", "perceptual"))
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, the number of parts of a batch, got {accumulate}")
        self.automatic_optimization = False
        self.generator = Generator(width=width, attention=attention)
        self.average = AveragedModel(self.generator, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)).requires_grad_(False)
        self.segmenter = MaskSegmenter(segmenter_width) if segmenter_width is not None else None
        self.discriminator = GlobalLocalDiscriminator(width=discriminator_width) if adversarial_weight > 0 else None
        for network in (self.generator, self.average, self.discriminator):
            if network is not None:  # 1.3 times as fast on a CPU core, more in bfloat16
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher = None
        if max(identity_weight, perceptual_weight) > 0:
            self.teacher = create_teacher(teacher, teacher_weights, **read_options(teacher_options))
            if not self.teacher.differentiable:
                raise ValueError(
                    f"no gradient passes through the teacher {teacher!r}: choose another, "
                    "or identity_weight and perceptual_weight 0"
                )
        self.comparison = Comparison()
        self._bare_evidence: list[Tensor] = []  # of masks on bare validation faces, to calibrate the segmenter's gate

    @outside_autocast
    def forward(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """Return completed faces (B, 3, H, W) in [-1, 1], made by the averaged generator."""
        return compose(masked_face, self.average(masked_face, mask), mask)

    def training_step(self, batch: MaskedFaceBatch, batch_idx: int) -> None:
        """Take one step of the discriminators, then one of generator and segmenter."""
        mean_over_ranks = partial(self.trainer.strategy.reduce, reduce_op="mean")
        if self.hparams["mask_noise"]:
            batch = {**batch, "mask": noisy_mask(batch["mask"], batch["seed"]), "true_mask": batch["mask"]}
        *others, last = split_micro_batches(batch, self.hparams["accumulate"], mean_over_ranks)
        # The last micro-batch keeps its graph for both steps; more graphs would fill the memory.
        kept = (last, self.generator(last.batch["masked_face"], last.batch["mask"]))
        again = [(micro_batch, None) for micro_batch in others]
        if self.discriminator is not None:
            terms = self._optimizer_step(_DISCRIMINATOR, [*again, kept])
            self.log_dict({f"train/{name}_loss": term for name, term in terms.items()}, sync_dist=True)
        terms = self._optimizer_step(_GENERATOR, [kept, *again])
        self.log("train/loss", torch.stack(list(terms.values())).sum(), prog_bar=True, sync_dist=True)
        self.log_dict({f"train/{name}_term": term for name, term in terms.items()}, sync_dist=True)

    def _optimizer_step(self, index: int, parts: Sequence[tuple[MicroBatch, Tensor | None]]) -> Terms:
        """Step an optimiser on the terms of all micro-batches, and its learning rate; return the sums of the terms.

        A part is a micro-batch and its generated faces, or None to generate them here. Only the parameters of this
        optimiser collect gradients, and ranks exchange them in the last backward pass only. The running average follows
        the generator unless a GradScaler skips the step.
        """
        optimizer = _as_list(self.optimizers())[index]
        if index == _DISCRIMINATOR:  # Lightning would count it as a step of the training, see trainer.max_steps
            optimizer._on_before_step = optimizer._on_after_step = do_nothing_closure
        optimizer.zero_grad()
        totals: Terms = {}
        for number, (micro_batch, generated) in enumerate(parts, start=1):
            batch = micro_batch.batch
            with optimizer.toggle_model(sync_grad=number == len(parts)):
                if generated is None:
                    generated = self.generator(batch["masked_face"], batch["mask"])
                if index == _GENERATOR:
                    terms = self._generator_terms(micro_batch, generated)
                else:
                    completed_face = compose(batch["masked_face"], generated.detach(), batch["mask"])
                    terms = {"discriminator": micro_batch.weight * self._discriminator_loss(batch, completed_face)}
                self.manual_backward(torch.stack(list(terms.values())).sum())
            for name, term in terms.items():
                totals[name] = totals[name] + term.detach() if name in totals else term.detach()
        self.terms = totals
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 0.0
        optimizer.step()
        _as_list(self.lr_schedulers())[index].step()
        stepped = scaler is None or scaler.get_scale() >= scale  # a GradScaler lowers its scale when it skips a step
        if stepped and index == _GENERATOR:
            self.average.update_parameters(self.generator)
        return totals

    def _discriminator_loss(self, batch: MaskedFaceBatch, completed_face: Tensor) -> Tensor:
        discriminator, face, mask = cast(nn.Module, self.discriminator), batch["face"], batch["mask"]
        kind = self.hparams["adversarial"]
        real, fake = discriminator(face, mask), discriminator(completed_face, mask)
        loss = torch.stack([losses.discriminator_loss(r, f, kind) for r, f in zip(real, fake, strict=True)]).sum()
        if kind == "wgan":

            def logits(face: Tensor) -> Tensor:
                return torch.cat([scale.flatten(1) for scale in discriminator(face, mask)], 1)

            # From each image's seed, so that micro-batches and ranks draw the same numbers as the whole batch.
            position = uniform(batch["seed"], 1, _PENALTY_STREAM)[:, 0]
            loss = loss + _PENALTY_WEIGHT * losses.gradient_penalty(logits, face, completed_face, position)
        return loss

    def _generator_terms(self, micro_batch: MicroBatch, generated: Tensor) -> Terms:
        """Return the weighted losses of weight above 0 of generator and segmenter."""
        hp, batch, weight = self.hparams, micro_batch.batch, micro_batch.weight
        face, mask = batch["face"], batch["mask"]
        completed_face = compose(batch["masked_face"], generated, mask)
        terms: Terms = {}
        if hp["reconstruction_weight"] > 0:
            covered = losses.masked_l1_loss(generated, face, mask, visible_weight=0)
            visible = losses.masked_l1_loss(generated, face, mask, covered_weight=0)
            loss = micro_batch.covered_weight * covered + micro_batch.visible_weight * visible
            terms["reconstruction"] = hp["reconstruction_weight"] * loss
        if hp["chroma_weight"] > 0:
            loss = micro_batch.covered_weight * losses.local_chroma_loss(generated, face, mask)
            terms["chroma"] = hp["chroma_weight"] * loss
        if self.discriminator is not None:
            logits = self.discriminator(completed_face, mask)
            loss = torch.stack([losses.generator_loss(scale, hp["adversarial"]) for scale in logits]).sum()
            terms["adversarial"] = hp["adversarial_weight"] * weight * loss
        if self.teacher is not None:
            terms |= {name: weight * term for name, term in self._teacher_terms(face, completed_face).items()}
        if self.segmenter is not None:
            loss = losses.mask_segmentation_loss(self.segmenter(batch["masked_face"]), batch.get("true_mask", mask))
            terms["segmentation"] = weight * loss
        return terms

    @outside_autocast
    def _teacher_terms(self, face: Tensor, completed_face: Tensor) -> Terms:
        """Return weighted identity and perceptual losses, whose bfloat16 gradients would be off by half their norm."""
        hp, teacher, shifts = self.hparams, cast(Any, self.teacher), 2 * _MAX_SHIFT + 1
        # Another shift in every step, so that no pattern pays off that only fits the sampling grid of the teacher.
        row, column = divmod(self.global_step % shifts**2, shifts)
        shift = (row - _MAX_SHIFT, column - _MAX_SHIFT)
        with torch.no_grad():
            clean, clean_maps = teacher.embed_with_features(gaussian_blur(face.roll(shift, (2, 3)), hp["teacher_blur"]))
        shifted = gaussian_blur(completed_face.roll(shift, (2, 3)), hp["teacher_blur"])
        completed, completed_maps = teacher.embed_with_features(shifted)
        terms: Terms = {}
        if hp["identity_weight"] > 0:
            terms["identity"] = hp["identity_weight"] * losses.instance_relation_loss(completed, clean)
        if hp["perceptual_weight"] > 0:
            terms["perceptual"] = hp["perceptual_weight"] * losses.feature_distance(completed_maps, clean_maps)
        return terms

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        """Adam for generator and segmenter, Adam for the discriminators, each with warm-up and cosine decay."""
        hp = self.hparams
        groups = [{"params": list(self.generator.parameters()), "lr": hp["learning_rate"]}]
        if self.segmenter is not None:
            groups.append({"params": list(self.segmenter.parameters()), "lr": hp["segmenter_learning_rate"]})
        optimizers: list[Optimizer] = [Adam(groups, betas=_BETAS)]
        if self.discriminator is not None:
            rate = hp["discriminator_learning_rate"]
            optimizers.append(Adam(self.discriminator.parameters(), lr=rate, betas=_BETAS))
        return optimizers, [WarmupCosine(optimizer, lambda: steps_left(self.trainer)) for optimizer in optimizers]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients, which a GradScaler has already unscaled."""
        self.clip_gradients(optimizer, self.hparams["gradient_clip"], "norm")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the stage and the size of the faces; drop the teacher."""
        checkpoint["stage"] = STAGE
        checkpoint["face_size"] = getattr(self.trainer.datamodule, "size", None)  # type: ignore[attr-defined]
        drop_frozen(checkpoint, "teacher")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the stage and restore the teacher."""
        check_stage(checkpoint, STAGE)
        restore_frozen(checkpoint, "teacher", self.teacher)

    @outside_autocast
    def validation_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Collect the evidence of masks on bare faces (loader 0); restore masked faces (loader 1)."""
        if dataloader_idx == 1:
            return self._restore(batch)
        if self.segmenter is not None:
            self._bare_evidence.append(mask_evidence(self.segmenter(batch["face"])))
        return {}

    @outside_autocast
    def test_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Score masks predicted on bare faces (loader 0); restore masked faces (loader 1)."""
        if dataloader_idx == 1:
            return self._restore(batch)
        if self.segmenter is not None:
            predicted_mask = self.segmenter.predict_mask(batch["face"])
            self.comparison.mask_prediction.update(predicted_mask, batch["mask"], batch["kind"])
        return {}

    @outside_autocast
    def predict_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Complete faces by the predicted mask, or by the given mask without a segmenter."""
        masked_face = batch["masked_face"]
        mask = batch["mask"] if self.segmenter is None else self.segmenter.predict_mask(masked_face)
        return {"mask": mask, "completed_face": self(masked_face, mask)}

    def on_validation_epoch_end(self) -> None:
        """Calibrate the gate of the segmenter and log the restoration scores."""
        if self.segmenter is not None and len(evidence := gather_evidence(self._bare_evidence, self.device)) > 0:
            self.segmenter.calibrate_gate(evidence)
        self._bare_evidence = []
        _, restoration, _ = self.comparison.collect()
        for source, scores in restoration.items():
            self.log_dict(flat_scores(scores["mean"], f"val/{source}"))

    def on_test_epoch_end(self) -> None:
        """Build `results`, which `deocc.callbacks` writes."""
        _, restoration, mask_prediction = self.comparison.collect()
        provenance = self.trainer.datamodule.provenance()  # type: ignore[attr-defined]
        self.results = build_results({}, restoration, list_kinds(), provenance, mask_prediction=mask_prediction)

    def _restore(self, batch: MaskedFaceBatch) -> dict[str, Tensor]:
        """Complete masked faces by each available mask and update the metrics; return the images for the panels."""
        if "mask" not in batch:
            raise ValueError(
                "these faces carry real occluders, without masks and clean faces: stage 1 cannot be measured on them; "
                "test a stage-2 run"
            )
        masks, images = {"given_mask": batch["mask"]}, {}
        if self.segmenter is not None:
            masks["predicted_mask"] = images["predicted_mask"] = self.segmenter.predict_mask(batch["masked_face"])
            self.comparison.mask_prediction.update(masks["predicted_mask"], batch["mask"], batch["kind"])
        for source, mask in masks.items():
            completed_face = self(batch["masked_face"], mask)
            images[f"completed_face{SUFFIXES[source]}"] = completed_face
            metric = self.comparison.restoration[source]
            metric.update(completed_face, batch["face"], batch["mask"], batch["kind"])
        return images


def _as_list(one_or_many: Any) -> list[Any]:
    """Return a list of optimisers or schedulers; Lightning returns a single one without a list."""
    return list(one_or_many) if isinstance(one_or_many, list | tuple) else [one_or_many]
