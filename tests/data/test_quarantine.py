"""Unreadable images are left out of training and validation, counted and named; above 1 % the run stops."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from deocc.data import FaceSet, FolderFaces, MaskedFaceDataModule
from deocc.data import datamodule as masked_faces
from deocc.data import dataset as dataset_file
from deocc.data import loader as loading
from deocc.data.loader import Quarantine, UnreadableImageError
from deocc.modules import teacher_cache
from deocc.modules.evaluation import identity_centers, mean_of_identities
from deocc.networks import Embedder
from deocc.networks.embedders.embedder import centred
from tests.data.conftest import TinyFaces

Batch = dict[str, Tensor]
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:1000]), "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "as an image"),
    "deleted": (lambda path: path.unlink(), "no image at"),
    "text": (lambda path: path.write_text("a list of faces"), "as an image"),
}
"""By name: a change to an image file, and a part of the reported reason."""


def draw(root: Path) -> Path:
    """Write 20 people x 8 noisy images; with `seed=1`, 104 of them are for training and validation."""
    noise = np.random.default_rng(0)
    for person in range(20):
        (root / f"p{person}").mkdir(parents=True)
        for number in range(8):
            Image.fromarray(noise.integers(0, 256, (48, 48, 3), np.uint8)).save(root / f"p{person}" / f"{number}.png")
    return root


@pytest.fixture
def faces(tmp_path: Path) -> FolderFaces:
    return FolderFaces(str(draw(tmp_path / "faces")), aligned="canonical", seed=1)


def data(faces: FaceSet, **changes: Any) -> MaskedFaceDataModule:
    return MaskedFaceDataModule(
        faces, **{"size": 48, "batch_size": 8, "eval_batch_size": 5, "kinds": ("box",), "seed": 2, **changes}
    )


def spoil(faces: FolderFaces, split: Any, how: str = "truncated", number: int = 3) -> int:
    """Damage an image of a split and return its index in the face set."""
    index = int(faces.bare(split)[number])
    DAMAGE[how][0](faces.root / faces.names[index])
    return index


def epoch(module: MaskedFaceDataModule) -> list[Batch]:
    return list(module.train_dataloader())


def column(batches: list[Batch], key: str) -> Tensor:
    return torch.cat([batch[key] for batch in batches])


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    "how", ["truncated", *(pytest.param(how, marks=pytest.mark.slow) for how in DAMAGE if how != "truncated")]
)
def test_training_substitutes_unreadable_image(faces: FolderFaces, how: str) -> None:
    whole = epoch(data(faces))
    bad = spoil(faces, "train", how)
    module, shared = data(faces), data(faces, num_workers=2)
    found = epoch(module)
    assert_same(found, epoch(shared))
    was, now = (column(batches, "index") for batches in (whole, found))
    replaced = was == bad
    assert replaced.sum() == 1
    assert torch.equal(was[~replaced], now[~replaced])
    assert torch.equal(column(whole, "face")[~replaced], column(found, "face")[~replaced])
    stand_in = int(now[replaced])
    assert stand_in in set(faces.bare("train").tolist()) - {bad}
    assert int(column(found, "identity")[replaced]) == module.training_identity[stand_in]
    assert torch.equal(column(whole, "seed"), column(found, "seed"))  # so its mask is the one that was drawn
    assert [batch.keys() for batch in found] == [batch.keys() for batch in whole]
    assert "unreadable" not in found[0]
    for record in (module.quarantine, shared.quarantine):
        assert list(record.reasons) == [faces.names[bad]]
        assert DAMAGE[how][1] in record.reasons[faces.names[bad]]


def test_blending_avoids_unreadable_image(faces: FolderFaces) -> None:
    bad = spoil(faces, "train")
    settings: dict[str, Any] = {"blend_probability": 1.0, "augmentation": "none"}
    module = data(faces, **settings)
    items, again = (cast(Any, data(faces, **settings).train_dataloader().dataset) for _ in range(2))
    met = [position for position in range(len(items)) if bad in items[0, position]["unreadable"]]
    assert len(met) > 1  # as itself and as a partner
    torch.testing.assert_close(
        [items[0, position] for position in met], [again[0, position] for position in met], atol=0, rtol=0
    )
    assert_same(epoch(module), epoch(data(faces, **settings, num_workers=2)))
    assert list(module.quarantine.reasons) == [faces.names[bad]]


def test_unreadable_image_is_reported_once(faces: FolderFaces, caplog: pytest.LogCaptureFixture) -> None:
    bad, module = spoil(faces, "train", "deleted"), data(faces)
    for _ in range(2):
        epoch(module)
    assert caplog.messages == [f"{faces.names[bad]} is left out: no image at {faces.root / faces.names[bad]}"]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_stop_the_run(faces: FolderFaces, workers: int) -> None:
    bad = [spoil(faces, "train", number=number) for number in (3, 40)]
    with pytest.raises(ValueError, match="2 of 104 images cannot be read, more than 1%: ") as error:
        epoch(data(faces, num_workers=workers))
    message = str(error.value)
    assert all(faces.names[index] in message for index in bad)
    assert "replace or remove them" in message
    assert "\n" not in message


def test_error_names_ten_images() -> None:
    def read(index: int) -> None:
        raise UnreadableImageError(f"n{index}: gone")

    record = Quarantine(read, [f"n{index}" for index in range(100_000)], 1300)
    record.add(range(13))
    with pytest.raises(
        ValueError, match=r"14 of 1,300 images .*: n0, n1, .*, n9 and 4 more \(the first: gone\): replace"
    ):
        record.add([13])


def test_no_readable_image_is_an_error(faces: FolderFaces) -> None:
    for path in faces.root.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(UnreadableImageError, match=r"^p\d+/\d.png: cannot read"):
        data(faces).train_dataloader().dataset[0, 0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 5])
def test_validation_leaves_image_out(faces: FolderFaces, workers: int, size: int) -> None:
    whole = [list(loader) for loader in data(faces, eval_batch_size=size).val_dataloader()]
    bad = spoil(faces, "val")
    module = data(faces, eval_batch_size=size, num_workers=workers)
    for before, loader in zip(whole, module.val_dataloader(), strict=True):
        found = list(loader)
        kept = column(before, "index") != bad
        assert not kept.all()
        for key in before[0]:
            assert torch.equal(column(found, key), column(before, key)[kept])
        assert len(found) == len(before) - (size == 1)
        assert all(len(batch["index"]) for batch in found)
    assert list(module.quarantine.reasons) == [faces.names[bad]]


@pytest.mark.parametrize("workers", [0, 2])
def test_test_stops_at_unreadable_image(faces: FolderFaces, workers: int) -> None:
    bad, module = spoil(faces, "test"), data(faces, num_workers=workers)
    for loader in module.test_dataloader():
        with pytest.raises(UnreadableImageError, match=re.escape(faces.names[bad])):
            list(loader)
    assert module.quarantine.reasons == {}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_aligned_cache_gives_same_batches(faces: FolderFaces, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    bad = spoil(faces, "train")
    plain = data(faces)
    expected = [epoch(plain), list(plain.reference_dataloader())]
    monkeypatch.setattr(dataset_file, "KEPT", 4)
    monkeypatch.setattr(masked_faces, "KEPT", 4)
    module = data(faces, num_workers=workers)
    module.trainer = cast(pl.Trainer, SimpleNamespace(training=True))
    module.prepare_data()
    assert list(module.quarantine.reasons) == [faces.names[bad]]
    again = data(faces, num_workers=workers)  # a later run, which finds the file complete
    monkeypatch.setattr(dataset_file, "align", None)
    for found in (module, again):
        assert found.train_dataloader().dataset.aligned.cache is not None  # type: ignore[attr-defined]
        assert_same(epoch(found), expected[0])
    monkeypatch.undo()
    assert_same(
        [{"index": column(list(again.reference_dataloader()), "index")}], [{"index": column(expected[1], "index")}]
    )
    assert bad not in column(expected[1], "index")


def test_fingerprint_marks_unreadable_image(tiny_faces: FaceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    before, image = tiny_faces.fingerprint("train"), tiny_faces.image

    def failing(index: int) -> NDArray[np.uint8]:
        if index == tiny_faces.indices("train")[1]:
            raise OSError("the disk fails")
        return image(index)

    monkeypatch.setattr(tiny_faces, "image", failing)
    assert tiny_faces.fingerprint("train") == tiny_faces.fingerprint("train") != before


class Broken(TinyFaces):
    """Faces with an unreadable image of person 2 and none readable of person 3."""

    bad = (2, 3, 11, 19)

    def image(self, index: int) -> NDArray[np.uint8]:
        if index in self.bad:
            raise ValueError(f"cannot read {index}")
        return super().image(index)


class Sums(nn.Module):
    """An embedder that returns a corner of the face."""

    embedding_dim = 12

    def forward(self, face: Tensor) -> Tensor:
        return face[:, :, :4, 0].flatten(1) + 2


def test_identity_centre_skips_unreadable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "MOST", 0.9)
    monkeypatch.setattr(teacher_cache, "teacher_fingerprint", lambda _: "sums")
    module = data(Broken(), augmentation="flip")
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.datamodule = module  # type: ignore[attr-defined]
    cache = teacher_cache.TeacherCache(cast(Embedder, Sums()), trainer)
    assert not cache.faces[list(Broken.bad)].any()
    read = {index: row for index, row in enumerate(cache.faces) if row.any()}
    assert sorted(read) == [index for index in module.face_set.bare("train").tolist() if index not in Broken.bad]
    center = mean_of_identities(cache.faces, module.training_identity)
    centers = identity_centers(cache.faces, module.training_identity, center, centred)
    means = [np.mean([row for index, row in read.items() if index % 8 == person], axis=0) for person in (0, 1, 2)]
    np.testing.assert_allclose(center, np.mean(means, axis=0), atol=1e-5)
    for person in (0, 1, 2):
        rows = np.stack([row - center.numpy() for index, row in read.items() if index % 8 == person])
        direction = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).sum(0)
        np.testing.assert_allclose(centers[person], direction / np.linalg.norm(direction), atol=1e-4)
    assert not centers[3].any()
    known = {"index": torch.tensor([0, 1]), "flipped": torch.tensor([True, False])}
    assert cache.look_up(cast(Any, known)) is not None
    assert cache.look_up(cast(Any, known | {"index": torch.tensor([0, 2])})) is None


def test_checkpoint_contains_the_record(faces: FolderFaces, tmp_path: Path) -> None:
    bad, module = spoil(faces, "train"), data(faces)
    epoch(module)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other = data(faces)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.quarantine.reasons == module.quarantine.reasons != {}
    other.load_state_dict({})  # of an older run
    assert other.quarantine.reasons == {}
    assert bad not in column(epoch(other), "index")


def test_readable_again_is_reported() -> None:
    record = Quarantine(lambda _: None, ["a"] * 100, 100)
    record.add([0])
    assert "but can be now" in record.reasons["a"]
