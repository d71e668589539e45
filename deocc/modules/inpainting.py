"""Stage 1, de-occlusion: a GAN completes the covered part of the face, and a segmenter learns where that part is.

[0] Li et al., ACM MM 2020 (arXiv 2409.12385): generator with an attention branch, discriminators, a binary mask as input. The weights of
    the losses, the optimiser and the sizes are not known; those here are OURS.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deocc.batch import MaskedFaceBatch
from deocc.evaluation import MaskPredictionMetric, RestorationMetric
from deocc.losses import (
    discriminator_loss,
    feature_distance,
    generator_loss,
    gradient_penalty,
    instance_relation_loss,
    mask_segmentation_loss,
    masked_l1_loss,
)
from deocc.masking.random import uniform
from deocc.modules.evaluation import RestorationModule, outside_autocast
from deocc.modules.optimization import (
    Part,
    Terms,
    check_stage,
    check_weights,
    descend,
    leave_out,
    put_back,
    take_apart,
    warmup_cosine,
    weighted_terms,
)
from deocc.networks.discriminator import GlobalLocalDiscriminator
from deocc.networks.embedders.registry import create_teacher, read_options
from deocc.networks.generator import Generator, compose
from deocc.networks.layers import gaussian_blur, noisy_mask
from deocc.networks.segmenter import MaskSegmenter

STAGE = "inpainting"
_GENERATOR, _DISCRIMINATORS = 0, 1  # the optimisers' numbers
_SHIFT = 3  # pixels either way; the teacher's first layers step by four
_PENALTY_STREAM = 1 << 40  # of an image's random numbers; the renderer's streams lie below
_GRADIENT_PENALTY_WEIGHT = 10.0  # of WGAN-GP: Gulrajani et al., NeurIPS 2017


class InpaintingModule(RestorationModule):
    """Trains generator, discriminators and segmenter; evaluates with the generator's running average.

    Args:
        width: unit of the generator's channels; 24 suits a CPU, 64 the 256-pixel crops of a GPU.
        attention: whether the attention branch is there.
        discriminator_width: channels of the discriminators' first layers.
        segmenter_width: channels of the first layer of a segmenter that is trained beside the generator; None trains none, where stage 2
            gets that of a run of `SegmentationModule`.
        mask_noise: whether training masks grow or shrink by a pixel or two, each image's by its seed, as predicted masks do.
        adversarial: "hinge", or "wgan" with gradient penalty.
        reconstruction_weight: weight of the masked l1 term.
        adversarial_weight: weight of the generator's adversarial term; 0 builds no discriminators.
        identity_weight: weight of |T(completed) - T(face)|^2 over raw embeddings.
        perceptual_weight: weight of the distance between the teacher's feature maps of completed and clean face.
        teacher: the recogniser of these two terms, a name of `deocc.networks.list_embedders`; not built where both weights are 0.
        teacher_weights: its weights file; default what its package ships.
        teacher_blur: standard deviation in pixels of a Gaussian blur in front of the teacher, for both faces; its strided layers otherwise
            reward a fine grid in the completed face.
        teacher_options: its template, size, color, mean and std, where they are not what `create_embedder` takes for granted.
        learning_rate: peak, of the generator.
        segmenter_learning_rate: peak, of the segmenter.
        discriminator_learning_rate: peak, of the discriminators.
        ema_decay: of the generator's running average, per step.
        gradient_clip: largest gradient norm, of generator with segmenter and of the discriminators apart.
        accumulate: take a batch in so many parts and sum their gradients: the memory of a part, the steps of the whole batch.

    Raises:
        ValueError: accumulate below 1, weights below 0 or all 0, or a teacher without weights or through which no gradient passes.
    """

    def __init__(
        self,
        width: int = 24,
        attention: bool = True,
        discriminator_width: int = 24,
        segmenter_width: int | None = 16,
        mask_noise: bool = False,
        adversarial: Literal["hinge", "wgan"] = "hinge",
        reconstruction_weight: float = 1.0,
        adversarial_weight: float = 0.01,
        identity_weight: float = 2.0,
        perceptual_weight: float = 4.0,
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
        check_weights(self.hparams, ("reconstruction", "adversarial", "identity", "perceptual"))
        if accumulate < 1:
            raise ValueError(
                f"accumulate must be at least 1, the number of parts that a batch is taken in, got {accumulate}"
            )
        self.automatic_optimization = False
        self.generator = Generator(width=width, attention=attention)
        self.average = AveragedModel(self.generator, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)).requires_grad_(False)
        self.segmenter = MaskSegmenter(segmenter_width) if segmenter_width is not None else None
        self.discriminator = GlobalLocalDiscriminator(width=discriminator_width) if adversarial_weight > 0 else None
        for network in (self.generator, self.average, self.discriminator):
            if network is not None:  # 1.3 times as fast on a CPU core, more in bfloat16
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        taught = max(identity_weight, perceptual_weight) > 0
        self.teacher = create_teacher(teacher, teacher_weights, **read_options(teacher_options)) if taught else None
        if self.teacher is not None and not self.teacher.differentiable:
            raise ValueError(
                f"no gradient passes through the teacher {teacher!r}: take another, or identity_weight and perceptual_weight 0"
            )
        self.mask_prediction, self.bare_shares = MaskPredictionMetric(), []
        self.restoration = nn.ModuleDict({"given_mask": RestorationMetric(), "predicted_mask": RestorationMetric()})

    def training_step(self, batch: MaskedFaceBatch, batch_idx: int) -> None:
        """One step of the discriminators, then one of generator and segmenter."""
        if self.hparams["mask_noise"]:
            batch = {**batch, "mask": noisy_mask(batch["mask"], batch["seed"])}
        *others, last = take_apart(batch, self.hparams["accumulate"], self._mean_over_processes)
        shared = self._generate(last)  # its graph serves both steps; those of the other parts would fill the memory

        def generate(part: Part) -> Tensor:
            return shared if part is last else self._generate(part)

        def judge(part: Part) -> Terms:
            with torch.no_grad():
                completed_face = _completed(part, generate(part))
            return {"discriminator": part.images * self._discriminator_loss(part.batch, completed_face)}

        judged = self._step(_DISCRIMINATORS, [*others, last], judge) if self.discriminator is not None else {}
        restored = self._step(_GENERATOR, [last, *others], lambda part: self._generator_terms(part, generate(part)))
        self._log_terms(judged, restored)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients here, where a GradScaler has already unscaled them."""
        self.clip_gradients(optimizer, self.hparams["gradient_clip"], "norm")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which stage this is, and leave out the teacher: its weights are not ours to spread and are loaded anew."""
        checkpoint["stage"] = STAGE
        checkpoint["face_size"] = getattr(self.trainer.datamodule, "size", None)  # type: ignore[attr-defined]
        leave_out(checkpoint, "teacher")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another stage's checkpoint; put the teacher back.

        Raises:
            ValueError: the checkpoint is of another stage.
        """
        check_stage(checkpoint, STAGE)
        put_back(checkpoint, "teacher", self.teacher)

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        """Adam for generator and segmenter, Adam for the discriminators; both rates fall over the training."""
        betas = (0.5, 0.99)  # a low first momentum is usual for GANs
        generator = {"params": list(self.generator.parameters()), "lr": self.hparams["learning_rate"]}
        groups = [generator]
        if self.segmenter is not None:
            groups.append({"params": list(self.segmenter.parameters()), "lr": self.hparams["segmenter_learning_rate"]})
        optimizers: list[Optimizer] = [Adam(groups, betas=betas)]
        if self.discriminator is not None:
            optimizers.append(
                Adam(self.discriminator.parameters(), lr=self.hparams["discriminator_learning_rate"], betas=betas)
            )
        steps = int(self.trainer.estimated_stepping_batches)
        return optimizers, [warmup_cosine(optimizer, steps) for optimizer in optimizers]

    def _discriminator_loss(self, batch: MaskedFaceBatch, completed_face: Tensor) -> Tensor:
        discriminator, mask, kind = cast(nn.Module, self.discriminator), batch["mask"], self.hparams["adversarial"]
        real, fake = discriminator(batch["face"], mask), discriminator(completed_face, mask)
        loss = torch.stack([discriminator_loss(r, f, kind) for r, f in zip(real, fake, strict=True)]).sum()
        if kind == "wgan":

            def judge(face: Tensor) -> Tensor:
                return torch.cat([logits.flatten(1) for logits in discriminator(face, mask)], 1)

            share = uniform(batch["seed"], 1, _PENALTY_STREAM)[
                :, 0
            ]  # an image's own, in whatever part or process it is
            loss = loss + _GRADIENT_PENALTY_WEIGHT * gradient_penalty(judge, batch["face"], completed_face, share)
        return loss

    def _generator_terms(self, part: Part, generated: Tensor) -> Terms:
        """The weighted terms of generator and segmenter; a term whose weight is 0 is not computed."""
        mask, completed_face = part.batch["mask"], _completed(part, generated)
        losses: dict[str, Callable[[], Tensor]] = {
            "reconstruction": lambda: _reconstruction_loss(part, generated),
            "adversarial": lambda: part.images * self._adversarial_loss(completed_face, mask),
            **self._teacher_losses(part, completed_face),
        }
        terms = weighted_terms(self.hparams, losses)
        if self.segmenter is not None:
            terms["segmentation"] = part.images * mask_segmentation_loss(
                self.segmenter(part.batch["masked_face"]), mask
            )
        return terms

    def _adversarial_loss(self, completed_face: Tensor, mask: Tensor) -> Tensor:
        logits = cast(nn.Module, self.discriminator)(completed_face, mask)
        return torch.stack([generator_loss(x, self.hparams["adversarial"]) for x in logits]).sum()

    @outside_autocast
    def _teacher_losses(self, part: Part, completed_face: Tensor) -> dict[str, Callable[[], Tensor]]:
        """Identity and perceptual loss; empty where there is no teacher. In bfloat16 their gradients would be off by half their length."""
        if self.teacher is None:
            return {}
        # Shifted alike, by other pixels every step, so that no pattern pays which only suits the grid on which the teacher samples.
        shift = tuple(number - _SHIFT for number in divmod(self.global_step % (2 * _SHIFT + 1) ** 2, 2 * _SHIFT + 1))
        blur = self.hparams["teacher_blur"]
        with torch.no_grad():
            clean, clean_maps = self.teacher.embed_with_features(
                gaussian_blur(part.batch["face"].roll(shift, (2, 3)), blur)
            )
        completed, completed_maps = self.teacher.embed_with_features(
            gaussian_blur(completed_face.roll(shift, (2, 3)), blur)
        )
        return {
            "identity": lambda: part.images * instance_relation_loss(completed, clean),
            "perceptual": lambda: part.images * feature_distance(completed_maps, clean_maps),
        }

    def _step(self, which: int, parts: list[Part], terms: Callable[[Part], Terms]) -> Terms:
        """One step of an optimiser; where a GradScaler leaves it out, rate and running average stay where they are."""
        found, moved = descend(self, _listed(self.optimizers())[which], parts, terms)
        if moved:
            _listed(self.lr_schedulers())[which].step()
            if which == _GENERATOR:
                self.average.update_parameters(self.generator)
        return found

    def _generate(self, part: Part) -> Tensor:
        generated: Tensor = self.generator(part.batch["masked_face"], part.batch["mask"])
        return generated

    def _mean_over_processes(self, tensor: Tensor) -> Tensor:
        return cast(Tensor, self.trainer.strategy.reduce(tensor, reduce_op="mean"))

    def _log_terms(self, judged: Terms, restored: Terms) -> None:
        self.log("train/loss", torch.stack(list(restored.values())).sum(), prog_bar=True, sync_dist=True)
        self.log_dict({f"train/{name}_loss": value for name, value in judged.items()}, sync_dist=True)
        self.log_dict({f"train/{name}_term": value for name, value in restored.items()}, sync_dist=True)


def _completed(part: Part, generated: Tensor) -> Tensor:
    return compose(part.batch["masked_face"], generated, part.batch["mask"])


def _reconstruction_loss(part: Part, generated: Tensor) -> Tensor:
    """Masked l1, whose means over covered and over visible pixels have shares of their own."""
    faces = generated, part.batch["face"], part.batch["mask"]
    covered = masked_l1_loss(*faces, visible_weight=0)
    visible = masked_l1_loss(*faces, covered_weight=0)
    return part.covered * covered + part.visible * visible


def _listed(one_or_many: Any) -> list[Any]:
    """Lightning returns one optimiser or scheduler bare, and several as a list."""
    return list(one_or_many) if isinstance(one_or_many, list | tuple) else [one_or_many]
