"""Items: shapes, ranges, and what their randomness depends on."""

import pickle

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deocc.data import FaceSet
from deocc.data import dataset as dataset_file
from deocc.data.augmentation import Augmentation
from deocc.data.dataset import AlignedFaces, FaceItem, FixedFaces, TrainingFaces
from deocc.geometry import TEMPLATES, align

_SIZE = 48


def _training(faces: FaceSet, seed: int = 0) -> TrainingFaces:
    return TrainingFaces(faces, _SIZE, Augmentation("light"), seed)


def _check(item: FaceItem) -> None:
    assert item["face"].shape == (3, _SIZE, _SIZE)
    assert item["face"].dtype == torch.float32
    assert -1 <= item["face"].min() < item["face"].max() <= 1
    assert item["landmarks"].shape == (5, 2)
    scalars = (item["identity"], item["index"], item["kind"], item["seed"])
    assert all(value.shape == () and value.dtype == torch.int64 for value in scalars)


def test_a_training_item_has_the_shapes_and_ranges_of_the_batch(tiny_faces: FaceSet) -> None:
    dataset = _training(tiny_faces)
    assert len(dataset) == 12
    item = dataset[0, 5]
    _check(item)
    index = int(item["index"])
    assert index == tiny_faces.indices("train")[5]
    assert int(item["identity"]) == tiny_faces.identity[index]
    assert int(item["kind"]) == -1


def test_a_training_item_follows_from_seed_epoch_and_position_alone(tiny_faces: FaceSet) -> None:
    dataset, other = _training(tiny_faces), _training(tiny_faces)
    other[3, 2]
    first, again = dataset[1, 4], other[1, 4]
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    seeds = {int(item["seed"]) for item in (first, dataset[2, 4], dataset[1, 5], _training(tiny_faces, seed=1)[1, 4])}
    assert len(seeds) == 4


def test_fixed_items_go_through_the_images_under_one_mask_after_the_other(tiny_faces: FaceSet) -> None:
    dataset = FixedFaces(tiny_faces, "test", _SIZE, [(-1, 0), (3, 7)], tiny_faces.indices("test"))
    items = [dataset[number] for number in range(len(dataset))]
    indices = tiny_faces.indices("test").tolist()
    assert [int(item["index"]) for item in items] == indices * 2
    assert [int(item["kind"]) for item in items] == [-1] * len(indices) + [3] * len(indices)
    assert {int(item["identity"]) for item in items} == {0, 1}
    assert len({int(item["seed"]) for item in items}) == len(items)
    for item in items:
        _check(item)


def test_a_fixed_face_is_the_aligned_photograph_to_half_a_grey_level(tiny_faces: FaceSet) -> None:
    item = FixedFaces(tiny_faces, "val", _SIZE, [(-1, 0)], tiny_faces.indices("val"))[1]
    index = int(item["index"])
    face, landmarks = align(tiny_faces.image(index), tiny_faces.landmarks[index], _SIZE)
    torch.testing.assert_close(item["face"], face, atol=0.51 / 127.5, rtol=0)
    torch.testing.assert_close(item["landmarks"], landmarks)
    torch.testing.assert_close(landmarks, TEMPLATES["canonical"].tensor(_SIZE), atol=1e-3, rtol=0)


def test_an_unusable_image_is_named(tiny_faces: FaceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def grey(index: int) -> NDArray[np.uint8]:
        return np.zeros((8, 8), np.uint8)

    monkeypatch.setattr(tiny_faces, "image", grey)
    with pytest.raises(ValueError, match=r"p2/2: expected an RGB image"):
        AlignedFaces(tiny_faces, _SIZE, 10)(2)


def test_aligned_faces_travel_to_a_spawned_worker(tiny_faces: FaceSet) -> None:
    here = AlignedFaces(tiny_faces, _SIZE, 10)
    here(0)
    there = pickle.loads(pickle.dumps(here))
    np.testing.assert_array_equal(there(0)[0], here(0)[0])


def test_of_a_large_set_every_image_is_asked_for_by_all_its_masks_in_turn(
    tiny_faces: FaceSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_file, "KEPT", 4)
    masks = [(0, 1), (1, 1), (2, 1)]
    faces = FixedFaces(tiny_faces, "train", _SIZE, masks, tiny_faces.indices("train")[:10])
    order = [(faces.index_of(number), faces.mask_of(number)[0]) for number in range(len(faces))]
    blocks = [tiny_faces.indices("train")[start : start + 4][: 10 - start].tolist() for start in (0, 4, 8)]
    assert order == [(index, kind) for block in blocks for kind in (0, 1, 2) for index in block]
