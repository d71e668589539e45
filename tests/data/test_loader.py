"""The loader gives the same batches with any number of workers and processes, and wherever an epoch is resumed."""

import hashlib
import os
import random
import signal
from multiprocessing import active_children
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.data import Dataset

from deocc.data import FaceSet, MaskedFaceDataModule
from deocc.data.loader import EpochSampler, FaceLoader, ItemKey, Quarantine, item_seed, share_of_process

Batch = dict[str, Tensor]
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


def use_process(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    """Pretend to be one of several processes."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: world_size > 1)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)


def epoch_order(epoch: int, seed: int = 0) -> list[ItemKey]:
    sampler = EpochSampler(50, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_sampler_visits_every_item_once() -> None:
    order = epoch_order(4)
    assert sorted(order) == [(4, position) for position in range(50)] and order != sorted(order)


def test_sampler_depends_on_seed_and_epoch() -> None:
    assert epoch_order(1, seed=5) == epoch_order(1, seed=5)
    positions = [[position for _, position in epoch_order(*key)] for key in ((0, 5), (1, 5), (0, 6))]
    assert positions[0] != positions[1] and positions[0] != positions[2]


@pytest.mark.parametrize(("length", "processes"), [(1, 3), (7, 2), (64, 4), (50, 1), (2, 5), (8, 2)])
def test_sampler_splits_the_padded_order(length: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(item_seed(3, "order", 0))
    order = torch.randperm(length, generator=generator).tolist()
    padded = (order * processes)[: -(-length // processes) * processes]
    for rank in range(processes):
        use_process(monkeypatch, rank, processes)
        sampler = EpochSampler(length, seed=3)
        keys = list(sampler)
        assert keys == [(0, position) for position in padded[rank::processes]] and len(keys) == len(sampler)
        sampler.skipped = 2
        assert list(sampler) == keys[2:] and list(sampler) == keys


def test_sampler_epoch_is_fixed_once_begun() -> None:
    sampler = EpochSampler(5, 0)
    keys = iter(sampler)
    sampler.set_epoch(1)
    items = list(keys)
    assert {number for number, _ in items} == {0} and {type(value) for item in items for value in item} == {int}


def test_item_seed_is_blake2b() -> None:
    digest = hashlib.blake2b(b"1/order/2", digest_size=8).hexdigest()
    assert item_seed(1, "order", 2) == int(digest, 16) // 2 == 5971170691884857887
    assert item_seed("caf\udce9") == int(hashlib.blake2b(b"caf\xe9", digest_size=8).hexdigest(), 16) // 2


@pytest.mark.parametrize(("length", "processes"), [(7, 2), (10, 4), (6, 1), (2, 5)])
def test_share_of_process_repeats_nothing(length: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except the first item, for processes that would get none."""
    shares = []
    for rank in range(processes):
        use_process(monkeypatch, rank, processes)
        shares.append(share_of_process(length))
    seen = sorted(position for share in shares for position in share)
    assert seen == sorted([*range(length), *[0] * max(0, processes - length)])


def data(faces: FaceSet, workers: int = 0, **changes: Any) -> MaskedFaceDataModule:
    settings = {"size": 48, "batch_size": 2, "eval_batch_size": 1, "num_workers": workers, **changes}
    return MaskedFaceDataModule(faces, **settings)


def train_loader(faces: FaceSet, workers: int = 0, epoch: int = 0) -> FaceLoader:
    loader = data(faces, workers).train_dataloader()
    cast(EpochSampler, loader.sampler).set_epoch(epoch)
    return loader


def assert_same(found: list[Any], expected: list[Any]) -> None:
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_starts_with_the_first_batch(tiny_faces: FaceSet, workers: int) -> None:
    loader = data(tiny_faces, workers).train_dataloader()
    batches = iter(loader)
    assert active_children() == []
    cast(EpochSampler, loader.sampler).set_epoch(5)
    assert_same(list(batches), list(train_loader(tiny_faces, epoch=5)))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_continues_within_an_epoch(tiny_faces: FaceSet, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, read, image = list(train_loader(tiny_faces, epoch=1)), [], tiny_faces.image
    interrupted = train_loader(tiny_faces, workers, epoch=1)
    batches = iter(interrupted)
    assert_same([next(batches) for _ in range(4)], expected[:4])
    state = interrupted.state_dict()
    assert state == {"epoch": 1, "batches": 4}

    def noted(index: int) -> Any:
        read.append(index)
        return image(index)

    monkeypatch.setattr(tiny_faces, "image", noted)
    resumed = data(tiny_faces, workers).train_dataloader()
    resumed.load_state_dict(state)
    cast(EpochSampler, resumed.sampler).set_epoch(1)
    assert_same(list(resumed), expected[4:])
    assert resumed.state_dict() == {"epoch": 1, "batches": len(resumed)} == {"epoch": 1, "batches": 6}
    assert set(read) == (set() if workers else {int(index) for batch in expected[4:] for index in batch["index"]})
    assert_same(list(resumed), expected)


def test_loader_begins_the_next_epoch(tiny_faces: FaceSet) -> None:
    loader = data(tiny_faces).train_dataloader()
    loader.load_state_dict({"epoch": 1, "batches": 5})
    cast(EpochSampler, loader.sampler).set_epoch(2)
    assert_same(list(loader), list(train_loader(tiny_faces, epoch=2)))


def test_workers_ignore_ctrl_c(tiny_faces: FaceSet) -> None:
    batches = iter(train_loader(tiny_faces, 1))
    first = next(batches)
    worker = active_children()[0]
    for number in (signal.SIGINT, signal.SIGUSR1):
        os.kill(cast(int, worker.pid), number)
        worker.join(0.1)
    assert_same([first, *batches], list(train_loader(tiny_faces)))


class Recorder(pl.LightningModule):
    """Notes the seeds that it is trained on; writes a checkpoint after some batches and stops there."""

    def __init__(self, stop: tuple[int, Path] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.stop, self.seeds, self.validated = stop, cast(list[list[int]], []), set[int]()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seeds.append(batch["seed"].tolist())
        assert batch["mask"].shape == (len(batch["seed"]), 1, 48, 48) and batch["mask"].any()
        return self.weight * 0

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int) -> None:
        self.validated.add(dataloader_idx)
        assert (dataloader_idx > 0) == bool(batch["mask"].any())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.stop is not None and len(self.seeds) == self.stop[0]:
            self.trainer.save_checkpoint(self.stop[1])
            raise KeyboardInterrupt

    def predict_step(self, batch: Batch, batch_idx: int) -> list[int]:
        return cast(list[int], batch["index"].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    module: Recorder, faces: FaceSet, workers: int, checkpoint: Path | None = None, validated: int = 0
) -> list[list[int]]:
    settings: dict[str, Any] = {"use_distributed_sampler": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=3, limit_val_batches=validated, **settings, **QUIET)
    masked = data(faces, workers, clean_probability=0)
    trainer.fit(module, datamodule=masked, ckpt_path=checkpoint, weights_only=True)
    return module.seeds


def test_lightning_sets_the_epoch(tiny_faces: FaceSet) -> None:
    epochs = [train_loader(tiny_faces, epoch=epoch) for epoch in range(3)]
    module = Recorder()
    assert fit(module, tiny_faces, 0, validated=3) == [batch["seed"].tolist() for loader in epochs for batch in loader]
    assert module.validated == {0, 1}


@pytest.mark.parametrize(
    ("workers", "batches"),
    [(0, 0), (0, 6), (0, 9), (2, 9), *(pytest.param(2, number, marks=pytest.mark.slow) for number in (0, 12, 16))],
)
def test_lightning_resumes_with_the_next_batch(tiny_faces: FaceSet, tmp_path: Path, workers: int, batches: int) -> None:
    whole = fit(Recorder(), tiny_faces, 0)
    assert len(whole) == 18
    if batches == 0:
        assert fit(Recorder(), tiny_faces, workers) == whole
        return
    path = tmp_path / "middle.ckpt"
    with pytest.raises(SystemExit):
        fit(Recorder((batches, path)), tiny_faces, workers)
    assert fit(Recorder(), tiny_faces, workers, path) == whole[batches:]


def test_lightning_predicts_with_it(tiny_faces: FaceSet) -> None:
    module = data(tiny_faces, eval_batch_size=5, kinds=("box",))
    found = cast(list[Any], pl.Trainer(**QUIET).predict(Recorder(), datamodule=module))
    assert [index for batch in found for index in batch] == tiny_faces.indices("val").tolist()


def random_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_draws_no_global_random_number(tiny_faces: FaceSet, workers: int) -> None:
    before = random_states()
    list(train_loader(tiny_faces, workers))
    list(data(tiny_faces, workers).val_dataloader()[0])
    assert random_states() == before


class Broken(Dataset[int]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> int:
        raise OSError(f"no room for {number}")


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_passes_errors_of_the_data_on(workers: int) -> None:
    loader = FaceLoader(Broken(), Quarantine(lambda _: None, [], 0), sampler=range(6), num_workers=workers)
    with pytest.raises(OSError, match="no room for 0"):
        list(loader)
