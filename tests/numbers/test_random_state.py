"""Who draws from the global random generators: students with dropout or stochastic depth, in training, and nothing else."""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from deocc.data import MaskedFaceDataModule
from deocc.modules import DistillationModule, InpaintingModule
from deocc.networks import create_embedder
from tests.data.conftest import TinyFaces
from tests.modules.test_inpainting import SMALL, faces, fit


def states() -> tuple[bytes, str, str]:
    """Of torch's, numpy's and Python's own generators."""
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state(legacy=False)), repr(random.getstate())


class Centred(DistillationModule):
    """Knows its identity centres without a data module."""

    def on_fit_start(self) -> None:
        self.center = torch.full_like(self.center, 0.1)
        self.identity_centers = torch.eye(3, len(self.center))


def build(stage: str) -> pl.LightningModule:
    small: dict[str, Any] = {**SMALL, "adversarial": "wgan"}
    return InpaintingModule(**small) if stage == "inpaint" else Centred(student_input="masked", prediction_weight=1.0, beta=0.5)


@pytest.mark.parametrize("stage", ["inpaint", "distill"])
def test_what_training_steps_do_does_not_depend_on_the_global_generators(stage: str, tmp_path: Path) -> None:
    first = build(stage)
    second = copy.deepcopy(first)
    for seed, module in enumerate((first, second)):
        for plant in (torch.manual_seed, np.random.seed, random.seed):
            plant(seed)
        fit(module, tmp_path, steps=2, batch=faces())
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "drawing"),
    [("dlib_resnet", False), ("iresnet18", False), ("inception_resnet_v1", True), ("timm/resnet18", False), ("timm/rexnet_100", True)],
)
def test_networks_with_dropout_draw_in_training_and_none_does_in_evaluation(name: str, drawing: bool) -> None:
    network = create_embedder(name, pretrained=False)
    for training, expected in ((True, drawing), (False, False)):
        before = states()
        network.train(training)(faces(2)["face"])
        assert (states() != before) == expected


def test_loading_blending_augmenting_and_masking_draw_from_no_global_generator() -> None:
    data = MaskedFaceDataModule(TinyFaces(), size=48, batch_size=4, augmentation="strong", blend_probability=1.0)
    loader = data.train_dataloader()
    items = [loader.dataset[key] for key in loader.sampler]
    before = states()
    again = [loader.dataset[key] for key in loader.sampler]
    batch = torch.utils.data.default_collate(again)
    data.on_after_batch_transfer(batch, 0)
    assert states() == before
    assert all(torch.equal(one["face"], other["face"]) for one, other in zip(items, again, strict=True))
