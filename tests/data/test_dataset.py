"""Items: shapes, ranges, what their randomness depends on, and blended faces with their weights."""

import pickle

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deocc.data import FaceSet
from deocc.data import dataset as dataset_file
from deocc.data.dataset import AlignedFaces, Augmentation, FaceItem, FixedFaces, TrainingFaces
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


def test_training_item_shapes_and_ranges(tiny_faces: FaceSet) -> None:
    dataset = _training(tiny_faces)
    assert len(dataset) == 12
    item = dataset[0, 5]
    _check(item)
    index = int(item["index"])
    assert index == tiny_faces.indices("train")[5]
    assert int(item["identity"]) == tiny_faces.identity[index]
    assert int(item["kind"]) == -1


def test_training_item_depends_on_its_key(tiny_faces: FaceSet) -> None:
    dataset, other = _training(tiny_faces), _training(tiny_faces)
    other[3, 2]
    first, again = dataset[1, 4], other[1, 4]
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    seeds = {int(item["seed"]) for item in (first, dataset[2, 4], dataset[1, 5], _training(tiny_faces, seed=1)[1, 4])}
    assert len(seeds) == 4


def test_fixed_items_order(tiny_faces: FaceSet) -> None:
    dataset = FixedFaces(tiny_faces, "test", _SIZE, [(-1, 0), (3, 7)], tiny_faces.indices("test"))
    items = [dataset[number] for number in range(len(dataset))]
    indices = tiny_faces.indices("test").tolist()
    assert [int(item["index"]) for item in items] == indices * 2
    assert [int(item["kind"]) for item in items] == [-1] * len(indices) + [3] * len(indices)
    assert {int(item["identity"]) for item in items} == {0, 1}
    assert len({int(item["seed"]) for item in items}) == len(items)
    for item in items:
        _check(item)


def test_fixed_face_is_the_aligned_photo(tiny_faces: FaceSet) -> None:
    item = FixedFaces(tiny_faces, "val", _SIZE, [(-1, 0)], tiny_faces.indices("val"))[1]
    index = int(item["index"])
    face, landmarks = align(tiny_faces.image(index), tiny_faces.landmarks[index], _SIZE)
    torch.testing.assert_close(item["face"], face, atol=0.51 / 127.5, rtol=0)
    torch.testing.assert_close(item["landmarks"], landmarks)
    torch.testing.assert_close(landmarks, TEMPLATES["canonical"].tensor(_SIZE), atol=1e-3, rtol=0)


def test_unusable_image_is_named(tiny_faces: FaceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def grey(index: int) -> NDArray[np.uint8]:
        return np.zeros((8, 8), np.uint8)

    monkeypatch.setattr(tiny_faces, "image", grey)
    with pytest.raises(ValueError, match=r"p2/2: expected an RGB image"):
        AlignedFaces(tiny_faces, _SIZE, 10)(2)


def test_aligned_faces_can_be_pickled(tiny_faces: FaceSet) -> None:
    here = AlignedFaces(tiny_faces, _SIZE, 10)
    here(0)
    there = pickle.loads(pickle.dumps(here))
    np.testing.assert_array_equal(there(0)[0], here(0)[0])


def test_large_set_reads_each_image_once(tiny_faces: FaceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_file, "KEPT", 4)
    masks = [(0, 1), (1, 1), (2, 1)]
    faces = FixedFaces(tiny_faces, "train", _SIZE, masks, tiny_faces.indices("train")[:10])
    places = [faces.mask_of(number) for number in range(len(faces))]
    order = [(int(faces.indices[position]), kind) for position, kind, _ in places]
    blocks = [tiny_faces.indices("train")[start : start + 4][: 10 - start].tolist() for start in (0, 4, 8)]
    assert order == [(index, kind) for block in blocks for kind in (0, 1, 2) for index in block]


@pytest.fixture
def blended(tiny_faces: FaceSet) -> TrainingFaces:
    return TrainingFaces(tiny_faces, 64, Augmentation("none"), seed=3, blend_probability=1.0)


def test_blended_face_is_a_weighted_mean(tiny_faces: FaceSet, blended: TrainingFaces) -> None:
    plain = TrainingFaces(tiny_faces, 64, Augmentation("none"), seed=3)
    for position in range(len(blended)):
        item = blended[0, position]
        others, shares = blended._partners(position, int(item["seed"]))
        assert torch.allclose(item["mixup_weight"], torch.tensor(shares, dtype=torch.float32))
        parts = torch.stack([plain[0, other]["face"] for other in (position, *others)])
        weights = torch.cat([1 - item["mixup_weight"].sum()[None], item["mixup_weight"]])
        expected = (parts * weights[:, None, None, None]).sum(0)
        assert torch.allclose(item["face"], expected, atol=1.01 / 127.5)
        assert item["mixup_identity"].tolist() == [int(blended.identities[other]) for other in others]


def test_shares_are_in_range(blended: TrainingFaces) -> None:
    shares = torch.stack(
        [blended[epoch, position]["mixup_weight"] for epoch in range(8) for position in range(len(blended))]
    )
    assert float(shares.min()) >= 0 and float(shares.sum(1).max()) <= 2 / 3 + 1e-6
    assert float(1 - shares.sum(1).mean()) > 0.5
    assert torch.equal(blended[2, 1]["face"], blended[2, 1]["face"])
    assert not torch.equal(blended[2, 1]["face"], blended[3, 1]["face"])


def test_share_of_blended_items(tiny_faces: FaceSet) -> None:
    item = TrainingFaces(tiny_faces, 64, Augmentation("none"), seed=3)[0, 1]
    assert item["mixup_weight"].tolist() == [0, 0]
    assert set(item["mixup_identity"].tolist()) == {int(item["identity"])}
    half = TrainingFaces(tiny_faces, 64, Augmentation("none"), seed=3, blend_probability=0.5)
    blended = [
        float(half[epoch, position]["mixup_weight"].sum()) > 0 for epoch in range(40) for position in range(len(half))
    ]
    assert 0.3 < np.mean(blended) < 0.7
