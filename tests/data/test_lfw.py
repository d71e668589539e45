"""LFW in the layouts of its copies: pairs and folds by the lists, people by name, errors for what is missing."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from deocc.data import FaceSet, MaskedFaceDataModule, lfw
from deocc.data import landmarks as landmark_cache
from deocc.data.face_set import SPLITS, Split
from deocc.data.landmarks import FoundLandmarks
from deocc.data.lfw import LfwFaces
from deocc.evaluation.protocol import ListedPairs
from deocc.geometry import TEMPLATES
from tests.fake_sets.faces import orl_face, save_face
from tests.fake_sets.lfw import Copy, write_lfw


@pytest.fixture(autouse=True)
def _without_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landmarks of the template: what a detector finds has its own test."""
    points = TEMPLATES["canonical"].tensor(250).double().numpy()
    monkeypatch.setattr(lfw, "find_landmarks", lambda root, names, *_: _everywhere(names, points))


def _everywhere(names: Sequence[str], points: np.ndarray) -> FoundLandmarks:
    return FoundLandmarks(names, np.stack([points] * len(names)), np.full((len(names), 2), 250))


def _listed(faces: FaceSet) -> list[tuple[str, str, bool, int]]:
    protocol = faces.protocol
    assert isinstance(protocol, ListedPairs)
    columns = (protocol.first.tolist(), protocol.second.tolist(), protocol.same.tolist(), protocol.fold.tolist())
    return [
        (faces.names[first], faces.names[second], same, fold)
        for first, second, same, fold in zip(*columns, strict=True)
    ]


def _file(name: str, number: str | int) -> str:
    return f"{name}/{name}_{int(number):04d}.jpg"


@pytest.mark.parametrize("copy", get_args(Copy))
def test_every_copy_is_found(tmp_path: Path, copy: Copy) -> None:
    above = write_lfw(tmp_path, copy, folds=2, pairs=2, size=40)
    images = next(above.glob("lfw*"))
    roots = [above, images, *([tmp_path] if copy == "sklearn" else [])]
    found = [LfwFaces(str(root)) for root in roots]
    assert {tuple(faces.names) for faces in found} == {
        tuple(sorted(path.relative_to(images).as_posix() for path in images.glob("*/*")))
    }
    assert all(_listed(faces) == _listed(found[0]) for faces in found)
    assert found[0].image(0).shape == (40, 40, 3)


def test_nested_copy_is_found(tmp_path: Path) -> None:
    write_lfw(tmp_path / "lfw-deepfunneled", "deepfunneled", folds=2, size=40)
    inner = tmp_path / "lfw-deepfunneled"
    (inner / "pairs.txt").rename(inner / "lfw-deepfunneled" / "pairs.txt")
    assert len(LfwFaces(str(tmp_path)).protocol) == 12  # type: ignore[arg-type]


def test_pairs_labels_and_folds(tmp_path: Path) -> None:
    root = write_lfw(tmp_path, folds=3, pairs=4, size=40)
    expected = []
    for place, line in enumerate((root / "pairs.txt").read_text().splitlines()[1:]):
        words = line.split("\t")
        same = place % 8 < 4
        assert len(words) == (3 if same else 4)
        expected.append((_file(words[0], words[1]), _file(words[0] if same else words[2], words[-1]), same, place // 8))
    faces = LfwFaces(str(root))
    assert _listed(faces) == expected
    protocol = faces.protocol
    assert isinstance(protocol, ListedPairs)
    assert torch.equal(
        protocol.same,
        torch.from_numpy(faces.identity)[protocol.first] == torch.from_numpy(faces.identity)[protocol.second],
    )
    one = LfwFaces(str(write_lfw(tmp_path / "one", folds=1, pairs=5, size=40)), pairs="pairsDevTest.txt")
    assert [(same, fold) for *_, same, fold in _listed(one)] == [(True, 0)] * 5 + [(False, 0)] * 5


def test_without_folds_listed_images_only(tmp_path: Path) -> None:
    root = write_lfw(tmp_path, folds=2, pairs=3, size=40)
    shutil.copytree(root / "lfw" / "Some_Person_00", root / "lfw" / "Unpaired_Person_00")
    faces = LfwFaces(str(root))
    assert len(faces) == len(set(faces.names)) == len(faces.indices("test"))
    assert faces.identity_names is not None
    assert [faces.identity_names[person] for person in faces.identity] == [name.split("/")[0] for name in faces.names]
    assert set(faces.split_of_identity) == set(range(len(faces.identity_names)))
    assert "Unpaired_Person_00" not in faces.identity_names


def test_fingerprint_of_names_and_sizes(tmp_path: Path) -> None:
    root = write_lfw(tmp_path, folds=2, pairs=2, size=40)
    before, again = (LfwFaces(str(root)).fingerprint("test") for _ in range(2))
    path = root / "lfw" / LfwFaces(str(root)).names[3]
    path.write_bytes(path.read_bytes() + b"\0")
    assert before == again != LfwFaces(str(root)).fingerprint("test")


def test_faces_are_detected_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lfw, "find_landmarks", landmark_cache.find_landmarks)
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "cache"))
    root = write_lfw(tmp_path, folds=2, pairs=1)
    faces = LfwFaces(str(root))
    people = [(int(name[-11:-9]), int(name[-8:-4]) - 1) for name in faces.names]
    known = np.stack([orl_face(person, image, 250, 250)[1] for person, image in people])
    assert np.abs(faces.landmarks - known).max() < 12  # detectors differ by less than an eighth of the eyes' distance
    monkeypatch.setattr(LfwFaces, "image", None)  # a second set reads what the first one kept
    np.testing.assert_array_equal(LfwFaces(str(root)).landmarks, faces.landmarks)
    monkeypatch.setattr(landmark_cache, "create_detector", None)  # nor does a set for training detect anything
    trained = LfwFaces(str(root), test_folds=[1], val_identities=1)
    found = dict(zip(faces.names, faces.landmarks, strict=True))
    np.testing.assert_array_equal(trained.landmarks, np.stack([found[name] for name in trained.names]))


def test_datamodule_only_tests(tmp_path: Path) -> None:
    faces = LfwFaces(str(write_lfw(tmp_path, folds=2, pairs=2, size=64)))
    module = MaskedFaceDataModule(faces, size=64, kinds=("surgical",), test_seeds=(1,), eval_batch_size=4)
    clean, masked = module.test_dataloader()
    seen = torch.cat([batch["index"] for batch in clean])
    assert seen.tolist() == list(range(len(faces)))
    masked_batch = module.on_after_batch_transfer(next(iter(masked)), 0)
    assert masked_batch["mask"].flatten(1).any(1).all()
    with pytest.raises(ValueError, match="LfwFaces has no one to train on"):
        module.train_dataloader()


def test_missing_images_are_named(tmp_path: Path) -> None:
    root = write_lfw(tmp_path, folds=2, pairs=3, size=40)
    total = len(LfwFaces(str(root)))
    shutil.rmtree(root / "lfw" / "Some_Person_00")
    shutil.rmtree(root / "lfw" / "Some_Person_20")
    pattern = (
        rf"^4 of {total} LFW images are missing in .*lfw "
        r"\(Some_Person_00/Some_Person_00_0001.jpg, .*, \.\.\.\): get .* Amherst"
    )
    with pytest.raises(FileNotFoundError, match=pattern) as error:
        LfwFaces(str(root))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("gone", "message"), [("lfw", r"no LFW images in .*: looked for NAME/NAME_0001\.jpg"), ("pairs.txt", "no LFW list")]
)
def test_error_says_where_it_looked(tmp_path: Path, gone: str, message: str) -> None:
    root = write_lfw(tmp_path, folds=2, pairs=1, size=40)
    (root / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=message + r".*University of Massachusetts, Amherst"):
        LfwFaces(str(root))


def test_two_copies_are_refused(tmp_path: Path) -> None:
    write_lfw(tmp_path, "original", folds=2, pairs=1, size=40)
    root = write_lfw(tmp_path, "funneled", folds=2, pairs=1, size=40)
    with pytest.raises(ValueError, match=r"several copies of LFW \(.*lfw, .*lfw_funneled\): give the folder of one"):
        LfwFaces(str(root))


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, "ten folds", r"pairs\.txt:1: expected a header 'FOLDS PAIRS' or 'PAIRS', got 'ten folds'"),
        (0, "0\t2", r"pairs\.txt:1: expected a header"),
        (0, "2\t3", r"announces 2 x 2 x 3 pairs, but 8 follow"),
        (1, "Some_Person_00\t1", r"pairs\.txt:2: expected .* or NAME A B, .* got 'Some_Person_00 1'"),
        (2, "Some_Person_00\t1\tSome_Person_01\t2", r"pairs\.txt:3: expected NAME A B for Some_Person_00/.*1.jpg and"),
        (3, "Some_Person_00\t1\t2", r"pairs\.txt:4: expected NAME A OTHER B for"),
        (5, "Some_Person_20\tone\t2", r"pairs\.txt:6: expected .* or NAME A B"),
        (1, "../../etc\t1\t2", r"pairs\.txt:2: '\.\./\.\./etc/.*' leads out of the set's folder"),
    ],
)
def test_wrong_line_is_named(tmp_path: Path, line: int, text: str, message: str) -> None:
    path = write_lfw(tmp_path, folds=2, pairs=2, size=40) / "pairs.txt"
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message) as error:
        LfwFaces(str(path.parent))
    assert "\n" not in str(error.value)


def test_person_in_two_folds_is_told(tmp_path: Path) -> None:
    path = write_lfw(tmp_path, folds=2, pairs=2, size=40) / "pairs.txt"
    lines = path.read_text().splitlines()
    lines[5] = "Some_Person_00\t1\t2"
    path.write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=r":6: Some_Person_00 is in the folds 0 and 1, .*get the list again"):
        LfwFaces(str(path.parent))


def _people(faces: FaceSet, split: Split) -> set[str]:
    return {faces.names[index].split("/")[0] for index in faces.indices(split)}


def _fold_people(root: Path, folds: Sequence[int], pairs: int) -> set[str]:
    """The people of some folds by the list itself, whose lines are NAME A B or NAME A OTHER B."""
    lines = [line.split("\t") for line in (root / "pairs.txt").read_text().splitlines()[1:]]
    chosen = [words for place, words in enumerate(lines) if place // (2 * pairs) in folds]
    return {words[0] for words in chosen} | {words[2] for words in chosen if len(words) == 4}


@pytest.fixture
def lfw_root(tmp_path: Path) -> Path:
    """Four folds of ten people with three images each, three people of no pair, one with a single image."""
    root = write_lfw(tmp_path, folds=4, pairs=10, size=40)
    for person, images in (("Ann_Alone", 1), ("Bob_Pair", 2), ("Cy_Three", 3)):
        for number in range(1, images + 1):
            save_face(root / "lfw" / person / f"{person}_{number:04d}.jpg", 0, number, 40, 40)
    return root


def test_validation_has_ten_photos_of_a_person(lfw_root: Path) -> None:
    for person, images in (("Dee_Many", 12), ("Eve_Many", 13)):
        for number in range(1, images + 1):
            save_face(lfw_root / "lfw" / person / f"{person}_{number:04d}.jpg", 0, number % 10, 40, 40)
    photos = {}
    for seed in range(10):  # other people validate
        faces = LfwFaces(str(lfw_root), test_folds=[0], val_identities=16, seed=seed)
        for person in ("Dee_Many", "Eve_Many"):
            split = "val" if person in _people(faces, "val") else "train"
            photos[person, split] = [name for name in faces.names if name.startswith(person)]
    for person, number in (("Dee_Many", 12), ("Eve_Many", 13)):
        assert photos[person, "train"] == [_file(person, photo) for photo in range(1, number + 1)]
        assert photos[person, "val"] == [_file(person, photo) for photo in range(1, 11)]


@pytest.mark.parametrize("test_folds", [[0, 1], [2, 3], [3]])
def test_training_is_everyone_not_tested(lfw_root: Path, test_folds: list[int]) -> None:
    faces = LfwFaces(str(lfw_root), test_folds=test_folds, val_identities=6)
    tested, everyone = _fold_people(lfw_root, test_folds, 10), {path.name for path in (lfw_root / "lfw").iterdir()}
    train, val = _people(faces, "train"), _people(faces, "val")
    assert _people(faces, "test") == tested
    assert len(val) == 6 and "Ann_Alone" not in val
    assert train | val == everyone - tested and not train & val
    images = {name for name in faces.names if name.split("/")[0] not in tested}
    assert images == {
        f"{path.parent.name}/{path.name}" for path in (lfw_root / "lfw").glob("*/*") if path.parent.name not in tested
    }
    assert len(faces.names) == len(set(faces.names)) == len(faces.landmarks) == len(faces.identity)


def test_folds_keep_their_pairs(lfw_root: Path) -> None:
    complete, half = LfwFaces(str(lfw_root)), LfwFaces(str(lfw_root), test_folds=[1, 3], val_identities=2)
    expected = [pair for pair in _listed(complete) if pair[3] in (1, 3)]
    assert _listed(half) == expected
    listed = {name for first, second, *_ in expected for name in (first, second)}
    assert {half.names[index] for index in half.indices("test")} == listed
    assert half.protocol.images is not None
    assert {half.names[index] for index in half.protocol.images} == listed
    other = LfwFaces(str(lfw_root), test_folds=[0, 2], val_identities=2)
    assert not _people(half, "test") & _people(other, "test")
    assert _people(half, "test") | _people(other, "test") == _people(complete, "test")


def test_validation_depends_on_seed(lfw_root: Path) -> None:
    chosen = [
        _people(LfwFaces(str(lfw_root), test_folds=[0], val_identities=8, seed=seed), "val") for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    fewer = _people(LfwFaces(str(lfw_root), test_folds=[0], val_identities=3), "val")
    assert fewer < chosen[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"test_folds": [0, 4]},
            r"test_folds \[0, 4\]: choose one or more of 0 to 3, the folds of .*pairs\.txt, or null",
        ),
        ({"test_folds": [-1]}, r"test_folds \[-1\]: choose one or more of 0 to 3"),
        ({"test_folds": []}, r"test_folds \[\]: choose one or more of 0 to 3"),
        ({"test_folds": [0, 1, 2, 3]}, "is 300, but 2 people outside the test folds have two or more images"),
        ({"test_folds": [0], "val_identities": 33}, "is 33, but 32 people .*: choose from 1 to that number"),
        ({"test_folds": [0], "val_identities": 0}, "val_identities is 0, but 32 people"),
    ],
)
def test_bad_folds_are_refused(lfw_root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        LfwFaces(str(lfw_root), **settings)
    assert "\n" not in str(error.value)


def test_folds_leave_no_one_to_train_on(tmp_path: Path) -> None:
    root = write_lfw(tmp_path, folds=2, pairs=20, size=40)
    with pytest.raises(ValueError, match="leave no one to train on"):
        LfwFaces(str(root), test_folds=[0], val_identities=20)
    with pytest.raises(ValueError, match="0 people outside the test folds have two or more images"):
        LfwFaces(str(root), test_folds=[0, 1])


def test_photos_without_face_are_only_tested(lfw_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = LfwFaces(str(lfw_root))
    tested = next(name for first, _, _, fold in _listed(complete) if fold == 0 for name in [first])
    faceless = {tested, "Ann_Alone/Ann_Alone_0001.jpg", "Bob_Pair/Bob_Pair_0002.jpg"}

    def find(root: Path, names: Sequence[str], *_: object) -> FoundLandmarks:
        found = _everywhere(names, TEMPLATES["canonical"].tensor(250).double().numpy())
        found.landmarks[[name in faceless for name in names]] = np.nan
        return found

    monkeypatch.setattr(lfw, "find_landmarks", find)
    with pytest.warns(UserWarning) as told:
        faces = LfwFaces(str(lfw_root), test_folds=[0], val_identities=31)
    messages = [str(warning.message) for warning in told]
    assert re.fullmatch(
        rf"no face found in 1 of \d+ images \({tested}\): a mean face's landmarks stand in", messages[0]
    )
    assert re.fullmatch(
        r"no face found in 2 of \d+ images \(Ann_Alone/\S+, Bob_Pair/\S+\): they are left out of .*", messages[1]
    )
    assert faceless & {*faces.names} == {tested}
    assert np.isfinite(faces.landmarks).all()
    assert "Bob_Pair" in _people(faces, "train")  # one photo is left, which validates nothing


def test_datamodule_uses_all_splits(lfw_root: Path) -> None:
    faces = LfwFaces(str(lfw_root), test_folds=[1], val_identities=4)
    module = MaskedFaceDataModule(
        faces, size=64, batch_size=4, kinds=("surgical",), val_seeds=(1,), test_seeds=(1,), eval_batch_size=4
    )
    assert module.num_identities == len(_people(faces, "train")) == 29
    assert next(iter(module.train_dataloader()))["face"].shape == (4, 3, 64, 64)
    for split, loaders in (("val", module.val_dataloader()), ("test", module.test_dataloader())):
        seen = torch.cat([batch["index"] for batch in loaders[0]])
        assert seen.tolist() == faces.indices(split).tolist()  # type: ignore[arg-type]


_REAL = Path(os.environ.get("DEOCC_LFW", Path(__file__).parents[3] / "shared/lfw"))


@pytest.mark.skipif(not (_REAL / "pairs.txt").is_file(), reason="no copy of LFW in ../shared/lfw or at DEOCC_LFW")
def test_real_lfw_numbers() -> None:
    halves = [LfwFaces(str(_REAL), test_folds=folds) for folds in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])]
    for faces in halves:
        people = {split: _people(faces, split) for split in SPLITS}
        assert sum(map(len, people.values())) == len(set.union(*people.values())) == len(faces.split_of_identity)
        assert len(people["val"]) == 300
        assert np.unique(faces.identity[faces.indices("val")], return_counts=True)[1].min() >= 2
        assert len(faces.protocol) == 3000  # type: ignore[arg-type]
    first, second = halves
    photos = {
        person: len(list((first.root / person).glob("*.jpg")))
        for person in _people(first, "train") | _people(first, "val")
    }
    assert sum(photos.values()) == 7860
    assert len(first.indices("train")) == sum(photos[person] for person in _people(first, "train"))
    assert len(first.indices("val")) == sum(min(10, photos[person]) for person in _people(first, "val"))
    assert len(_people(first, "train") | _people(first, "val")) == 3663
    assert not _people(first, "test") & _people(second, "test")
