"""The data module: who is where, which masks are drawn when, what a protocol names, and the manifest of the masks."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from deocc.batch import FaceBatch, MaskedFaceBatch
from deocc.data import FaceSet, MaskedFaceDataModule
from deocc.data import datamodule as masked_faces
from deocc.data.dataset import FaceItem
from deocc.evaluation.protocol import ListedPairs
from deocc.masking import list_kinds
from tests.data.conftest import TinyFaces

_SCARF = list_kinds().index("scarf")


def _module(faces: FaceSet, **changes: Any) -> MaskedFaceDataModule:
    return MaskedFaceDataModule(faces, **{"size": 48, "batch_size": 4, "eval_batch_size": 5, **changes})


def _batches(
    module: MaskedFaceDataModule, loader: DataLoader[FaceItem], training: bool = False
) -> list[MaskedFaceBatch]:
    """Batches of one epoch, as a module receives them."""
    module.trainer = cast(pl.Trainer, SimpleNamespace(training=training))
    return [module.on_after_batch_transfer(batch, 0) for batch in loader]


def _training_epoch(
    module: MaskedFaceDataModule, epoch: int, loader: DataLoader[FaceItem] | None = None
) -> list[MaskedFaceBatch]:
    loader = loader or module.train_dataloader()
    cast(Any, loader.sampler).set_epoch(epoch)
    return _batches(module, loader, training=True)


def _test_batches(module: MaskedFaceDataModule, number: int) -> list[MaskedFaceBatch]:
    return _batches(module, module.test_dataloader()[number])


def _column(batches: list[MaskedFaceBatch], key: str) -> Tensor:
    return torch.cat([cast(dict[str, Tensor], batch)[key] for batch in batches])


def _list(batches: list[MaskedFaceBatch], key: str) -> list[int]:
    return _column(batches, key).tolist()


def _same(first: list[MaskedFaceBatch], second: list[MaskedFaceBatch]) -> bool:
    return first[0].keys() == second[0].keys() and all(
        torch.equal(_column(first, key), _column(second, key)) for key in first[0]
    )


def _splits(faces: FaceSet, batches: list[MaskedFaceBatch]) -> set[str]:
    return {faces.split_of_identity[int(faces.identity[index])] for index in _column(batches, "index").tolist()}


def test_training_batch(tiny_faces: FaceSet) -> None:
    batches = _training_epoch(_module(tiny_faces, clean_probability=0.0), 0)
    assert len(batches) == 3
    for batch in batches:
        assert batch["face"].shape == batch["masked_face"].shape == (4, 3, 48, 48)
        assert batch["mask"].shape == (4, 1, 48, 48)
        assert set(batch["mask"].unique().tolist()) == {0.0, 1.0}
        visible = (batch["mask"] == 0).expand_as(batch["face"])
        assert torch.equal(batch["face"][visible], batch["masked_face"][visible])
        assert batch["mask"].flatten(1).any(1).all()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on one core
def test_workers_change_nothing(tiny_faces: FaceSet) -> None:
    alone, shared = _module(tiny_faces), _module(tiny_faces, num_workers=2)
    loaders = alone.train_dataloader(), shared.train_dataloader()
    for epoch in (0, 1):  # the workers outlive the first epoch
        assert _same(_training_epoch(alone, epoch, loaders[0]), _training_epoch(shared, epoch, loaders[1]))


def test_masks_depend_on_epoch_and_seed(tiny_faces: FaceSet) -> None:
    first, second = (_training_epoch(_module(tiny_faces), epoch) for epoch in (0, 1))
    assert not set(_column(first, "seed").tolist()) & set(_column(second, "seed").tolist())
    assert not torch.equal(_column(first, "mask"), _column(second, "mask"))
    assert _same(first, _training_epoch(_module(tiny_faces), 0))
    assert not torch.equal(_column(first, "seed"), _column(_training_epoch(_module(tiny_faces, seed=1), 0), "seed"))


def test_masks_per_face_repeat_the_face(tiny_faces: FaceSet) -> None:
    once = _training_epoch(_module(tiny_faces, clean_probability=0.0), 0)
    thrice = _training_epoch(_module(tiny_faces, clean_probability=0.0, masks_per_face=3), 0)
    for single, several in zip(once, thrice, strict=True):
        assert len(several["face"]) == 3 * len(single["face"])
        for key in ("face", "index", "identity", "landmarks", "flipped"):
            for copy in (0, 2):
                assert torch.equal(several[key][copy::3], single[key])  # type: ignore[literal-required]
        assert torch.equal(several["masked_face"][0::3], single["masked_face"])  # the first copy is the one of before
        assert not torch.equal(several["mask"][1::3], single["mask"])
    seeds = _column(thrice, "seed").tolist()
    assert len(set(seeds)) == len(seeds) and min(seeds) >= 0 and max(seeds) < 2**63


def test_masks_per_face_leave_evaluation_alone(tiny_faces: FaceSet) -> None:
    plain, repeated = _module(tiny_faces), _module(tiny_faces, masks_per_face=3, distractors=True)
    for number in (0, 1):
        assert _same(
            _batches(plain, plain.val_dataloader()[number]), _batches(repeated, repeated.val_dataloader()[number])
        )
    with pytest.raises(ValueError, match=r"data\.masks_per_face is 0"):
        _module(tiny_faces, masks_per_face=0)


def test_misalignment_moves_face_and_mask(tiny_faces: FaceSet) -> None:
    settings: dict[str, Any] = {"clean_probability": 0.0, "size": 64, "kinds": ("box",)}
    plain, moved = (
        _training_epoch(_module(tiny_faces, **settings, misalignment=strength), 0) for strength in (0.0, 1.0)
    )
    for batch in moved:
        again = masked_faces.mask_batch(cast(FaceBatch, dict(batch)))
        assert torch.equal(again["mask"], batch["mask"])
    distance = (_column(moved, "landmarks") - _column(plain, "landmarks")).abs().amax((1, 2))
    assert distance.min() < 1e-3 and 3 < distance.max() < 32
    assert _same(moved, _training_epoch(_module(tiny_faces, **settings, misalignment=1.0), 0))
    with pytest.raises(ValueError, match=r"data\.misalignment is 1\.5"):
        _module(tiny_faces, misalignment=1.5)


def test_distractors_change_images_and_no_mask(tiny_faces: FaceSet) -> None:
    settings: dict[str, Any] = {"clean_probability": 0.3, "size": 64, "kinds": ("box", "hand")}
    plain, disturbed = (
        _training_epoch(_module(tiny_faces, **settings, distractors=wanted), 0) for wanted in (False, True)
    )
    for key in ("mask", "kind", "seed", "index", "landmarks"):
        assert torch.equal(_column(plain, key), _column(disturbed, key))
    changed = (_column(plain, "masked_face") != _column(disturbed, "masked_face")).flatten(1).any(1)
    assert changed.all()  # a camera's defects are everywhere
    worn = (_column(plain, "face") != _column(disturbed, "face")).flatten(1).any(1)
    assert worn.any() and not worn.all()
    assert _column(disturbed, "masked_face").abs().max() <= 1
    assert _same(disturbed, _training_epoch(_module(tiny_faces, **settings, distractors=True), 0))


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_masks_are_fixed(tiny_faces: FaceSet, split: str) -> None:
    loaders = [getattr(_module(tiny_faces, seed=seed), f"{split}_dataloader")() for seed in (0, 1)]
    first, second = (_batches(_module(tiny_faces), masked) for _, masked in loaders)
    assert _same(first, second)
    assert _column(first, "mask").flatten(1).any(1).all()
    trained = {int(seed) for epoch in range(5) for seed in _column(_training_epoch(_module(tiny_faces), epoch), "seed")}
    assert not trained & set(_column(first, "seed").tolist())


def test_evaluation_has_every_kind_and_seed(tiny_faces: FaceSet) -> None:
    module = _module(tiny_faces, test_seeds=(1, 2))
    masked = _batches(module, module.test_dataloader()[1])
    pairs = list(zip(_list(masked, "index"), _list(masked, "kind"), strict=True))
    wanted = [(index, kind) for index in tiny_faces.indices("test").tolist() for kind in range(len(list_kinds()))]
    assert sorted(pairs) == sorted(wanted * 2)
    assert len(set(_column(masked, "seed").tolist())) == len(pairs)


def test_clean_loader_covers_nothing(tiny_faces: FaceSet) -> None:
    module = _module(tiny_faces)
    for loader in (module.val_dataloader()[0], module.test_dataloader()[0], module.reference_dataloader()):
        batches = _batches(module, loader)
        assert not _column(batches, "mask").any()
        assert torch.equal(_column(batches, "face"), _column(batches, "masked_face"))


def test_no_person_is_in_two_splits(tiny_faces: FaceSet) -> None:
    module = _module(tiny_faces)
    trained = _training_epoch(module, 0)
    reference = _batches(module, module.reference_dataloader())
    assert _splits(tiny_faces, trained) == _splits(tiny_faces, reference) == {"train"}
    assert all(_splits(tiny_faces, _batches(module, loader)) == {"val"} for loader in module.val_dataloader())
    assert all(_splits(tiny_faces, _batches(module, loader)) == {"test"} for loader in module.test_dataloader())
    predicted = _batches(module, module.predict_dataloader())  # one mask per kind
    assert len(_list(predicted, "index")) == len(list_kinds()) * len(tiny_faces.indices("val"))
    assert _splits(tiny_faces, predicted) == {"val"}


def test_training_identities_from_zero(tiny_faces: FaceSet) -> None:
    module = _module(tiny_faces)
    reference = _batches(module, module.reference_dataloader())
    assert set(_column(reference, "identity").tolist()) == set(range(module.num_identities)) == {0, 1, 2, 3}
    people = dict(zip(_column(reference, "index").tolist(), _column(reference, "identity").tolist(), strict=True))
    trained = _training_epoch(module, 0)
    assert all(
        people[index] == own
        for index, own in zip(*(_column(trained, key).tolist() for key in ("index", "identity")), strict=True)
    )


def test_only_the_chosen_kinds_appear(tiny_faces: FaceSet) -> None:
    module = _module(tiny_faces, kinds=("box", "hand"), clean_probability=0.0)
    wanted = {list_kinds().index(kind) for kind in ("box", "hand")}
    trained = {int(kind) for epoch in range(3) for kind in _column(_training_epoch(module, epoch), "kind")}
    assert trained == set(_list(_batches(module, module.val_dataloader()[1]), "kind")) == wanted
    other = _module(tiny_faces, kinds=("box", "hand"), eval_kinds=("cloth",))
    assert set(_list(_training_epoch(other, 0), "kind")) <= wanted | {-1}
    for loader in (other.val_dataloader()[1], other.test_dataloader()[1]):
        assert set(_list(_batches(other, loader), "kind")) == {list_kinds().index("cloth")}
    provenance = other.provenance()
    assert (provenance["kinds"], provenance["training_kinds"]) == (["cloth"], ["box", "hand"])
    assert not _column(_training_epoch(_module(tiny_faces, clean_probability=1.0), 0), "mask").any()


@pytest.mark.parametrize("processes", [1, 2])
def test_small_share_still_trains(tiny_faces: FaceSet, monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: processes > 1)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    assert (
        len(_training_epoch(_module(tiny_faces, batch_size=10), 0)) == 1
    )  # 12 images, 6 a process where there are two


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ("beard",)}, r"unknown occluder kinds \['beard'\]: choose some of surgical"),
        ({"kinds": ()}, "choose some of surgical"),
        (
            {"eval_kinds": ("box", "beard")},
            r"data\.eval_kinds has unknown occluder kinds \['beard'\]: choose some of surgical",
        ),
        ({"eval_kinds": ()}, "data.eval_kinds has unknown"),
        ({"size": 8}, "data.size is 8: choose a value from 32 to 1024"),
        ({"size": 4096}, "data.size is 4096"),
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"eval_batch_size": 0}, "data.eval_batch_size is 0"),
        ({"clean_probability": 1.1}, "data.clean_probability is 1.1: choose a value from 0 to 1"),
        ({"val_people": 0}, "data.val_people is 0: choose a value from 1 to"),
        ({"val_seeds": ()}, r"data.val_seeds is \[\]: choose one or more"),
        ({"test_seeds": (1, 2, 1)}, r"data.test_seeds is \[1, 2, 1\]: choose one or more different numbers"),
    ],
)
def test_bad_values_are_refused(tiny_faces: FaceSet, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        _module(tiny_faces, **changes)
    assert "\n" not in str(error.value)


def test_provenance_identifies_the_data(tiny_faces: FaceSet) -> None:
    provenance = _module(tiny_faces).provenance()
    hashes = {"data_hash", "training_data_hash", "manifest_hash"}
    settings = "data credit data_seed size kinds mixed_kinds training_kinds mask_seeds"
    assert set(provenance) == {*settings.split(), *hashes}
    assert len({provenance[name] for name in hashes}) == 3
    assert provenance | {"data_seed": 9} == _module(tiny_faces, seed=9).provenance()
    brightness = cast(Any, tiny_faces).brightness
    brightness[tiny_faces.indices("train")[0]] += 1
    changed = _module(tiny_faces).provenance()
    assert [name for name in provenance if changed[name] != provenance[name]] == ["training_data_hash"]
    brightness[tiny_faces.indices("test")[0]] += 1
    assert _module(tiny_faces).provenance()["data_hash"] != provenance["data_hash"]


def test_default_is_orl_at_112_pixels() -> None:
    module = MaskedFaceDataModule(batch_size=2)
    module.trainer = cast(pl.Trainer, SimpleNamespace(training=True))
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert batch["masked_face"].shape == (2, 3, 112, 112)
    assert module.num_identities == 20


# Protocols and real occluders


@pytest.fixture
def scarved(tiny_faces: TinyFaces) -> TinyFaces:
    """The last image of every person shows a scarf."""
    tiny_faces.occluder = np.full(len(tiny_faces), -1)
    tiny_faces.occluder[16:] = _SCARF
    return tiny_faces


def test_real_occluders_stay_as_they_are(scarved: TinyFaces) -> None:
    bare, occluded = (_test_batches(_module(scarved), number) for number in (0, 1))
    assert _list(bare, "index") == [6, 7, 14, 15] and _list(occluded, "index") == [22, 23]
    assert set(_list(bare, "kind")) == {-1} and set(_list(occluded, "kind")) == {_SCARF}
    assert all("mask" not in batch and torch.equal(batch["face"], batch["masked_face"]) for batch in occluded)
    assert not _column(bare, "mask").any()
    assert _list(occluded, "identity") == [0, 1], "people are numbered as in the gallery"
    trained = _training_epoch(_module(scarved, batch_size=2), 0)
    assert set(_list(trained, "index")) == {0, 1, 2, 3, 8, 9, 10, 11}


def test_test_embeds_the_images_of_the_protocol(tiny_faces: TinyFaces) -> None:
    listed = ListedPairs(np.array([6, 6]), np.array([14, 7]), np.array([True, False]), np.array([0, 1]))
    cast(Any, tiny_faces).protocol = listed
    data = _module(tiny_faces, kinds=("box",), test_seeds=(1,))
    assert data.protocol is listed
    assert _list(_test_batches(data, 0), "index") == _list(_test_batches(data, 1), "index") == [6, 7, 14]
    for people, expected in ((None, [4, 5, 12, 13, 20, 21]), (1, [4, 12, 20])):
        module = _module(tiny_faces, val_people=people)
        assert _list(_batches(module, module.val_dataloader()[0]), "index") == expected


@pytest.mark.parametrize("mixed", [False, True])
def test_manifest_has_a_line_per_probe(
    mixed: bool, tiny_faces: TinyFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"kinds": ("box", "hand", "surgical"), "test_seeds": (1,)}
    data = _module(tiny_faces, **settings, mixed_kinds=mixed)
    data.write_manifest(tmp_path / "masks.csv")
    with (tmp_path / "masks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    probes = _test_batches(data, 1)
    assert [int(row["seed"]) for row in rows] == _list(probes, "seed")
    assert [row["kind"] for row in rows] == [list_kinds()[kind] for kind in _list(probes, "kind")]
    assert [row["image"] for row in rows] == [tiny_faces.names[index] for index in _list(probes, "index")]
    before = data.provenance()["manifest_hash"]
    assert before == _module(tiny_faces, **settings, mixed_kinds=mixed).provenance()["manifest_hash"]
    for changes in ({"mixed_kinds": not mixed}, {"mixed_kinds": mixed, "test_seeds": (2,)}):
        assert before != _module(tiny_faces, **{**settings, **changes}).provenance()["manifest_hash"]
    monkeypatch.setattr(masked_faces, "render", lambda faces, *_: (faces, torch.ones_like(faces[:, :1])))
    assert data.provenance()["manifest_hash"] != before


def test_manifest_names_files_of_any_encoding(tiny_faces: TinyFaces, tmp_path: Path) -> None:
    index = int(tiny_faces.indices("test")[0])
    cast(Any, tiny_faces).names = [
        f"caf\udce9/{name}" if at == index else name for at, name in enumerate(tiny_faces.names)
    ]
    data = _module(tiny_faces, kinds=("box",), test_seeds=(1,))
    data.write_manifest(tmp_path / "masks.csv")
    assert b"caf\xe9/" in (tmp_path / "masks.csv").read_bytes()


def test_mixed_kinds_give_one_kind_per_seed(tiny_faces: TinyFaces) -> None:
    settings: dict[str, Any] = {"kinds": ("surgical", "hand", "box"), "test_seeds": (1, 2), "val_seeds": (7,)}
    data = _module(tiny_faces, **settings, mixed_kinds=True)
    probes, complete = _test_batches(data, 1), _test_batches(_module(tiny_faces, **settings), 1)
    assert _list(probes, "index") == [6, 7, 14, 15, 22, 23] * 2
    assert _column(probes, "mask").flatten(1).any(1).all()
    chosen, every = (
        set(zip(_list(each, "index"), _list(each, "kind"), _list(each, "seed"), strict=True))
        for each in (probes, complete)
    )
    assert chosen < every
    assert len(cast(Any, data.val_dataloader()[1].dataset)) == 6


def test_mixed_kinds_depend_on_image_and_seed(tiny_faces: TinyFaces) -> None:
    def drawn(seeds: tuple[int, ...]) -> list[int]:
        return _list(_test_batches(_module(tiny_faces, mixed_kinds=True, test_seeds=seeds), 1), "kind")

    both = drawn((1, 2))
    assert both == drawn((1,)) + drawn((2,)) and drawn((1,)) == drawn((1,)) != drawn((2,))
    listed = ListedPairs(np.array([6]), np.array([15]), np.array([False]), np.array([0]))
    cast(Any, tiny_faces).protocol = listed  # other images are left out, which changes nothing for these two
    assert drawn((1,)) == [both[0], both[3]]


def test_mixed_kinds_are_equally_frequent(tiny_faces: TinyFaces) -> None:
    data = _module(tiny_faces, kinds=("surgical", "hand", "box"), mixed_kinds=True, test_seeds=tuple(range(200)))
    probes = cast(Any, data.test_dataloader()[1].dataset)
    counts = np.bincount([probes.mask_of(number)[1] for number in range(len(probes))])
    assert counts[counts > 0].tolist() == pytest.approx([400] * 3, abs=60)
