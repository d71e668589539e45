"""Whatever the number of a loader's workers: the same batches and the same training, bit for bit."""

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


def module(workers: int) -> MaskedFaceDataModule:
    """Everything that draws at random is on."""
    settings: dict[str, Any] = {
        "augmentation": "strong",
        "blend_probability": 0.7,
        "kinds": ("surgical",),
        "num_workers": workers,
    }
    return MaskedFaceDataModule(TinyFaces(), size=48, batch_size=2, eval_batch_size=4, **settings)


def same(first: Iterable[FaceBatch], second: Iterable[FaceBatch]) -> bool:
    return all(
        one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())  # type: ignore[literal-required, arg-type]
        for one, other in zip(first, second, strict=True)
    )


def evaluated(workers: int, split: Split) -> list[FaceBatch]:
    loaders = getattr(module(workers), f"{split}_dataloader")()
    return [batch for loader in (loaders if isinstance(loaders, list) else [loaders]) for batch in loader]


def trained(workers: int, kept: bool) -> list[FaceBatch]:
    """Two epochs, by one loader whose workers live on, or by a new one in each, as after a resumption."""
    data, batches = module(workers), []
    loader = data.train_dataloader()
    for epoch in range(EPOCHS):
        loader = loader if kept else data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        batches += list(loader)
    return batches


@MORE_THAN_CORES
@pytest.mark.parametrize("split", ["val", "test", "predict"])
def test_four_workers_evaluate_what_none_does(split: Split) -> None:
    assert same(evaluated(4, split), evaluated(0, split))


@MORE_THAN_CORES
@pytest.mark.parametrize("kept", [True, False])
def test_four_workers_train_on_what_none_does_whether_or_not_they_outlive_an_epoch(kept: bool) -> None:
    expected = trained(0, kept=False)
    assert len(expected) == EPOCHS * 6 and not same(expected[:6], expected[6:])
    assert same(trained(4, kept), expected)


@pytest.mark.slow
def test_a_training_with_two_workers_ends_with_the_checkpoint_and_the_log_of_one_without(tmp_path: Path) -> None:
    """Two epochs with validation; weights, running average, optimisers and rates."""
    short = [
        "--trainer.max_epochs",
        str(EPOCHS),
        "--trainer.limit_train_batches",
        "3",
        "--trainer.limit_val_batches",
        "2",
    ]
    short += ["--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "1"]
    words = ["fit", "--config", str(ROOT / "configs/inpaint.yaml"), *SMALL, *TINY_STAGE1, *short]
    for workers in ("0", "2"):
        run_deocc(*words, "--run", str(tmp_path / workers), "--data.num_workers", workers)
    alone, shared = (
        torch.load(tmp_path / workers / "checkpoints" / "last.ckpt", weights_only=True) for workers in ("0", "2")
    )
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(shared[part], alone[part], rtol=0, atol=0)
    assert logged(tmp_path / "2") == logged(tmp_path / "0") and len(logged(tmp_path / "0")) == EPOCHS * 3
    assert (tmp_path / "2" / "metrics.csv").read_text() == (
        tmp_path / "0" / "metrics.csv"
    ).read_text()  # validation's rows too
