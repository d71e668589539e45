"""Training steps of both stages in plain PyTorch and float32, the references for the modules of `deocc.modules`.

Each class copies the networks of a module and has optimisers and a training step, but no logging, saving or checks.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from deocc.batch import MaskedFaceBatch
from deocc.losses import (
    discriminator_loss,
    feature_distance,
    generator_loss,
    instance_relation_loss,
    mask_segmentation_loss,
    masked_l1_loss,
    pair_relation_loss,
    triplet_relation_loss,
)
from deocc.modules import DistillationModule, InpaintingModule
from deocc.modules.identity_head import blended_identity_loss, own_centers
from deocc.modules.optimization import WarmupCosine
from deocc.networks.embedders.embedder import centred, unit_embedding
from deocc.networks.generator import compose

_BETAS = (0.5, 0.99)
_SHIFTS = 7  # the teacher sees faces shifted by -3 to 3 pixels in both directions
_GRADIENT_CLIP = 5.0  # of stage 2, as in configs/distill.yaml


class BareInpainting:
    """Stage 1 with the losses of `configs/inpaint.yaml`: hinge, with a teacher."""

    def __init__(self, module: InpaintingModule, steps: int) -> None:
        self.settings, self.step_number = dict(module.hparams), 0
        networks: Any = copy.deepcopy(
            (module.generator, module.segmenter, module.discriminator, module.teacher, module.average)
        )
        self.generator, self.segmenter, self.discriminator, self.teacher, self.average = networks
        rates = {name: self.settings[f"{name}learning_rate"] for name in ("", "segmenter_", "discriminator_")}
        groups = [(self.generator, rates[""]), (self.segmenter, rates["segmenter_"])]
        self.generator_optimizer = Adam(
            [{"params": list(network.parameters()), "lr": rate} for network, rate in groups], betas=_BETAS
        )
        self.discriminator_optimizer = Adam(self.discriminator.parameters(), lr=rates["discriminator_"], betas=_BETAS)
        self.schedulers = [
            WarmupCosine(optimizer, lambda: steps)
            for optimizer in (self.generator_optimizer, self.discriminator_optimizer)
        ]

    def step(self, batch: MaskedFaceBatch) -> None:
        generated = self.generator(batch["masked_face"], batch["mask"])
        completed_face = compose(batch["masked_face"], generated, batch["mask"])
        self.discriminator.requires_grad_(True)
        self._optimizer_step(self.discriminator_optimizer, self._discriminator_loss(batch, completed_face.detach()))
        self.discriminator.requires_grad_(False)
        self._optimizer_step(self.generator_optimizer, self._generator_loss(batch, generated, completed_face))
        self.average.update_parameters(self.generator)
        for scheduler in self.schedulers:
            scheduler.step()
        self.step_number += 1

    def _discriminator_loss(self, batch: MaskedFaceBatch, completed_face: Tensor) -> Tensor:
        real, fake = self.discriminator(batch["face"], batch["mask"]), self.discriminator(completed_face, batch["mask"])
        return torch.stack([discriminator_loss(r, f, "hinge") for r, f in zip(real, fake, strict=True)]).sum()

    def _generator_loss(self, batch: MaskedFaceBatch, generated: Tensor, completed_face: Tensor) -> Tensor:
        weight, face, mask = self.settings, batch["face"], batch["mask"]
        logits = self.discriminator(completed_face, mask)
        # Another shift in every step.
        shift = tuple(number - _SHIFTS // 2 for number in divmod(self.step_number % _SHIFTS**2, _SHIFTS))
        with torch.no_grad():
            clean, clean_maps = self.teacher.embed_with_features(face.roll(shift, (2, 3)))
        completed, completed_maps = self.teacher.embed_with_features(completed_face.roll(shift, (2, 3)))
        loss: Tensor = (
            weight["reconstruction_weight"] * masked_l1_loss(generated, face, mask)
            + weight["adversarial_weight"] * torch.stack([generator_loss(x, "hinge") for x in logits]).sum()
            + weight["identity_weight"] * instance_relation_loss(completed, clean)
            + weight["perceptual_weight"] * feature_distance(completed_maps, clean_maps)
            + mask_segmentation_loss(self.segmenter(batch["masked_face"]), mask)
        )
        return loss

    def _optimizer_step(self, optimizer: Adam, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(
            [parameter for group in optimizer.param_groups for parameter in group["params"]],
            self.settings["gradient_clip"],
        )
        optimizer.step()


class BareDistillation:
    """Stage 2 with the losses of `configs/distill.yaml`; faces are completed by the given mask, the teacher is run."""

    def __init__(self, module: DistillationModule, steps: int) -> None:
        self.settings = dict(module.hparams)
        networks: Any = copy.deepcopy(
            (module.teacher, module.deoccluder, module.student, module.average, module.classifier)
        )
        self.teacher, self.deoccluder, self.student, self.average, self.classifier = networks
        self.center, self.identity_centers = module.center.clone(), module.identity_centers.clone()
        rate, decay = self.settings["learning_rate"], self.settings["weight_decay"]
        student = {"params": list(self.student.parameters()), "lr": rate, "weight_decay": decay}
        classifier = {"params": list(self.classifier.parameters()), "lr": 10 * rate, "weight_decay": 0.0}
        self.optimizer = AdamW([student, classifier])
        self.scheduler = WarmupCosine(self.optimizer, lambda: steps)
        self.parameters: list[nn.Parameter] = [*student["params"], *classifier["params"]]

    def step(self, batch: MaskedFaceBatch) -> None:
        masked_face, mask = batch["masked_face"], batch["mask"]
        with torch.no_grad():
            completed_face = self.deoccluder(masked_face, mask)
            teacher = unit_embedding(self.teacher(batch["face"]), self.center)
        loss = self._loss(self.student(masked_face, completed_face, mask), teacher, batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, _GRADIENT_CLIP)
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.student)

    def _loss(self, raw: Tensor, teacher: Tensor, batch: MaskedFaceBatch) -> Tensor:
        weight, centers = self.settings, own_centers(self.identity_centers, batch)
        student = unit_embedding(raw, self.center)
        loss: Tensor = (
            weight["identity_weight"] * blended_identity_loss(self.classifier, centred(raw, self.center), batch)
            + weight["instance_weight"] * instance_relation_loss(student, teacher, centers, weight["beta"])
            + weight["pair_weight"] * pair_relation_loss(student, teacher)
            + weight["triplet_weight"] * triplet_relation_loss(student, teacher)
        )
        return loss
