"""CelebA in each of its layouts: the official split, and one line for every way in which a copy can be incomplete."""

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader

from deocc.data.celeba import CelebaFaces
from deocc.data.datamodule import MaskedFaceDataModule
from deocc.data.face_set import SPLITS, Split
from deocc.geometry import TEMPLATES, align
from tests.fake_sets.celeba import Layout, write_celeba
from tests.fake_sets.faces import orl_face

_NUMBERS = [1000 - 7 * person for person in range(8)]  # the twin's identity number of each ORL person
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Path]:
    """Every layout, drawn once; tests that change files take a copy."""
    layouts: tuple[Layout, ...] = ("official", "zip", "csv", "in_the_wild")
    return {layout: write_celeba(tmp_path_factory.mktemp(layout), layout=layout) for layout in layouts}


@pytest.fixture
def copied(drawn: dict[Layout, Path], tmp_path: Path) -> Write:
    """A function (layout="official") that copies a set and returns the copy's root."""
    return lambda layout="official": shutil.copytree(drawn[layout], tmp_path / "celeba")


@pytest.fixture(scope="module")
def faces(drawn: dict[Layout, Path]) -> CelebaFaces:
    return CelebaFaces(str(drawn["official"]))


def _numbers(faces: CelebaFaces, split: Split) -> set[int]:
    """The identity numbers of a split's people."""
    return {sorted(_NUMBERS)[person] for person in faces.identity[faces.indices(split)].tolist()}


def _edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def test_image_shows_its_identity(faces: CelebaFaces) -> None:
    assert list(faces.names) == [f"{number:06d}.jpg" for number in range(1, 33)]
    assert faces.identity_names is None
    for index in (0, 5, 17, 31):
        person = _NUMBERS.index(sorted(_NUMBERS)[faces.identity[index]])
        candidates = [orl_face(person, image, 178, 218)[0] for image in range(4)]
        image = faces.image(index)
        assert image.shape == (218, 178, 3)
        lost = min(float(np.abs(image.astype(float) - candidate).mean()) for candidate in candidates)
        assert lost < 3  # by JPEG


@pytest.mark.parametrize("layout", ["zip", "csv"])
def test_layouts_have_the_same_faces(drawn: dict[Layout, Path], faces: CelebaFaces, layout: Layout) -> None:
    other = CelebaFaces(str(drawn[layout]))
    assert (list(other.names), other.split_of_identity) == (list(faces.names), faces.split_of_identity)
    np.testing.assert_array_equal(other.identity, faces.identity)
    np.testing.assert_array_equal(other.landmarks, faces.landmarks)
    np.testing.assert_array_equal(other.image(9), faces.image(9))
    assert [other.fingerprint(split) for split in SPLITS] == [faces.fingerprint(split) for split in SPLITS]
    again: CelebaFaces = pickle.loads(pickle.dumps(other))
    np.testing.assert_array_equal(again.image(11), faces.image(11))
    assert again.fingerprint("val") == faces.fingerprint("val")


def test_photos_in_the_wild(drawn: dict[Layout, Path], faces: CelebaFaces) -> None:
    wild = CelebaFaces(str(drawn["in_the_wild"]), images="in_the_wild")
    assert {wild.image(index).shape for index in range(len(wild))} == {
        (300 - 10 * image, 260 + 20 * image, 3) for image in range(4)
    }
    np.testing.assert_array_equal(wild.identity, faces.identity)
    # The same ORL picture lies in both, larger here: the canonical crops agree.
    for index in (0, 6, 20):
        one, other = (align(faces_.image(index), faces_.landmarks[index], 64)[0] for faces_ in (faces, wild))
        assert float((one - other)[:, 8:56, 8:56].abs().mean()) < 0.06


def test_landmarks_are_those_of_the_list(faces: CelebaFaces) -> None:
    first = orl_face(0, 0, 178, 218)[1]
    np.testing.assert_array_equal(faces.landmarks[0], first.round())
    template = TEMPLATES["canonical"].tensor(64)
    for index in range(len(faces)):
        points = align(faces.image(index), faces.landmarks[index], 64)[1]
        assert float((points - template).abs().max()) < 5  # heads are turned a little


def test_official_partition_is_the_split(faces: CelebaFaces) -> None:
    train, val, test = (_numbers(faces, split) for split in SPLITS)
    assert (train, val, test) == (set(_NUMBERS[:4]), set(_NUMBERS[4:6]), set(_NUMBERS[6:]))
    expected = [[*range(16)], [*range(16, 24)], [*range(24, 32)]]
    assert [faces.indices(split).tolist() for split in SPLITS] == expected


def test_person_in_two_splits_loses_images(copied: Write) -> None:
    root = copied()
    partition = root / "Eval" / "list_eval_partition.txt"
    # 1 and 5 are two of a training person's four images, moved to test and validation: two stay, so the person does.
    # 26 and 28 are two of a test person's four, moved to training: two against two, and training is the earlier
    # split.
    moved = {"000001.jpg": 2, "000005.jpg": 1, "000026.jpg": 0, "000028.jpg": 0}
    _edit(
        partition, lambda lines: [f"{line.split()[0]} {moved.get(line.split()[0], line.split()[1])}" for line in lines]
    )
    message = (
        "spreads 2 people over several splits: 4 images outside the split with most of their person's are left out"
    )
    with pytest.warns(UserWarning, match=message):
        faces = CelebaFaces(str(root))
    assert set(range(1, 33)) - {int(name[:6]) for name in faces.names} == {1, 5, 30, 32}
    assert _numbers(faces, "train") == {*_NUMBERS[:4], _NUMBERS[7]}
    assert _numbers(faces, "test") == {_NUMBERS[6]}
    assert len(faces.landmarks) == len(faces.identity) == len(faces) == 28


def test_fingerprint_of_a_split(copied: Write, faces: CelebaFaces) -> None:
    root = copied()
    Image.new("RGB", (178, 218)).save(root / "Img" / "img_align_celeba" / "000001.jpg")
    other = CelebaFaces(str(root))
    assert [other.fingerprint(split) == faces.fingerprint(split) for split in SPLITS] == [False, True, True]


# Copies that are not complete


def _refusal(root: Path, error: type[Exception] = FileNotFoundError, **arguments: Any) -> str:
    with pytest.raises(error) as caught:
        CelebaFaces(str(root), **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_anything_every_part_is_named(tmp_path: Path) -> None:
    root = tmp_path / "celeba"
    message = _refusal(root)
    three = "identity_CelebA.txt, list_landmarks_align_celeba.txt, list_eval_partition.txt, ..."
    assert message.startswith(f"4 of 4 parts of CelebA are missing in {root} ({three}): get ")
    assert "home page" in message and "http" not in message


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("Anno/identity_CelebA.txt", "identity_CelebA.txt"),
        ("Anno/list_landmarks_align_celeba.txt", "list_landmarks_align_celeba.txt"),
        ("Eval/list_eval_partition.txt", "list_eval_partition.txt"),
        ("Img/img_align_celeba", "img_align_celeba/ or img_align_celeba.zip"),
    ],
)
def test_missing_part_is_named(copied: Write, part: str, named: str) -> None:
    root = copied()
    (root / part).rename(root / "aside")
    assert _refusal(root).startswith(f"1 of 4 parts of CelebA is missing in {root} ({named}): get ")


def test_missing_images_are_named(copied: Write) -> None:
    root = copied()
    assert "2 of 4 parts of CelebA are missing" in _refusal(root, images="in_the_wild")
    for number in (4, 7, 20, 21, 32):
        (root / "Img" / "img_align_celeba" / f"{number:06d}.jpg").unlink()
    expected = (
        f"5 of 32 CelebA images are missing in {root}/Img/img_align_celeba "
        "(000004.jpg, 000007.jpg, 000020.jpg, ...): get "
    )
    with pytest.warns(UserWarning, match=re.escape(expected)):
        assert len(CelebaFaces(str(root))) == 27


@pytest.mark.parametrize("name", ["Anno/identity_CelebA.txt", "Eval/list_eval_partition.txt"])
def test_short_list_is_named(copied: Write, name: str) -> None:
    root = copied()
    _edit(root / name, lambda lines: lines[:30])
    path = root / name
    assert _refusal(root).startswith(
        f"2 of 32 rows of {path.name} are missing in {path.parent} (000031.jpg, 000032.jpg): get "
    )


def test_short_landmarks_are_named(copied: Write) -> None:
    root = copied()
    _edit(root / "Anno" / "list_landmarks_align_celeba.txt", lambda lines: lines[:22])
    assert "list_landmarks_align_celeba.txt announces 32 images and has 20: get " in _refusal(root)


_IDENTITY, _PARTITION = "Anno/identity_CelebA.txt", "Eval/list_eval_partition.txt"
_POINTS = "Anno/list_landmarks_align_celeba.txt"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (_IDENTITY, lambda lines: [], "CelebA.txt (no line begins with an image's name): it may be half copied"),
        (_IDENTITY, lambda lines: [*lines[:-1], "000032.jpg"], "it may be half copied or altered, get it again"),
        (_IDENTITY, lambda lines: [*lines, lines[3]], "identity_CelebA.txt names 1 images twice: get it again"),
        (_POINTS, lambda lines: [*lines[:9], lines[9][:20], *lines[10:]], "it may be half copied or altered"),
        (_PARTITION, lambda lines: ["000001.jpg 3", *lines[1:]], "other numbers than 0 (train), 1 (validation) and 2"),
        (_PARTITION, lambda lines: [line[:-1] + "0" for line in lines], "no one for val and test: check list_eval"),
    ],
)
def test_damaged_list_is_refused(
    copied: Write, name: str, change: Callable[[list[str]], list[str]], message: str
) -> None:
    root = copied()
    _edit(root / name, change)
    assert message in _refusal(root, ValueError)


def test_cut_image_is_named(copied: Write) -> None:
    root = copied()
    path = root / "Img" / "img_align_celeba" / "000002.jpg"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"cannot read .*000002\.jpg as an image"):
        CelebaFaces(str(root)).image(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": "cropped"}, "unknown CelebA images 'cropped': choose one of aligned, in_the_wild"),
        ({"exclude": "people.txt"}, "exclude needs names: CelebA numbers its people"),
    ],
)
def test_bad_settings_are_refused(drawn: dict[Layout, Path], arguments: dict[str, str], message: str) -> None:
    assert message in _refusal(drawn["official"], ValueError, **arguments)


# Through the data module


def _batches(module: MaskedFaceDataModule, loader: Any, training: bool) -> list[Any]:
    module.trainer = cast(pl.Trainer, SimpleNamespace(training=training, world_size=1))
    return [module.on_after_batch_transfer(batch, 0) for batch in loader]


def test_datamodule_trains_and_tests(faces: CelebaFaces) -> None:
    module = MaskedFaceDataModule(
        faces, size=64, batch_size=4, eval_batch_size=8, kinds=["surgical"], clean_probability=0, test_seeds=[1]
    )
    assert module.num_identities == 4
    train = _batches(module, module.train_dataloader(), True)
    assert sum(len(batch["index"]) for batch in train) == 16
    assert set(torch.cat([batch["identity"] for batch in train]).tolist()) == {0, 1, 2, 3}
    masked = _batches(module, module.test_dataloader()[1], False)
    assert sorted(torch.cat([batch["index"] for batch in masked]).tolist()) == list(range(24, 32))
    for batch in [*train, *masked]:
        assert batch["face"].shape == (len(batch["index"]), 3, 64, 64)
        assert bool((batch["mask"].flatten(1).sum(1) > 0).all())
        assert torch.equal(batch["face"] * (1 - batch["mask"]), batch["masked_face"] * (1 - batch["mask"]))


def test_forked_workers_read_the_zip(drawn: dict[Layout, Path]) -> None:
    faces = CelebaFaces(str(drawn["zip"]))

    def read(indices: list[int]) -> torch.Tensor:
        return torch.stack([torch.tensor(faces.image(index)) for index in indices])

    loader: DataLoader[int] = DataLoader(
        cast(Any, range(32)), batch_size=2, num_workers=2, collate_fn=read, multiprocessing_context="fork"
    )
    assert torch.equal(torch.cat(list(loader)), read(list(range(32))))
