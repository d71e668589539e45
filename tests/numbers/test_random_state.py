"""Only students with dropout or stochastic depth draw from torch's generator, seeded by the images of the step."""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from deocc.data import MaskedFaceDataModule
from deocc.modules import DistillationModule, InpaintingModule
from deocc.networks import create_embedder
from tests.data.conftest import TinyFaces
from tests.modules.training import SMALL, faces, fit


def states() -> tuple[bytes, str, str]:
    """Return the states of the global generators of torch, NumPy and Python."""
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state(legacy=False)), repr(random.getstate())


class WithCenters(DistillationModule):
    """Has identity centres without a data module."""

    def on_fit_start(self) -> None:
        self.center = torch.full_like(self.center, 0.1)
        self.identity_centers = torch.eye(3, len(self.center))


def with_dropout() -> DistillationModule:
    module = WithCenters(student_input="masked")
    module.student.projection = nn.Dropout(0.5)  # type: ignore[assignment]
    module.on_fit_start()
    return module.train()


@pytest.mark.parametrize("stage", ["inpaint", "distill", "dropout"])
def test_training_ignores_global_generators(stage: str, tmp_path: Path) -> None:
    first: pl.LightningModule
    if stage == "inpaint":
        first = InpaintingModule(**SMALL, adversarial="wgan")
    elif stage == "distill":
        first = WithCenters(student_input="masked", prediction_weight=1.0, beta=0.5)
    else:
        first = with_dropout()
    second = copy.deepcopy(first)
    for seed, module in enumerate((first, second)):
        for plant in (torch.manual_seed, np.random.seed, random.seed):
            plant(seed)
        fit(module, tmp_path, steps=2, batch=faces())
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_dropout_follows_image_seeds() -> None:
    module, batch = with_dropout(), faces()
    before, losses = states(), []
    for seed in (batch["seed"], batch["seed"], batch["seed"] + 1):
        losses.append(module.training_step({**batch, "seed": seed}, 0).item())
    assert losses[0] == losses[1] != losses[2]
    assert states() == before


@pytest.mark.parametrize(
    ("name", "drawing"),
    [
        ("dlib_resnet", False),
        ("iresnet18", False),
        ("inception_resnet_v1", True),
        ("timm/resnet18", False),
        ("timm/rexnet_100", True),
    ],
)
def test_embedders_draw_in_training_only(name: str, drawing: bool) -> None:
    network = create_embedder(name, pretrained=False)
    for training, expected in ((True, drawing), (False, False)):
        before = states()
        network.train(training)(faces(2)["face"])
        assert (states() != before) == expected


def test_data_draws_from_no_global_generator() -> None:
    """Load, blend, augment and mask."""
    data = MaskedFaceDataModule(TinyFaces(), size=48, batch_size=4, augmentation="strong", blend_probability=1.0)
    loader: Any = data.train_dataloader()
    items = [loader.dataset[key] for key in loader.sampler]
    before = states()
    again = [loader.dataset[key] for key in loader.sampler]
    data.on_after_batch_transfer(torch.utils.data.default_collate(again), 0)
    assert states() == before
    assert all(torch.equal(one["face"], other["face"]) for one, other in zip(items, again, strict=True))
