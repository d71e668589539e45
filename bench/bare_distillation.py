"""Training step of stage 2 in plain PyTorch and float32, the reference for `deocc.modules.DistillationModule`."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from deocc.batch import MaskedFaceBatch
from deocc.losses import instance_relation_loss, pair_relation_loss, triplet_relation_loss
from deocc.modules import DistillationModule
from deocc.modules.identity_head import blended_identity_loss, own_centers
from deocc.modules.optimization import WarmupCosine

GRADIENT_CLIP = 5.0  # as in configs/distill.yaml


class BareDistillation:
    """Copies of a module's networks with an optimiser and a training step, without logging, saving or checks.

    The losses are those of `configs/distill.yaml`; the face is completed by the given mask, and the teacher is run.
    """

    def __init__(self, module: DistillationModule, steps: int) -> None:
        """Copy the networks of a module with identity centres, for a training of `steps` steps."""
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
        """Run forward pass, backward pass, update and running average."""
        masked_face, mask = batch["masked_face"], batch["mask"]
        with torch.no_grad():
            completed_face = self.deoccluder(masked_face, mask)
            teacher = F.normalize(self.teacher(batch["face"]) - self.center, dim=1)
        student = F.normalize(self.student(masked_face, completed_face, mask) - self.center, dim=1)
        loss = self._loss(student, teacher, batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, GRADIENT_CLIP)
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.student)

    def _loss(self, student: Tensor, teacher: Tensor, batch: MaskedFaceBatch) -> Tensor:
        weight, centers = self.settings, own_centers(self.identity_centers, batch)
        loss: Tensor = (
            weight["identity_weight"] * blended_identity_loss(self.classifier, student, batch)
            + weight["instance_weight"] * instance_relation_loss(student, teacher, centers, weight["beta"])
            + weight["pair_weight"] * pair_relation_loss(student, teacher)
            + weight["triplet_weight"] * triplet_relation_loss(student, teacher)
        )
        return loss
