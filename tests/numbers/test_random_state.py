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
from deocc.modules.evaluation import SteppingModule
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
    return (
        InpaintingModule(**small)
        if stage == "inpaint"
        else Centred(student_input="masked", prediction_weight=1.0, beta=0.5)
    )


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
    [
        ("dlib_resnet", False),
        ("iresnet18", False),
        ("inception_resnet_v1", True),
        ("timm/resnet18", False),
        ("timm/rexnet_100", True),
    ],
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


class Drawing(SteppingModule):
    """Keeps what each step draws from torch's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.drawn: dict[tuple[int, int], float] = {}

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.drawn[self.current_epoch, batch_idx] = float(torch.rand(()))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_what_a_step_draws_follows_from_epoch_and_batch_and_not_from_what_was_drawn_before(tmp_path: Path) -> None:
    """Another run draws the same, be it another generator's state that it begins with, or in the midst of it all."""
    quiet: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    runs = []
    for seed, skipped in ((1, 0), (2, 1)):
        torch.manual_seed(seed)
        module = Drawing()
        trainer = pl.Trainer(default_root_dir=tmp_path, max_epochs=2, accelerator="cpu", **quiet)
        trainer.fit(module, torch.utils.data.DataLoader(list(range(6 - skipped)), batch_size=2))  # type: ignore[arg-type]
        torch.rand(seed)
        runs.append(module.drawn)
    assert runs[0] == runs[1] and len(set(runs[0].values())) == len(runs[0]) == 6
