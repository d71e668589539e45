"""Training steps: schedule, micro-batches, mixed precision and ranks take the step of one whole float32 batch.

Gradients are compared after one step in float64 unless a precision is given: Adam's first step turns the rounding of a
gradient near 0 into a whole learning rate.
"""

import deocc._torchvision  # isort: skip  # noqa: F401  # before Lightning, also in spawned processes

import copy
import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader

from deocc.batch import MaskedFaceBatch
from deocc.modules import InpaintingModule
from deocc.modules.optimization import WarmupCosine, gradient_norms, split_micro_batches
from tests.losses.spawning import PROCESSES, run_processes
from tests.modules.training import (
    NO_TEACHER,
    SMALL,
    Batches,
    faces,
    fit,
    moved,
    partly_bare,
    rows,
    snapshot,
    trainer_for,
)

IMAGES = 8
ROUNDING = 2.0**-8
"""The largest relative rounding error in bfloat16."""


class Recorder(pl.Callback):
    """Record the gradients of each optimiser step before clipping, and which backward passes exchanged gradients."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.exchanged: list[bool] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        self.gradients.append(torch.cat([grad.flatten().clone() for grad in gradients if grad is not None]))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self.exchanged.append(getattr(trainer.model, "require_backward_grad_sync", True))


def build(**settings: Any) -> InpaintingModule:
    """Equal networks in every call, with fixed spectral norms, which would take an iteration more per micro-batch."""
    torch.manual_seed(0)
    module = InpaintingModule(**SMALL, **settings)
    assert module.discriminator is not None
    module.discriminator.eval()
    return module


def recorded(module: InpaintingModule, folder: Path, batch: MaskedFaceBatch, **settings: Any) -> Recorder:
    recorder = Recorder()
    fit(module, folder, steps=1, batch=batch, callbacks=[recorder], **(settings or {"precision": "64-true"}))
    return recorder


def assert_same_gradients(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) == 2
    for gradient, reference in zip(found, expected, strict=True):
        assert (gradient - reference).norm() < 1e-4 * reference.norm()


def half_precision(scale: float, growth_interval: int = 2000) -> MixedPrecision:
    """Float16 as on a GPU, on the CPU; the steps of each optimiser count towards the interval."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)
    return MixedPrecision("16-mixed", "cpu", scaler)


def scale_of(precision: MixedPrecision) -> float:
    assert precision.scaler is not None
    return float(precision.scaler.get_scale())


def schedule_steps(trainer: pl.Trainer) -> list[int]:
    """Number of schedule steps of the generator and the discriminators."""
    return [int(config.scheduler.last_epoch) for config in trainer.lr_scheduler_configs]


@pytest.mark.parametrize("steps", [1, 19, 150])
def test_schedule_equals_torch(steps: int) -> None:
    rising = max(1, round(0.05 * steps))
    first, second = (SGD([nn.Parameter(torch.zeros(1))], lr=0.1) for _ in range(2))
    warmup = LinearLR(second, 1 / rising, 1.0, rising - 1)
    cosine = CosineAnnealingLR(second, max(1, steps - rising))
    schedules: list[Any] = [WarmupCosine(first, lambda: steps), SequentialLR(second, [warmup, cosine], [rising])]
    for _ in range(steps):
        assert first.param_groups[0]["lr"] == pytest.approx(second.param_groups[0]["lr"], abs=1e-12)
        for optimizer, schedule in zip((first, second), schedules, strict=True):
            optimizer.step()
            schedule.step()


def test_gradient_norms() -> None:
    embedding = torch.randn(3, 4, requires_grad=True)
    slopes = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 5.0, 12.0, 0.0]])
    terms = {"linear": (embedding * slopes).sum(), "square": embedding.square().sum() / 2}
    norms = gradient_norms(terms, embedding)
    assert float(norms["linear"]) == (5 + 0 + 13) / 3
    torch.testing.assert_close(norms["square"], embedding.norm(dim=1).mean())
    torch.stack(list(terms.values())).sum().backward()  # the graph is still there
    torch.testing.assert_close(embedding.grad, slopes + embedding)


def test_split_weights() -> None:
    parts = split_micro_batches(partly_bare(), 3, torch.clone)
    assert torch.equal(torch.cat([part.batch["index"] for part in parts]), torch.arange(IMAGES))
    assert [float(part.weight) for part in parts] == [3 / 8, 3 / 8, 2 / 8]
    torch.testing.assert_close(torch.stack([part.covered_weight for part in parts]), torch.tensor([0.4, 0.2, 0.4]))
    batch = faces(2)
    batch["mask"].zero_()
    (part,) = split_micro_batches(batch, 1, torch.clone)
    assert (float(part.weight), float(part.covered_weight), float(part.visible_weight)) == (1, 0, 1)


@pytest.mark.parametrize("number", [3, 20])
def test_micro_batches_give_gradients_of_batch(number: int, tmp_path: Path) -> None:
    whole = recorded(build(), tmp_path, partly_bare())
    found = recorded(build(accumulate=number), tmp_path, partly_bare())
    assert_same_gradients(found.gradients, whole.gradients)


@pytest.mark.parametrize(("precision", "limit"), [("float16", 0.1), ("bfloat16", 0.2)])
def test_half_precision_gradients(precision: str, limit: float, tmp_path: Path) -> None:
    # Gradients of real and completed faces nearly cancel in the discriminators.
    float16 = precision == "float16"
    lower: dict[str, Any] = {"plugins": [half_precision(2.0**10)]} if float16 else {"precision": "bf16-mixed"}
    exact = recorded(build(accumulate=2), tmp_path, partly_bare(), precision="32-true")
    low = recorded(build(accumulate=2), tmp_path, partly_bare(), **lower)
    for gradient, reference in zip(low.gradients, exact.gradients, strict=True):
        assert 0 < (gradient - reference).norm() < limit * reference.norm()


@pytest.mark.slow
def test_bfloat16_micro_batches_within_rounding(tmp_path: Path) -> None:
    """Sums over images are rounded to bfloat16: once per micro-batch by oneDNN, after each image without AVX-512."""
    low = {"precision": "bf16-mixed"}
    whole, parts = (recorded(build(accumulate=number), tmp_path, partly_bare(), **low).gradients for number in (1, 2))
    exact = recorded(build(), tmp_path, partly_bare(), precision="32-true").gradients
    for gradient, reference, true in zip(parts, whole, exact, strict=True):
        assert (gradient - reference).norm() < IMAGES * ROUNDING * reference.norm()
        assert (gradient - reference).norm() < 0.5 * (reference - true).norm()


@pytest.mark.parametrize(
    ("precision", "accumulate", "adversarial"),
    [
        ("bfloat16", 1, "wgan"),
        ("bfloat16", 2, "hinge"),
        pytest.param("float16", 1, "hinge", marks=pytest.mark.slow),
        pytest.param("float16", 2, "wgan", marks=pytest.mark.slow),
    ],
)
def test_half_precision_training_stays_finite(
    precision: str, accumulate: int, adversarial: Literal["hinge", "wgan"], tmp_path: Path
) -> None:
    module = InpaintingModule(**SMALL, **NO_TEACHER, adversarial=adversarial, accumulate=accumulate)
    names = ("generator", "segmenter", "discriminator", "average")
    before = {name: snapshot(getattr(module, name)) for name in names}
    plugin = half_precision(2.0**10, growth_interval=4)
    lower: dict[str, Any] = {"plugins": [plugin]} if precision == "float16" else {"precision": "bf16-mixed"}
    trainer = fit(module, tmp_path, steps=4, batch=partly_bare(4), **lower)
    assert all(moved(getattr(module, name), before[name]) for name in names)
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    assert trainer.global_step == 4 and schedule_steps(trainer) == [4, 4] and int(module.average.n_averaged) == 4
    if precision == "float16":
        assert scale_of(plugin) == 2.0**12  # eight steps of the two optimisers doubled it twice


def test_skipped_steps_change_nothing(tmp_path: Path) -> None:
    module, precision = build(**NO_TEACHER), half_precision(2.0**100)
    before = snapshot(module)
    trainer = fit(module, tmp_path, steps=1, plugins=[precision])
    assert scale_of(precision) == 2.0**98  # lowered once by each optimiser
    assert not moved(module, before)
    assert int(module.average.n_averaged) == 0 and schedule_steps(trainer) == [1, 1]


@pytest.mark.slow
def test_too_large_scale_falls(tmp_path: Path) -> None:
    module, plugin = build(**NO_TEACHER, accumulate=2), half_precision(2.0**24)
    trainer = fit(module, tmp_path, steps=12, batch=partly_bare(4), plugins=[plugin])
    assert trainer.global_step == 12 and schedule_steps(trainer) == [12, 12]
    assert scale_of(plugin) < 2.0**24
    assert 0 < int(module.average.n_averaged) < 12
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("skipped", ["generator", "discriminator"])
def test_one_skipped_step_leaves_other(skipped: str, accumulate: int, tmp_path: Path) -> None:
    module, plugin = build(**NO_TEACHER, accumulate=accumulate), half_precision(2.0**10)
    names = ("generator", "segmenter", "average", "discriminator")
    before = {name: snapshot(getattr(module, name)) for name in names}
    next(getattr(module, skipped).parameters()).register_hook(lambda gradient: gradient * torch.inf)
    trainer = fit(module, tmp_path, steps=1, batch=partly_bare(4), plugins=[plugin])
    generator = skipped != "generator"
    stepped = {name: moved(getattr(module, name), before[name]) for name in names}
    assert stepped == {"generator": generator, "segmenter": generator, "average": generator} | {
        "discriminator": not generator
    }
    assert int(module.average.n_averaged) == generator
    own, other = trainer.optimizers if skipped == "generator" else reversed(trainer.optimizers)
    assert not own.state and other.state  # no moments either
    assert scale_of(plugin) == 2.0**9


@pytest.mark.slow
def test_float16_resumes_exactly(tmp_path: Path) -> None:
    """Compare two epochs with the second one resumed, by a scaler that started with other settings."""

    def train(module: InpaintingModule, plugin: MixedPrecision, checkpoint: Path | None) -> pl.Trainer:
        keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        trainer = trainer_for(tmp_path, max_epochs=2, plugins=[plugin], callbacks=[keep])
        trainer.fit(module, DataLoader(Batches(partly_bare(4), 3), batch_size=None), ckpt_path=checkpoint)
        return trainer

    module = build(**NO_TEACHER, accumulate=2)
    resumed, plugins = copy.deepcopy(module), (half_precision(2.0**10, 4), half_precision(2.0**3, 2000))
    trainers = [train(module, plugins[0], None), train(resumed, plugins[1], tmp_path / "epoch=0.ckpt")]
    saved = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["MixedPrecision"]
    assert (saved["scale"], saved["_growth_tracker"]) == (2.0**11, 2)  # in the middle of an interval
    assert plugins[1].state_dict() == plugins[0].state_dict() and scale_of(plugins[0]) == 2.0**13
    assert schedule_steps(trainers[0]) == schedule_steps(trainers[1]) == [6, 6]
    torch.testing.assert_close(resumed.state_dict(), module.state_dict(), rtol=0, atol=0)


def train_half(folder: str, rank: int) -> dict[str, Any]:
    """Train on every second half of the batch in each process."""
    os.environ["LOCAL_RANK"] = str(rank)  # tells Lightning that the processes exist
    half = rows(partly_bare(), slice(rank * IMAGES // PROCESSES, (rank + 1) * IMAGES // PROCESSES))
    ddp: dict[str, Any] = {
        "strategy": DDPStrategy(find_unused_parameters=True, process_group_backend="gloo"),
        "devices": PROCESSES,
        "precision": "64-true",
    }
    recorder = recorded(build(**NO_TEACHER, accumulate=2), Path(folder), half, **ddp)
    return {"gradients": recorder.gradients, "exchanged": recorder.exchanged}


@pytest.mark.slow
def test_ranks_with_micro_batches(tmp_path: Path) -> None:
    expected = recorded(build(**NO_TEACHER), tmp_path, partly_bare())
    for outcome in run_processes(partial(train_half, str(tmp_path)), tmp_path):
        assert_same_gradients(outcome["gradients"], expected.gradients)
        assert outcome["exchanged"] == [False, True, False, True]  # once per optimiser
