"""Stage 1 under mixed precision: its scale, the steps that a scaler leaves out, parts of a batch, resuming."""

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import MixedPrecision
from torch.utils.data import DataLoader

from deocc.batch import MaskedFaceBatch
from deocc.modules import InpaintingModule
from tests.modules.test_inpainting import SMALL, Batches, fit, moved, snapshot
from tests.modules.test_scale import UNTAUGHT, build, partly_bare, rows, watched

ROUNDING = 2.0**-8
"""The largest relative error of a number in bfloat16."""


def half_precision(scale: float, growth_interval: int = 2000) -> MixedPrecision:
    """What Lightning builds for a GPU, on the CPU; each optimiser's step counts towards the interval."""
    return MixedPrecision(
        "16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)
    )


def some() -> MaskedFaceBatch:
    """Four images, of which one is bare: float16 takes long on a CPU."""
    return rows(partly_bare(), slice(4))


def scale_of(precision: MixedPrecision) -> float:
    assert precision.scaler is not None
    return float(precision.scaler.get_scale())


def steps_of(trainer: pl.Trainer) -> list[int]:
    """How often each optimiser's rate went on: the generator's, the discriminators'."""
    return [int(config.scheduler.last_epoch) for config in trainer.lr_scheduler_configs]


@pytest.mark.parametrize(
    ("precision", "accumulate", "adversarial"),
    [
        ("bfloat16", 1, "wgan"),
        ("bfloat16", 2, "hinge"),
        pytest.param("float16", 1, "hinge", marks=pytest.mark.slow),
        pytest.param("float16", 2, "wgan", marks=pytest.mark.slow),
    ],
)
def test_a_gan_trains_in_half_precision_in_parts_too_and_stays_finite(
    precision: str, accumulate: int, adversarial: str, tmp_path: Path
) -> None:
    module = InpaintingModule(**SMALL, **UNTAUGHT, adversarial=adversarial, accumulate=accumulate)  # type: ignore[arg-type]
    assert module.discriminator is not None
    parts = [module.generator, module.segmenter, module.discriminator, module.average]
    before, plugin = [snapshot(part) for part in parts], half_precision(2.0**10, growth_interval=4)
    lower: dict[str, Any] = {"plugins": [plugin]} if precision == "float16" else {"precision": "bf16-mixed"}
    trainer = fit(module, tmp_path, steps=4, batch=some(), **lower)
    assert all(moved(part, old) for part, old in zip(parts, before, strict=True))
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    assert steps_of(trainer) == [4, 4] and int(module.average.n_averaged) == 4
    if precision == "float16":
        assert scale_of(plugin) == 2.0**12  # eight steps of the two optimisers doubled it twice


@pytest.mark.slow
def test_a_scale_that_is_too_large_falls_until_steps_are_taken_and_only_those_count(tmp_path: Path) -> None:
    module, plugin = build(**UNTAUGHT, accumulate=2), half_precision(2.0**24)
    trainer = fit(module, tmp_path, steps=12, batch=some(), plugins=[plugin])
    taken = steps_of(trainer)
    left_out = 2 * 12 - sum(taken)
    assert left_out > 0 and min(taken) > 0
    assert scale_of(plugin) == 2.0 ** (24 - left_out)
    assert int(module.average.n_averaged) == taken[0]
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("which", ["generator", "discriminator"])
def test_one_optimisers_left_out_step_moves_nothing_of_its_own_and_does_not_hold_up_the_other(
    which: str, accumulate: int, tmp_path: Path
) -> None:
    module, plugin = build(**UNTAUGHT, accumulate=accumulate), half_precision(2.0**10)
    assert module.discriminator is not None
    networks = {"generator": module.generator, "discriminator": module.discriminator}
    before = {name: snapshot(network) for name, network in networks.items()}
    averaged, segmented = snapshot(module.average), snapshot(module.segmenter)
    next(networks[which].parameters()).register_hook(lambda gradient: gradient * torch.inf)
    trainer = fit(module, tmp_path, steps=1, batch=some(), plugins=[plugin])
    assert {name: moved(network, before[name]) for name, network in networks.items()} == {
        name: name != which for name in networks
    }
    of_generator = which != "generator"
    assert (
        moved(module.average, averaged) == moved(module.segmenter, segmented) == of_generator
    )  # one optimiser, one step
    assert int(module.average.n_averaged) == of_generator
    assert steps_of(trainer) == [int(of_generator), int(not of_generator)]
    own, other = trainer.optimizers if which == "generator" else reversed(trainer.optimizers)
    assert not own.state and other.state  # no moments either
    assert scale_of(plugin) == 2.0**9


@pytest.mark.slow
def test_a_gan_resumes_in_float16_with_its_scale_and_goes_on_exactly(tmp_path: Path) -> None:
    """Two epochs in one go, and the second one alone from the first one's checkpoint, by a scaler that began elsewhere."""

    def second_epoch(module: InpaintingModule, plugin: MixedPrecision, start: Path | None) -> pl.Trainer:
        keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(
            default_root_dir=tmp_path, max_epochs=2, accelerator="cpu", plugins=[plugin], callbacks=[keep], **quiet
        )
        trainer.fit(module, DataLoader(Batches(some(), 3), batch_size=None), ckpt_path=start)
        return trainer

    module = build(**UNTAUGHT, accumulate=2)
    resumed, plugins = copy.deepcopy(module), (half_precision(2.0**10, 4), half_precision(2.0**3, 2000))
    trainers = [second_epoch(module, plugins[0], None), second_epoch(resumed, plugins[1], tmp_path / "epoch=0.ckpt")]
    kept = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["MixedPrecision"]
    assert (kept["scale"], kept["_growth_tracker"]) == (2.0**11, 2)  # in the midst of an interval
    assert plugins[1].state_dict() == plugins[0].state_dict() and scale_of(plugins[0]) == 2.0**13
    assert steps_of(trainers[0]) == steps_of(trainers[1]) == [6, 6]
    torch.testing.assert_close(resumed.state_dict(), module.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
def test_parts_in_bfloat16_step_with_the_gradients_of_the_whole_batch_in_bfloat16(tmp_path: Path) -> None:
    """Up to the rounding of sums over images, each part's to bfloat16 before they are added: less than bfloat16 differs from float32."""
    whole, parts = (
        watched(build(accumulate=number), tmp_path, partly_bare(), precision="bf16-mixed").gradients
        for number in (1, 2)
    )
    exact = watched(build(), tmp_path, partly_bare(), precision="32-true").gradients
    for ours, theirs, true in zip(parts, whole, exact, strict=True):
        assert (ours - theirs).norm() < 4 * ROUNDING * theirs.norm()
        assert (ours - theirs).norm() < 0.5 * (theirs - true).norm()
