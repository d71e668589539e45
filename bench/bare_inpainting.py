"""Training step of stage 1 in plain PyTorch and float32, the reference for `deocc.modules.InpaintingModule`."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from deocc.batch import MaskedFaceBatch
from deocc.losses import (
    discriminator_loss,
    feature_distance,
    generator_loss,
    instance_relation_loss,
    mask_segmentation_loss,
    masked_l1_loss,
)
from deocc.modules import InpaintingModule
from deocc.modules.optimization import WarmupCosine
from deocc.networks.generator import compose

BETAS = (0.5, 0.99)
SHIFTS = 7  # the teacher sees faces shifted by -3 to 3 pixels in both directions


class BareInpainting:
    """Copies of a module's networks with two optimisers and a training step, without logging, saving or checks.

    The losses are those of `configs/inpaint.yaml`: hinge, with a teacher.
    """

    def __init__(self, module: InpaintingModule, steps: int) -> None:
        """Copy a module's networks, for a training of `steps` steps."""
        self.settings, self.step_number = dict(module.hparams), 0
        networks: Any = copy.deepcopy(
            (module.generator, module.segmenter, module.discriminator, module.teacher, module.average)
        )
        self.generator, self.segmenter, self.discriminator, self.teacher, self.average = networks
        rates = {name: self.settings[f"{name}learning_rate"] for name in ("", "segmenter_", "discriminator_")}
        groups = [(self.generator, rates[""]), (self.segmenter, rates["segmenter_"])]
        self.generator_optimizer = Adam(
            [{"params": list(network.parameters()), "lr": rate} for network, rate in groups], betas=BETAS
        )
        self.discriminator_optimizer = Adam(self.discriminator.parameters(), lr=rates["discriminator_"], betas=BETAS)
        self.schedulers = [
            WarmupCosine(optimizer, lambda: steps)
            for optimizer in (self.generator_optimizer, self.discriminator_optimizer)
        ]

    def step(self, batch: MaskedFaceBatch) -> None:
        """Update the discriminators, then generator and segmenter, then the running average."""
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
        shift = tuple(number - SHIFTS // 2 for number in divmod(self.step_number % SHIFTS**2, SHIFTS))
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
