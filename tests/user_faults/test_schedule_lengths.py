"""The learning rate follows the length of the training that is asked for, counted in steps of the generator."""

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from deocc.modules import InpaintingModule, SegmentationModule
from tests.modules.training import NO_TEACHER, SMALL, Batches, faces, trainer_for

PEAK = 0.1


class Rates(pl.Callback):
    """Records the learning rate of every optimiser step, relative to the peak."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if optimizer is trainer.optimizers[0]:
            self.rates.append(optimizer.param_groups[0]["lr"] / PEAK)


def train(module: pl.LightningModule, folder: Path, batches: int, resume: Path | None = None, **length: Any) -> Rates:
    recorder = Rates()
    keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = trainer_for(folder, callbacks=[recorder, keep], **length)
    trainer.fit(module, DataLoader(Batches(faces(2), batches), batch_size=None), ckpt_path=resume)
    return recorder


def stage1(rate: float = PEAK) -> InpaintingModule:
    return InpaintingModule(**SMALL, **NO_TEACHER, learning_rate=rate)


def segmenter(rate: float = PEAK) -> SegmentationModule:
    return SegmentationModule(width=8, learning_rate=rate)


def cosine(steps: int) -> list[float]:
    """Rates of a training of fewer than 30 steps, whose warm-up takes one of them."""
    return [1.0] + [0.5 * (1 + math.cos(math.pi * step / (steps - 1))) for step in range(steps - 1)]


@pytest.mark.parametrize(("module", "batches", "epochs"), [(stage1, 2, -1), (segmenter, 2, -1), (stage1, 4, 9)])
def test_max_steps_are_steps_of_the_generator(module: Any, batches: int, epochs: int, tmp_path: Path) -> None:
    rates = train(module(), tmp_path, batches, max_epochs=epochs, max_steps=5).rates
    assert rates == pytest.approx(cosine(5))


@pytest.mark.parametrize("module", [stage1, segmenter])
def test_finished_run_with_more_epochs_and_fewer_steps(module: Any, tmp_path: Path) -> None:
    """As with `--trainer.max_epochs 4 --trainer.devices 2`, which halves the steps per epoch."""
    assert train(module(), tmp_path, 4, max_epochs=2).rates == pytest.approx(cosine(8))
    rates = train(module(), tmp_path, 2, tmp_path / "step=8.ckpt", max_epochs=4).rates
    assert rates == pytest.approx(cosine(12)[8:])


def test_more_max_steps_than_before(tmp_path: Path) -> None:
    train(stage1(), tmp_path, 4, max_epochs=-1, max_steps=4)
    rates = train(stage1(), tmp_path, 4, tmp_path / "step=4.ckpt", max_epochs=-1, max_steps=7).rates
    assert rates == pytest.approx(cosine(7)[4:])


@pytest.mark.parametrize(("step", "accumulate"), [(3, 1), (2, 2), (4, 1)])
def test_unchanged_training_continues_exactly(step: int, accumulate: int, tmp_path: Path) -> None:
    length: Any = {"max_epochs": 3, "accumulate_grad_batches": accumulate}
    through = train(segmenter(), tmp_path, 5, **length).rates
    resumed = train(segmenter(), tmp_path, 5, tmp_path / f"step={step}.ckpt", **length).rates
    assert resumed == through[step:]


def test_other_optimizer_settings_are_honoured(tmp_path: Path) -> None:
    train(segmenter(), tmp_path, 3, max_epochs=1)
    module = SegmentationModule(width=8, learning_rate=2 * PEAK, weight_decay=0.5)
    rates = train(module, tmp_path, 3, tmp_path / "step=3.ckpt", max_epochs=2).rates
    assert rates == pytest.approx([2 * rate for rate in cosine(6)[3:]])
    assert module.trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.5


@pytest.mark.parametrize("length", [{"max_time": "00:00:01:00"}, {"max_epochs": -1}])
def test_training_without_end_is_refused(length: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set one of them; trainer\.max_time may end the training earlier"):
        train(stage1(), tmp_path, 2, **({"max_epochs": None} | length))
