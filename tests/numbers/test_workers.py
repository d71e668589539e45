"""The number of loader workers changes neither the batches nor the training, bit for bit."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from deocc.batch import FaceBatch
from deocc.data import MaskedFaceDataModule
from tests.conftest import ROOT, SMALL, TINY_STAGE1, run_deocc
from tests.data.conftest import TinyFaces
from tests.numbers.test_processes import logged

Split = Literal["val", "test", "predict"]
EPOCHS = 2
MORE_THAN_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")


def data(workers: int) -> MaskedFaceDataModule:
    """Return a data module with everything random enabled."""
    random: dict[str, Any] = {"augmentation": "strong", "blend_probability": 0.7, "kinds": ("surgical",)}
    return MaskedFaceDataModule(TinyFaces(), size=48, batch_size=2, eval_batch_size=4, num_workers=workers, **random)


def same(first: Iterable[FaceBatch], second: Iterable[FaceBatch]) -> bool:
    batches: list[tuple[Any, Any]] = [*zip(first, second, strict=True)]
    return all(
        one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
        for one, other in batches
    )


def evaluated(workers: int, split: Split) -> list[FaceBatch]:
    loaders = getattr(data(workers), f"{split}_dataloader")()
    return [batch for loader in (loaders if isinstance(loaders, list) else [loaders]) for batch in loader]


def trained(workers: int, keep_loader: bool) -> list[FaceBatch]:
    """Return the batches of two epochs, from one loader with persistent workers or a new one per epoch."""
    module, batches = data(workers), []
    loader = module.train_dataloader()
    for epoch in range(EPOCHS):
        loader = loader if keep_loader else module.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        batches += list(loader)
    return batches


@MORE_THAN_CORES
@pytest.mark.parametrize("split", ["val", "test", "predict"])
def test_workers_evaluate_same_batches(split: Split) -> None:
    assert same(evaluated(4, split), evaluated(0, split))


@MORE_THAN_CORES
@pytest.mark.parametrize("keep_loader", [True, False])
def test_workers_train_on_same_batches(keep_loader: bool) -> None:
    expected = trained(0, keep_loader=False)
    assert len(expected) == EPOCHS * 6 and not same(expected[:6], expected[6:])
    assert same(trained(4, keep_loader), expected)


@pytest.mark.slow
def test_workers_train_same_checkpoint(tmp_path: Path) -> None:
    """Two epochs with validation: weights, running average, optimisers, schedules and log."""
    short = ["--trainer.max_epochs", str(EPOCHS), "--trainer.limit_train_batches", "3"]
    short += ["--trainer.limit_val_batches", "2", "--trainer.check_val_every_n_epoch", "1"]
    argv = ["fit", "--config", str(ROOT / "configs/inpaint.yaml"), *SMALL, *TINY_STAGE1, *short]
    runs = [tmp_path / "0", tmp_path / "2"]
    for run in runs:
        run_deocc(*argv, "--trainer.log_every_n_steps", "1", "--run", str(run), "--data.num_workers", run.name)
    alone, shared = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(shared[part], alone[part], rtol=0, atol=0)
    assert len(logged(runs[0])) == EPOCHS * 3
    assert (runs[1] / "metrics.csv").read_text() == (runs[0] / "metrics.csv").read_text()
