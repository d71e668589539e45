"""The aligned faces on disk: bit for bit what alignment gives, made once, whatever interrupts or forbids it."""

import pickle
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lmdb
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from deocc.data import FaceSet, MaskedFaceDataModule
from deocc.data import cache as aligned_cache
from deocc.data import datamodule as masked_faces
from deocc.data import dataset as dataset_file
from deocc.data.cache import AlignedCache, AlignedFace
from deocc.data.dataset import AlignedFaces, FaceItem
from deocc.data.loader import Quarantine, UnreadableImageError

_SIZE = 48
Prepare = Callable[..., MaskedFaceDataModule]


class _Counted:
    """Aligns, remembers of which images, and stops at one of them."""

    def __init__(self, faces: FaceSet, stop_at: int = -1, seconds: float = 0) -> None:
        self.align, self.stop_at, self.seconds = AlignedFaces(faces, _SIZE, 0), stop_at, seconds
        self.asked: list[int] = []

    def __call__(self, index: int) -> AlignedFace:
        if index == self.stop_at:
            raise KeyboardInterrupt
        time.sleep(self.seconds)
        self.asked.append(index)
        return self.align(index)


def _refuse(indices: list[int]) -> None:
    """Every image can be read."""
    assert indices == []


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test."""
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(aligned_cache, "_BLOCK_BYTES", 15_000)  # two faces
    return tmp_path / "cache" / "aligned"


@pytest.fixture
def indices(tiny_faces: FaceSet) -> NDArray[np.int64]:
    return tiny_faces.indices("train")


@pytest.fixture
def cache(tiny_faces: FaceSet, indices: NDArray[np.int64]) -> AlignedCache:
    return AlignedCache.of(tiny_faces, "train", _SIZE, indices)


def _check(cache: AlignedCache, faces: FaceSet, indices: NDArray[np.int64]) -> None:
    """The cache has the very bits of the aligned faces."""
    assert cache.is_complete()
    assert not cache.path.with_suffix(".part").exists()
    for index in indices.tolist():
        kept, made = cache(index), AlignedFaces(faces, _SIZE, 0)(index)
        assert (kept[0].dtype, kept[1].dtype) == (made[0].dtype, made[1].dtype)
        np.testing.assert_array_equal(kept[0], made[0], strict=True)
        np.testing.assert_array_equal(kept[1], made[1], strict=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_stored_faces_equal_aligned_faces(
    cache: AlignedCache, tiny_faces: FaceSet, indices: NDArray[np.int64], workers: int
) -> None:
    state = torch.get_rng_state()
    cache.fill(AlignedFaces(tiny_faces, _SIZE, 0), indices, workers, _refuse)
    assert torch.equal(torch.get_rng_state(), state)
    _check(cache, tiny_faces, indices)
    cache(int(indices[0]))[0][:] = 0  # a reader may write into what it got
    _check(pickle.loads(pickle.dumps(cache)), tiny_faces, indices)


def test_interrupted_work_continues(cache: AlignedCache, tiny_faces: FaceSet, indices: NDArray[np.int64]) -> None:
    with pytest.raises(KeyboardInterrupt):
        cache.fill(_Counted(tiny_faces, stop_at=int(indices[7])), indices, 0, _refuse)
    assert not cache.is_complete()
    rest = _Counted(tiny_faces)
    cache.fill(rest, indices, 0, _refuse)
    assert rest.asked == indices[6:].tolist()  # six were written, two at a time
    _check(cache, tiny_faces, indices)
    cache.fill(rest, indices, 0, _refuse)
    assert len(rest.asked) == len(indices) - 6


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_stored_as_such(
    cache: AlignedCache, tiny_faces: FaceSet, indices: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    bad, whole = int(indices[5]), tiny_faces.image
    left_out: list[int] = []

    def image(index: int) -> NDArray[np.uint8]:
        if index == bad:
            raise FileNotFoundError("no image at p1/9")
        return whole(index)

    monkeypatch.setattr(tiny_faces, "image", image)
    cache.fill(AlignedFaces(tiny_faces, _SIZE, 0), indices, workers, left_out.extend)
    assert left_out == [bad]
    with pytest.raises(UnreadableImageError, match=rf"image {bad} could not be read"):
        cache(bad)
    _check(cache, tiny_faces, indices[indices != bad])


def test_too_many_unreadable_images_stop(
    cache: AlignedCache, tiny_faces: FaceSet, indices: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    align = AlignedFaces(tiny_faces, _SIZE, 0)
    with monkeypatch.context() as patch:
        patch.setattr(tiny_faces, "image", lambda index: np.zeros((8, 8), np.uint8))
        with pytest.raises(
            ValueError,
            match=r"2 of 12 images cannot be read, more than 1%: p0/0, p1/1 \(the first: expected an RGB image",
        ):
            cache.fill(align, indices, 0, Quarantine(align, tiny_faces.names, len(indices)).add)
    assert not cache.is_complete()
    cache.fill(align, indices, 0, _refuse)
    _check(cache, tiny_faces, indices)


@pytest.mark.parametrize("suffix", [".lmdb", ".part"])
@pytest.mark.parametrize("bytes_left", [0, 20_000, None])
def test_damaged_file_is_replaced(
    cache: AlignedCache, tiny_faces: FaceSet, indices: NDArray[np.int64], suffix: str, bytes_left: int | None
) -> None:
    cache.fill(AlignedFaces(tiny_faces, _SIZE, 0), indices, 0, _refuse)
    damaged = cache.path.rename(cache.path.with_suffix(suffix))
    damaged.write_bytes(b"x" * 20_000 if bytes_left is None else damaged.read_bytes()[:bytes_left])
    assert not cache.is_complete()
    cache.fill(AlignedFaces(tiny_faces, _SIZE, 0), indices, 0, _refuse)
    _check(cache, tiny_faces, indices)


def test_removed_or_changed_file(cache: AlignedCache, tiny_faces: FaceSet, indices: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match=r"cannot read aligned faces from .*\.lmdb .*: start again"):
        cache(0)
    cache.fill(AlignedFaces(tiny_faces, _SIZE, 0), indices, 0, _refuse)
    with pytest.raises(ValueError, match=r"\.lmdb lacks the face 999: remove the file"):
        cache(999)


def test_second_process_waits(
    cache: AlignedCache, tiny_faces: FaceSet, indices: NDArray[np.int64], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = _Counted(tiny_faces, seconds=0.02), _Counted(tiny_faces)
    thread = threading.Thread(target=cache.fill, args=(first, indices, 0, _refuse))
    thread.start()
    while not first.asked:
        time.sleep(0.001)
    cache.fill(second, indices, 0, _refuse)
    thread.join()
    assert (first.asked, second.asked) == (indices.tolist(), [])
    assert "waiting for another process" in capsys.readouterr().err
    _check(cache, tiny_faces, indices)


def test_no_room_is_a_warning(
    cache: AlignedCache, tiny_faces: FaceSet, indices: NDArray[np.int64], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    align = AlignedFaces(tiny_faces, _SIZE, 0)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.warns(
            UserWarning, match=r"cannot keep 0\.0 GB of aligned faces in .* \(0\.0 GB are free.*: set DEOCC_CACHE"
        ):
            cache.fill(align, indices, 0, _refuse)
    with monkeypatch.context() as patch:  # the disk fills up on the way
        patch.setattr(
            aligned_cache,
            "_open_to_append",
            lambda path, _: lmdb.open(str(path), map_size=2**16, subdir=False, lock=False),
        )
        with pytest.warns(UserWarning, match="MDB_MAP_FULL"):
            cache.fill(align, indices, 0, _refuse)
    assert list(folder.iterdir()) == []
    shutil.rmtree(folder.parent)
    folder.parent.write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match=r"so they are aligned again in every epoch"):
        cache.fill(align, indices, 0, _refuse)
    assert not cache.is_complete()


def test_file_name_depends_on_data(tiny_faces: FaceSet, indices: NDArray[np.int64]) -> None:
    def path(size: int = _SIZE, chosen: NDArray[np.int64] = indices) -> Path:
        return AlignedCache.of(tiny_faces, "train", size, chosen).path

    before = path()
    assert before == path()
    others = {path(size=56), path(chosen=indices[1:])}
    tiny_faces.landmarks[indices[0]] += 1
    others.add(path())
    cast(Any, tiny_faces).brightness[indices[0]] += 1
    assert len({before, path(), *others}) == 5


@pytest.fixture
def prepare(tiny_faces: FaceSet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Return a function (training=True, **changes) that prepares a data module for which the tiny set is large."""
    MaskedFaceDataModule(tiny_faces, size=_SIZE).prepare_data()
    assert not folder.exists()  # a set that fits into memory
    monkeypatch.setattr(dataset_file, "KEPT", 4)
    monkeypatch.setattr(masked_faces, "KEPT", 4)

    def make(training: bool = True, **changes: Any) -> MaskedFaceDataModule:
        module = MaskedFaceDataModule(
            tiny_faces, **{"size": _SIZE, "batch_size": 4, "eval_batch_size": 5, "seed": 3, **changes}
        )
        module.trainer = cast(pl.Trainer, SimpleNamespace(training=training))
        module.prepare_data()
        return module

    return make


def _items(loader: DataLoader[FaceItem]) -> dict[str, torch.Tensor]:
    """All that two epochs of a loader hold."""
    batches = []
    for epoch in range(2):
        if hasattr(loader.sampler, "set_epoch"):
            cast(Any, loader.sampler).set_epoch(epoch)
        batches += list(loader)
    return {key: torch.cat([cast(dict[str, torch.Tensor], batch)[key] for batch in batches]) for key in batches[0]}


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_training_is_identical(
    prepare: Prepare, tiny_faces: FaceSet, folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def loaders(module: MaskedFaceDataModule) -> list[DataLoader[FaceItem]]:
        others = () if workers else (module.reference_dataloader(), *module.val_dataloader())
        return [module.train_dataloader(), *others]

    plain = [_items(loader) for loader in loaders(prepare(cache_gigabytes=0, blend_probability=0.5, kinds=("box",)))]
    assert not folder.exists()
    module = prepare(blend_probability=0.5, num_workers=workers, kinds=("box",))
    assert len(list(folder.iterdir())) == 2  # training and validation
    monkeypatch.setattr(tiny_faces, "image", None)
    for expected, loader in zip(plain, loaders(module), strict=True):
        torch.testing.assert_close(_items(loader), expected, atol=0, rtol=0)
        worker = pickle.loads(pickle.dumps(loader.dataset))
        assert worker.aligned.face_set is None  # what a spawned worker would get


def test_too_large_or_untrained_is_not_cached(prepare: Prepare, folder: Path, tiny_faces: FaceSet) -> None:
    prepare(training=False)
    assert not folder.exists()
    with pytest.warns(
        UserWarning, match=r"12 images would take 0\.0 GB, data\.cache_gigabytes is 1e-05, so none is kept: raise it"
    ):
        module = prepare(cache_gigabytes=1e-5, val_people=1)  # three validation images fit into memory
    assert not folder.exists()
    assert next(iter(module.train_dataloader()))["face"].shape == (4, 3, _SIZE, _SIZE)
    prepare(val_people=1)
    assert len(list(folder.iterdir())) == 1
