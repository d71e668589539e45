"""Stage 1, de-occlusion: a GAN completes the covered part of the face, and a segmenter learns where that part is.

[0] Li et al., ACM MM 2020 (arXiv 2409.12385): generator with an attention branch, discriminators, a binary mask as input. The weights of
    the losses, the optimiser and the sizes are not known; those here are OURS.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deocc.batch import MaskedFaceBatch
from deocc.evaluation import RestorationMetric, build_restoration_results, flat_scores
from deocc.losses import (
    discriminator_loss,
    feature_distance,
    generator_loss,
    gradient_penalty,
    instance_relation_loss,
    mask_segmentation_loss,
    masked_l1_loss,
)
from deocc.masking import list_kinds
from deocc.modules.frozen import check_stage, leave_out, put_back
from deocc.modules.precision import outside_autocast
from deocc.modules.schedule import warmup_cosine
from deocc.modules.terms import check_weights, weighted_terms
from deocc.networks.discriminator import GlobalLocalDiscriminator
from deocc.networks.embedder import create_teacher, read_options
from deocc.networks.generator import Generator, compose
from deocc.networks.segmenter import MaskSegmenter

STAGE = "inpainting"
_SHIFT = 3  # pixels either way; the teacher's first layers step by four
_GRADIENT_PENALTY_WEIGHT = 10.0  # of WGAN-GP: Gulrajani et al., NeurIPS 2017


class InpaintingModule(pl.LightningModule):
    """Trains generator, discriminators and segmenter; evaluates with the generator's running average.

    Args:
        width: unit of the generator's channels; 24 suits a CPU, 64 the 256-pixel crops of a GPU.
        attention: whether the attention branch is there.
        discriminator_width: channels of the discriminators' first layers.
        segmenter_width: channels of the segmenter's first layer.
        adversarial: "hinge", or "wgan" with gradient penalty.
        reconstruction_weight: weight of the masked l1 term.
        adversarial_weight: weight of the generator's adversarial term; 0 builds no discriminators.
        identity_weight: weight of |T(completed) - T(face)|^2 over raw embeddings.
        perceptual_weight: weight of the distance between the teacher's feature maps of completed and clean face.
        teacher: the recogniser of these two terms, a name of `deocc.networks.list_embedders`; not built where both weights are 0.
        teacher_weights: its weights file; default what its package ships.
        teacher_options: its template, size, color, mean and std, where they are not what `create_embedder` takes for granted.
        learning_rate: peak, of the generator.
        segmenter_learning_rate: peak, of the segmenter.
        discriminator_learning_rate: peak, of the discriminators.
        ema_decay: of the generator's running average, per step.
        gradient_clip: largest gradient norm, of generator with segmenter and of the discriminators apart.

    Raises:
        ValueError: weights below 0 or all 0, or a teacher without weights or through which no gradient passes.
    """

    def __init__(
        self,
        width: int = 24,
        attention: bool = True,
        discriminator_width: int = 24,
        segmenter_width: int = 16,
        adversarial: Literal["hinge", "wgan"] = "hinge",
        reconstruction_weight: float = 1.0,
        adversarial_weight: float = 0.01,
        identity_weight: float = 2.0,
        perceptual_weight: float = 4.0,
        teacher: str = "dlib_resnet",
        teacher_weights: str | None = None,
        teacher_options: dict[str, Any] | None = None,
        learning_rate: float = 1e-3,
        segmenter_learning_rate: float = 3e-3,
        discriminator_learning_rate: float = 4e-4,
        ema_decay: float = 0.98,
        gradient_clip: float = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_weights(self.hparams, ("reconstruction", "adversarial", "identity", "perceptual"))
        self.automatic_optimization = False
        self.generator = Generator(width=width, attention=attention)
        self.average = AveragedModel(self.generator, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)).requires_grad_(False)
        self.segmenter = MaskSegmenter(width=segmenter_width)
        self.discriminator = GlobalLocalDiscriminator(width=discriminator_width) if adversarial_weight > 0 else None
        taught = max(identity_weight, perceptual_weight) > 0
        self.teacher = create_teacher(teacher, teacher_weights, **read_options(teacher_options)) if taught else None
        if self.teacher is not None and not self.teacher.differentiable:
            raise ValueError(
                f"no gradient passes through the teacher {teacher!r}: take another, or identity_weight and perceptual_weight 0"
            )
        self.restoration = nn.ModuleDict({"given_mask": RestorationMetric(), "predicted_mask": RestorationMetric()})

    @outside_autocast
    def forward(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """The completed face, (B, 3, H, W) in [-1, 1], by the generator's running average."""
        return compose(masked_face, self.average(masked_face, mask), mask)

    def training_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """One step of the discriminators, then one of generator and segmenter."""
        optimizers, schedulers = _listed(self.optimizers()), _listed(self.lr_schedulers())
        generated = self.generator(batch["masked_face"], batch["mask"])
        completed_face = compose(batch["masked_face"], generated, batch["mask"])
        losses = {}
        if self.discriminator is not None:
            with self._descent(optimizers[1]) as descend:
                losses["discriminator"] = descend(self._discriminator_loss(batch, completed_face.detach()))
        with self._descent(optimizers[0]) as descend:
            terms = self._generator_terms(batch, generated, completed_face)
            losses["generator"] = descend(torch.stack(list(terms.values())).sum())
        self.average.update_parameters(self.generator)
        for scheduler in schedulers:
            scheduler.step()
        self.log("train/loss", losses["generator"], prog_bar=True)
        self.log_dict({f"train/{name}_loss": value for name, value in losses.items() if name != "generator"})
        self.log_dict({f"train/{name}_term": value.detach() for name, value in terms.items()})
        return {"completed_face": completed_face.detach()}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients here, where a GradScaler has already unscaled them."""
        self.clip_gradients(optimizer, self.hparams["gradient_clip"], "norm")

    def validation_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Restore the masked faces (the second loader), with the given and with the predicted mask."""
        return self._evaluation_step(batch, dataloader_idx)

    def test_step(self, batch: MaskedFaceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As in validation."""
        return self._evaluation_step(batch, dataloader_idx)

    @outside_autocast
    def predict_step(self, batch: MaskedFaceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Predicted mask and completed face."""
        mask = self.segmenter.predict_mask(batch["masked_face"])
        return {"mask": mask, "completed_face": self(batch["masked_face"], mask)}

    def on_validation_epoch_end(self) -> None:
        """Log the restoration."""
        for source, scores in self._collect_restoration().items():
            self.log_dict(flat_scores(scores["mean"], f"val/{source}"))

    def on_test_epoch_end(self) -> None:
        """Put the results together; `deocc.callbacks` writes them down."""
        provenance = self.trainer.datamodule.provenance()  # type: ignore[attr-defined]
        self.results = build_restoration_results(self._collect_restoration(), list_kinds(), provenance)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which stage this is, and leave out the teacher: its weights are not ours to spread and are loaded anew."""
        checkpoint["stage"] = STAGE
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
        segmenter = {"params": list(self.segmenter.parameters()), "lr": self.hparams["segmenter_learning_rate"]}
        optimizers: list[Optimizer] = [Adam([generator, segmenter], betas=betas)]
        if self.discriminator is not None:
            optimizers.append(Adam(self.discriminator.parameters(), lr=self.hparams["discriminator_learning_rate"], betas=betas))
        steps = int(self.trainer.estimated_stepping_batches)
        return optimizers, [warmup_cosine(optimizer, steps) for optimizer in optimizers]

    def _discriminator_loss(self, batch: MaskedFaceBatch, completed_face: Tensor) -> Tensor:
        discriminator, mask, kind = cast(nn.Module, self.discriminator), batch["mask"], self.hparams["adversarial"]
        real, fake = discriminator(batch["face"], mask), discriminator(completed_face, mask)
        loss = torch.stack([discriminator_loss(r, f, kind) for r, f in zip(real, fake, strict=True)]).sum()
        if kind == "wgan":

            def judge(face: Tensor) -> Tensor:
                return torch.cat([logits.flatten(1) for logits in discriminator(face, mask)], 1)

            draws = torch.Generator(self.device).manual_seed(int(batch["seed"].sum()))
            loss = loss + _GRADIENT_PENALTY_WEIGHT * gradient_penalty(judge, batch["face"], completed_face, draws)
        return loss

    def _generator_terms(self, batch: MaskedFaceBatch, generated: Tensor, completed_face: Tensor) -> dict[str, Tensor]:
        """The weighted terms of generator and segmenter; a term whose weight is 0 is not computed."""
        face, mask = batch["face"], batch["mask"]
        losses: dict[str, Callable[[], Tensor]] = {
            "reconstruction": lambda: masked_l1_loss(generated, face, mask),
            "adversarial": lambda: self._adversarial_loss(completed_face, mask),
            **self._teacher_losses(face, completed_face),
        }
        segmentation = mask_segmentation_loss(self.segmenter(batch["masked_face"]), mask)
        return weighted_terms(self.hparams, losses) | {"segmentation": segmentation}

    def _adversarial_loss(self, completed_face: Tensor, mask: Tensor) -> Tensor:
        logits = cast(nn.Module, self.discriminator)(completed_face, mask)
        return torch.stack([generator_loss(x, self.hparams["adversarial"]) for x in logits]).sum()

    def _teacher_losses(self, face: Tensor, completed_face: Tensor) -> dict[str, Callable[[], Tensor]]:
        """Identity and perceptual loss; empty where there is no teacher."""
        if self.teacher is None:
            return {}
        # Shifted alike, by other pixels every step, so that no pattern pays which only suits the grid on which the teacher samples.
        shift = tuple(number - _SHIFT for number in divmod(self.global_step % (2 * _SHIFT + 1) ** 2, 2 * _SHIFT + 1))
        with torch.no_grad():
            clean, clean_maps = self.teacher.embed_with_features(face.roll(shift, (2, 3)))
        completed, completed_maps = self.teacher.embed_with_features(completed_face.roll(shift, (2, 3)))
        return {
            "identity": lambda: instance_relation_loss(completed, clean),
            "perceptual": lambda: feature_distance(completed_maps, clean_maps),
        }

    @contextmanager
    def _descent(self, optimizer: LightningOptimizer) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function that takes one step down a loss; meanwhile only this optimiser's networks collect gradients."""

        def descend(loss: Tensor) -> Tensor:
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return loss.detach()

        self.toggle_optimizer(optimizer)
        yield descend
        self.untoggle_optimizer(optimizer)

    @outside_autocast
    def _evaluation_step(self, batch: MaskedFaceBatch, dataloader_idx: int) -> dict[str, Tensor]:
        if dataloader_idx == 0:
            return {}
        if "mask" not in batch:
            raise ValueError(
                "these faces carry real occluders, of which neither mask nor clean face is known: stage 1 cannot be measured on them; "
                "test a stage-2 run"
            )
        predicted_mask = self.segmenter.predict_mask(batch["masked_face"])
        completed_face = self(batch["masked_face"], batch["mask"])
        restored = {"given_mask": completed_face, "predicted_mask": self(batch["masked_face"], predicted_mask)}
        for source, face in restored.items():
            cast(RestorationMetric, self.restoration[source]).update(face, batch["face"], batch["mask"], batch["kind"])
        return {"completed_face": completed_face, "predicted_mask": predicted_mask}

    def _collect_restoration(self) -> dict[str, Any]:
        """The restoration by source of the mask since the last call."""
        restoration = {source: cast(RestorationMetric, metric).compute() for source, metric in self.restoration.items()}
        for metric in self.restoration.values():
            cast(RestorationMetric, metric).reset()
        return restoration


def _listed(one_or_many: Any) -> list[Any]:
    """Lightning returns one optimiser or scheduler bare, and several as a list."""
    return list(one_or_many) if isinstance(one_or_many, list | tuple) else [one_or_many]
