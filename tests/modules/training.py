"""Small batches and short CPU trainings for the tests of the modules."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from deocc.batch import MaskedFaceBatch
from deocc.data import MaskedFaceDataModule
from deocc.data.face_set import Split
from deocc.masking import render
from deocc.modules import InpaintingModule

SMALL: dict[str, Any] = {"width": 8, "discriminator_width": 8, "segmenter_width": 8}
"""Settings of a small `InpaintingModule`."""
NO_TEACHER: dict[str, Any] = {"identity_weight": 0.0, "perceptual_weight": 0.0}
GENERATOR_ONLY: dict[str, Any] = {**NO_TEACHER, "adversarial_weight": 0.0}
QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def faces(number: int = 3, size: int = 64) -> MaskedFaceBatch:
    """Blurred noise under surgical masks, every image of another identity."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(number, 3, 4, 4, generator=generator) * 2 - 1
    face = nn.functional.interpolate(noise, (size, size), mode="bilinear")
    numbers = torch.arange(number)
    masked_face, mask = render(face, None, "surgical", numbers)
    return MaskedFaceBatch(
        face=face,
        masked_face=masked_face,
        mask=mask,
        landmarks=torch.zeros(number, 5, 2),
        identity=numbers,
        mixup_identity=numbers[:, None].repeat(1, 2),
        mixup_weight=torch.zeros(number, 2),
        index=numbers,
        kind=torch.zeros(number, dtype=torch.int64),
        flipped=torch.zeros(number, dtype=torch.bool),
        seed=numbers,
    )


def partly_bare(number: int = 8) -> MaskedFaceBatch:
    """Faces of which images 1, 4 and 5 are bare, so that halves and quarters of eight differ in the number of masks."""
    batch = faces(number)
    for image in {1, 4, 5} & set(range(number)):
        batch["mask"][image], batch["masked_face"][image] = 0, batch["face"][image]
    return batch


def rows(batch: MaskedFaceBatch, chosen: slice) -> MaskedFaceBatch:
    return cast(MaskedFaceBatch, {key: cast(Tensor, value)[chosen] for key, value in batch.items()})


class OrlSubset(MaskedFaceDataModule):
    """Two small crops of each of twenty identities."""

    def __init__(self) -> None:
        super().__init__(size=64, batch_size=4, eval_batch_size=8, kinds=("surgical", "sunglasses"))

    def _chosen(self, split: Split, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return super()._chosen(split, indices)[::5]

    def training_fingerprint(self) -> str:
        """The teacher's embeddings of these images are not kept under the name of those of all images."""
        return f"{super().training_fingerprint()}-fifth"


class Batches(IterableDataset[MaskedFaceBatch]):
    """The same batch several times."""

    def __init__(self, batch: MaskedFaceBatch, times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[MaskedFaceBatch]:
        return iter([self.batch] * self.times)


def trainer_for(folder: Path, **settings: Any) -> pl.Trainer:
    return pl.Trainer(**{"default_root_dir": folder, "max_epochs": 1, "accelerator": "cpu", **QUIET, **settings})


def fit(
    module: pl.LightningModule, folder: Path, steps: int = 2, batch: MaskedFaceBatch | None = None, **settings: Any
) -> pl.Trainer:
    """Train on one batch, repeated."""
    trainer = trainer_for(folder, **settings)
    trainer.fit(module, DataLoader(Batches(batch if batch is not None else faces(), steps), batch_size=None))
    return trainer


def stage1_checkpoint(folder: Path) -> str:
    """Train a small stage 1 for one step and return the path of its checkpoint."""
    fit(InpaintingModule(**SMALL, **GENERATOR_ONLY), folder, steps=1).save_checkpoint(folder / "a.ckpt")
    return str(folder / "a.ckpt")


def fit_orl(module: pl.LightningModule, folder: Path, steps: int = 1, **settings: Any) -> pl.Trainer:
    """Train stage 2 on `OrlSubset`, without validation."""
    trainer = trainer_for(folder, limit_train_batches=steps, limit_val_batches=0, **settings)
    trainer.fit(module, datamodule=OrlSubset())
    return trainer


def snapshot(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(module: nn.Module, before: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


def export_onnx(path: Path, network: nn.Module) -> str:
    """Write a network of 40-pixel faces as an embedder "onnx" reads it; without the packages, skip the test."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(network.eval(), (torch.zeros(1, 3, 40, 40),), path, dynamo=False)
    return str(path)
