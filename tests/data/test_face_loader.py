"""The loader: the same batches whatever worker dies and wherever an epoch is taken up, and nothing that runs too early or too far."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from deocc.data import FaceSet, MaskedFaceDataModule
from deocc.data.loader import EpochSampler, RestartingLoader, ShareSampler

Batch = dict[str, Tensor]
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


@pytest.fixture(autouse=True)
def _no_handler() -> Iterator[None]:
    """Other tests' plain loaders leave torch's handler of a child's death behind."""
    former = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, former)


def data(faces: FaceSet, workers: int = 0, **changes: Any) -> MaskedFaceDataModule:
    return MaskedFaceDataModule(
        faces, **{"size": 48, "batch_size": 2, "eval_batch_size": 1, "num_workers": workers, **changes}
    )


def train(faces: FaceSet, workers: int = 0, epoch: int = 0) -> RestartingLoader[Any]:
    loader = data(faces, workers).train_dataloader()
    cast(Any, loader.sampler).set_epoch(epoch)
    return loader


def assert_same(found: list[Any], expected: list[Any]) -> None:
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def kill(index: int, number: int = signal.SIGKILL, seconds: float = 5) -> int:
    """Send a signal to one of the workers and wait for its end, so many seconds at most."""
    worker = active_children()[index]
    os.kill(cast(int, worker.pid), number)
    worker.join(seconds)
    return cast(int, worker.pid)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_killed_worker_changes_no_batch(
    tiny_faces: FaceSet, persistent: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    module, alone = data(tiny_faces, 2), data(tiny_faces)
    loader, expected = module.train_dataloader(), alone.train_dataloader()
    if not persistent:
        loader, expected = module.val_dataloader()[0], alone.val_dataloader()[0]
    pids, found = [], []
    for number, batch in enumerate(loader):
        found.append(batch)
        if number in (1, 3):
            pids.append(kill(number % 2))
    assert_same(found, list(expected))
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        f"loader worker {pid} was killed by signal 9 (Killed): new ones go on with the next batch" for pid in pids
    ]
    assert_same(list(loader), list(expected))  # a second epoch


class Fatal(Dataset[int]):
    """Numbers, of which 3 kills the worker that is asked for it the first time; or 0 does, every time."""

    def __init__(self, trace: Path, always: bool = False) -> None:
        self.trace, self.always = trace, always

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> int:
        if number == (0 if self.always else 3) and (self.always or not self.trace.exists()):
            self.trace.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


def numbers(dataset: Dataset[int], workers: int = 1) -> RestartingLoader[int]:
    return RestartingLoader(dataset, batch_size=None, sampler=ShareSampler(6), num_workers=workers)


@pytest.mark.slow
def test_a_worker_that_dies_while_its_batch_is_waited_for_is_replaced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert list(numbers(Fatal(tmp_path / "trace"), workers=2)) == [0, 1, 2, 3, 4, 5]
    assert "was killed by signal 9 (Killed): new ones go on with the next batch" in capfd.readouterr().err


@pytest.mark.slow
def test_what_kills_every_worker_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"loader worker \d+ was killed by signal 9 .*memory ran out.*smaller data\.num_workers"
    ) as error:
        list(numbers(Fatal(tmp_path / "trace", always=True)))
    assert "\n" not in str(error.value)
    assert active_children() == []


def test_a_death_is_noticed_where_a_batch_is_asked_for_and_nowhere_else(
    tiny_faces: FaceSet, capfd: pytest.CaptureFixture[str]
) -> None:
    batches = iter(train(tiny_faces, 1))
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    kill(0)
    time.sleep(0.05)  # where torch's handler would raise
    assert capfd.readouterr().err == ""
    next(batches)
    assert "new ones go on" in capfd.readouterr().err


def test_ctrl_c_is_left_to_the_main_process(tiny_faces: FaceSet, capfd: pytest.CaptureFixture[str]) -> None:
    batches = iter(train(tiny_faces, 1))
    first = next(batches)
    for number in (signal.SIGINT, signal.SIGUSR1):
        kill(0, number, seconds=0.1)
    assert_same([first, *batches], list(train(tiny_faces)))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_starts_before_the_first_batch_is_asked_for(tiny_faces: FaceSet, workers: int) -> None:
    loader = data(tiny_faces, workers).train_dataloader()
    batches = iter(loader)
    assert active_children() == []
    cast(Any, loader.sampler).set_epoch(5)
    assert_same(list(batches), list(train(tiny_faces, epoch=5)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_taken_up_in_its_middle_gives_the_rest_and_reads_no_more(
    tiny_faces: FaceSet, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, read, image = list(train(tiny_faces, epoch=1)), [], tiny_faces.image

    def noted(index: int) -> Any:
        read.append(index)
        return image(index)

    monkeypatch.setattr(tiny_faces, "image", noted)
    module = data(tiny_faces, workers)
    progress = SimpleNamespace(current=SimpleNamespace(ready=4))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    module.trainer = cast(pl.Trainer, SimpleNamespace(training=True, fit_loop=loop))
    loader = module.train_dataloader()
    for _ in range(2):  # the second time, persistent workers are there already
        cast(Any, loader.sampler).set_epoch(1)
        assert_same(list(loader), expected[4:])
    assert len(loader) == 6
    assert set(read) == (set() if workers else {int(index) for batch in expected[4:] for index in batch["index"]})
    progress.current.ready = 0
    cast(Any, loader.sampler).set_epoch(1)
    assert_same(list(loader), expected)


class Recorder(pl.LightningModule):
    """Notes what it is trained on; writes a checkpoint after so many batches, and stops there."""

    def __init__(self, stop: tuple[int, Path] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.stop, self.seeds = stop, cast(list[list[int]], [])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seeds.append(batch["seed"].tolist())
        return self.weight * 0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.stop is not None and len(self.seeds) == self.stop[0]:
            self.trainer.save_checkpoint(self.stop[1])
            raise KeyboardInterrupt

    def predict_step(self, batch: Batch, batch_idx: int) -> list[int]:
        return cast(list[int], batch["index"].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Recorder, faces: FaceSet, workers: int, checkpoint: Path | None = None) -> list[list[int]]:
    trainer = pl.Trainer(
        max_epochs=3, limit_val_batches=0, use_distributed_sampler=False, enable_checkpointing=False, **QUIET
    )
    trainer.fit(module, datamodule=data(faces, workers), ckpt_path=checkpoint, weights_only=True)
    return module.seeds


@pytest.mark.parametrize(
    ("workers", "batches"),
    [(0, 0), (0, 6), (0, 9), (2, 9), *(pytest.param(2, number, marks=pytest.mark.slow) for number in (0, 12, 16))],
)
def test_a_resumed_training_sees_the_batches_that_are_left(
    tiny_faces: FaceSet, tmp_path: Path, workers: int, batches: int
) -> None:
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


def _states() -> list[Any]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_no_global_random_number_is_drawn(tiny_faces: FaceSet, workers: int) -> None:
    before = _states()
    list(train(tiny_faces, workers))
    list(data(tiny_faces, workers).val_dataloader()[0])
    assert _states() == before


def test_an_error_of_the_data_comes_through_as_it_is() -> None:
    class Broken(Fatal):
        def __getitem__(self, number: int) -> int:
            raise KeyError("number") if number < 3 else OSError(f"no room for {number}")

    for workers in (0, 1):
        with pytest.raises(KeyError, match="number"):
            list(numbers(Broken(Path()), workers))
    with pytest.raises(OSError, match="no room for 5"):
        list(RestartingLoader(Broken(Path()), batch_size=None, sampler=ShareSampler(6), num_workers=1, start=lambda: 5))


@pytest.mark.parametrize(
    "make", [lambda: EpochSampler(7, seed=1), lambda: ShareSampler(7), lambda: ShareSampler(7, shared=False)]
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_sampler_that_starts_later_gives_the_rest(
    make: Callable[[], Any], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: processes > 1)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    if processes == 1:
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    sampler = make()
    whole = list(sampler)
    sampler.first = 2
    assert len(sampler) == len(whole)
    assert list(sampler) == whole[2:]
