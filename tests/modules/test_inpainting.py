"""Stage 1: what is trained, what is not, and what a checkpoint holds."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from deocc.batch import MaskedFaceBatch
from deocc.masking import render
from deocc.modules import InpaintingModule
from deocc.modules.optimization import take_apart
from deocc.networks import Deoccluder

SMALL = {"width": 8, "discriminator_width": 8, "segmenter_width": 8}


def faces(number: int = 3, size: int = 64) -> MaskedFaceBatch:
    generator = torch.Generator().manual_seed(0)
    face = torch.nn.functional.interpolate(
        torch.rand(number, 3, 4, 4, generator=generator) * 2 - 1, (size, size), mode="bilinear"
    )
    masked_face, mask = render(face, None, "surgical", torch.arange(number))
    numbers = torch.arange(number)
    kind = torch.zeros(number, dtype=torch.int64)
    landmarks = torch.zeros(number, 5, 2)
    return MaskedFaceBatch(
        face=face,
        masked_face=masked_face,
        mask=mask,
        landmarks=landmarks,
        identity=numbers,
        other_identity=numbers[:, None].repeat(1, 2),
        other_share=torch.zeros(number, 2),
        index=numbers,
        kind=kind,
        flipped=torch.zeros(number, dtype=torch.bool),
        seed=numbers,
    )


class Batches(torch.utils.data.IterableDataset[MaskedFaceBatch]):
    """The same batch, a few times."""

    def __init__(self, batch: MaskedFaceBatch, times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[MaskedFaceBatch]:
        return iter([self.batch] * self.times)


def trainer_for(folder: Path, **settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, max_epochs=1, **quiet, **settings)


def fit(
    module: pl.LightningModule, folder: Path, steps: int = 2, batch: MaskedFaceBatch | None = None, **settings: Any
) -> pl.Trainer:
    loader = torch.utils.data.DataLoader(Batches(batch if batch is not None else faces(), steps), batch_size=None)
    trainer = trainer_for(folder, **settings)
    trainer.fit(module, loader)
    return trainer


def snapshot(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(module: torch.nn.Module, before: list[torch.Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("adversarial", ["hinge", "wgan"])
def test_a_step_trains_generator_segmenter_and_discriminators_and_not_the_teacher(
    adversarial: str, tmp_path: Path
) -> None:
    module = InpaintingModule(**SMALL, adversarial=adversarial)  # type: ignore[arg-type]
    assert module.discriminator is not None and module.teacher is not None
    parts = {
        "generator": module.generator,
        "segmenter": module.segmenter,
        "discriminator": module.discriminator,
        "average": module.average,
    }
    before = {name: snapshot(part) for name, part in parts.items()}
    teacher = snapshot(module.teacher)
    fit(module, tmp_path)
    assert all(moved(part, before[name]) for name, part in parts.items())
    assert not moved(module.teacher, teacher)


def test_without_adversarial_identity_and_perceptual_terms_neither_discriminators_nor_teacher_are_built(
    tmp_path: Path,
) -> None:
    module = InpaintingModule(**SMALL, adversarial_weight=0, identity_weight=0, perceptual_weight=0)
    assert module.discriminator is None and module.teacher is None
    fit(module, tmp_path)


def test_the_average_lags_behind_the_generator(tmp_path: Path) -> None:
    module = InpaintingModule(**SMALL, adversarial_weight=0, identity_weight=0, perceptual_weight=0, ema_decay=0.9)
    fit(module, tmp_path, steps=3)
    pairs = zip(module.average.module.parameters(), module.generator.parameters(), strict=True)
    assert any(not torch.allclose(average, current) for average, current in pairs)


def test_the_loss_falls_on_one_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = InpaintingModule(**SMALL, adversarial_weight=0, identity_weight=0, perceptual_weight=0, learning_rate=3e-3)
    batch = faces()
    before = _error(module, batch)
    fit(module, tmp_path, steps=40, batch=batch)
    assert _error(module, batch) < 0.8 * before


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_visible_pixels_are_pasted_back_exactly_in_any_precision(precision: str, tmp_path: Path) -> None:
    module = InpaintingModule(**SMALL)
    fit(module, tmp_path, precision=precision)
    batch = faces()
    completed = module(batch["masked_face"], batch["mask"])
    visible = (batch["mask"] == 0).expand_as(completed)
    assert torch.equal(completed[visible], batch["face"][visible])


def test_a_checkpoint_rebuilds_the_deoccluder_without_the_teachers_weights(tmp_path: Path) -> None:
    module = InpaintingModule(**SMALL)
    trainer = fit(module, tmp_path)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert not [key for key in content["state_dict"] if key.startswith("teacher.")]
    batch = faces()
    deoccluder = Deoccluder.from_checkpoint(tmp_path / "a.ckpt")
    torch.testing.assert_close(
        deoccluder(batch["masked_face"], batch["mask"]), module(batch["masked_face"], batch["mask"])
    )
    again = InpaintingModule.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")
    assert torch.equal(again(batch["masked_face"], batch["mask"]), module(batch["masked_face"], batch["mask"]))


@pytest.mark.parametrize("name", ["identity", "perceptual"])
def test_the_teachers_two_losses_are_computed_apart(name: str) -> None:
    module = InpaintingModule(
        **SMALL, adversarial_weight=0, **{"identity_weight": 0, "perceptual_weight": 0, f"{name}_weight": 1}
    )
    (part,) = take_apart(faces(), 1, torch.clone)
    assert set(module._generator_terms(part, part.batch["face"])) == {"reconstruction", "segmentation", name}


def test_the_gradient_penalty_draws_from_the_batchs_seeds_and_no_global() -> None:
    module = InpaintingModule(**SMALL, adversarial="wgan", identity_weight=0, perceptual_weight=0)
    batch = faces()
    losses = []
    for global_seed, seed in ((1, batch["seed"]), (2, batch["seed"]), (2, batch["seed"] + 1)):
        torch.manual_seed(global_seed)
        fresh = copy.deepcopy(module)  # spectral normalisation changes the discriminators at every call
        losses.append(fresh._discriminator_loss({**batch, "seed": seed}, -batch["face"]))  # type: ignore[typeddict-item]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[1], losses[2])


@torch.no_grad()
def _error(module: InpaintingModule, batch: MaskedFaceBatch) -> float:
    return float((module.generator(batch["masked_face"], batch["mask"]) - batch["face"]).abs().mean())
