"""The bare loops train the same weights as the modules under Lightning."""

import copy
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bench import training
from bench.measuring import Pairs
from bench.training import (
    Alternation,
    CachedBatches,
    Setting,
    Stage,
    against_fair_share,
    bare_peak,
    build_module,
    fair_share,
    fit,
    read_setting,
    times,
)
from deocc.data import MaskedFaceDataModule

STEPS = 3
SMALL_MODEL: dict[Stage, dict[str, Any]] = {
    "inpaint": {"width": 8, "discriminator_width": 8, "segmenter_width": 8},
    "distill": {},
}
TRAINED: dict[Stage, tuple[str, ...]] = {
    "inpaint": ("generator", "segmenter", "discriminator", "average"),
    "distill": ("student", "classifier", "average"),
}
STAGES = pytest.mark.parametrize("stage", ["inpaint", "distill"])


class Watched(Alternation):
    """Keeps the initial weights of the bare loop."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.start = copy.deepcopy({name: getattr(self.bare, name) for name in TRAINED[stage_of(pl_module)]})


def stage_of(module: pl.LightningModule) -> Stage:
    return "distill" if hasattr(module, "student") else "inpaint"


def small(stage: Stage) -> Setting:
    setting = read_setting(stage)
    return setting._replace(model=setting.model | SMALL_MODEL[stage], data=setting.data | {"size": 64, "batch_size": 4})


def weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize(
    ("stage", "precision", "limit"),
    [("inpaint", "64-true", 1e-6), ("distill", "32-true", 1e-2)],
    ids=["inpaint", "distill"],
)
def test_bare_loop_trains_same_weights(stage: Stage, precision: str, limit: float) -> None:
    """In float64 for stage 1, where Adam turns the float32 rounding of a gradient near 0 into a whole step."""
    setting, pairs = small(stage), Watched()
    setting = setting._replace(trainer=setting.trainer | {"precision": precision})
    module = build_module(setting)
    fit(module, CachedBatches(MaskedFaceDataModule(**setting.data), STEPS), setting, STEPS, pairs)
    for name in TRAINED[stage]:
        bare, trained, start = (
            weights(network) for network in (getattr(pairs.bare, name), getattr(module, name), pairs.start[name])
        )
        moved = (trained - start).norm()
        assert moved > 0
        assert (bare - trained).norm() < limit * moved, name


@pytest.mark.parametrize("loading", [False, True])
def test_pairs_of_steps_are_timed(loading: bool) -> None:
    ours, reference = times(small("inpaint"), loading, 2)
    assert len(ours) == len(reference) == 2
    assert min(*ours, *reference) > 0


@STAGES
def test_bare_loop_without_trainer(stage: Stage) -> None:
    assert bare_peak(small(stage)) >= 0


def test_cached_batches_repeat() -> None:
    data = CachedBatches(MaskedFaceDataModule(size=64, batch_size=4, clean_probability=0.0), 6)
    batches = list(data.train_dataloader())
    assert len(batches) == 6
    assert batches[0]["face"] is batches[4]["face"]
    assert batches[0]["mask"].flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("threads", "cores", "busy", "share"), [(2, 2, 2, 0.5), (1, 2, 2, 2 / 3), (2, 8, 2, 1.0), (4, 2, 4, 0.5)]
)
def test_fair_share(threads: int, cores: int, busy: int, share: float) -> None:
    assert fair_share(threads, cores, busy) == pytest.approx(share)


def test_row_of_fair_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "in_own_process", lambda *_: Pairs([1.0, 2.0, 3.0], [1.0]))
    monkeypatch.setattr(training, "fair_share", lambda *_: 0.5)
    row = against_fair_share("distill", 40.0)
    size = read_setting("distill").data["batch_size"]
    assert (row["ours"], row["loaded"], row["reference"]) == (40, size / 2, 20)
    assert row["loaded_ratio"] == pytest.approx(size / 2 / 20)
