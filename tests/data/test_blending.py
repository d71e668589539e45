"""Blended training faces: the shares told are the shares mixed, and nothing but the seed decides."""

import numpy as np
import pytest
import torch

from deocc.data.augmentation import Augmentation
from deocc.data.dataset import TrainingFaces
from deocc.data.face_set import FaceSet


@pytest.fixture
def blended(tiny_faces: FaceSet) -> TrainingFaces:
    return TrainingFaces(tiny_faces, 64, Augmentation("none"), seed=3, blend_probability=1.0)


def test_a_blended_face_is_its_faces_weighted_by_their_shares(tiny_faces: FaceSet, blended: TrainingFaces) -> None:
    plain = TrainingFaces(tiny_faces, 64, Augmentation("none"), seed=3)
    for position in range(len(blended)):
        item = blended[0, position]
        others, shares = blended._partners(position, int(item["seed"]))
        assert torch.allclose(item["mixup_weight"], torch.tensor(shares, dtype=torch.float32))
        parts = torch.stack([plain[0, other]["face"] for other in (position, *others)])
        weights = torch.cat([1 - item["mixup_weight"].sum()[None], item["mixup_weight"]])
        expected = (parts * weights[:, None, None, None]).sum(0)
        assert torch.allclose(item["face"], expected, atol=1.01 / 127.5)


def test_the_identities_are_those_of_the_partners(blended: TrainingFaces) -> None:
    for position in range(len(blended)):
        item = blended[1, position]
        others, _ = blended._partners(position, int(item["seed"]))
        assert item["mixup_identity"].tolist() == [int(blended.identities[other]) for other in others]


def test_shares_stay_in_range_and_the_face_keeps_the_largest_expected_part(blended: TrainingFaces) -> None:
    shares = torch.stack(
        [blended[epoch, position]["mixup_weight"] for epoch in range(8) for position in range(len(blended))]
    )
    assert float(shares.min()) >= 0 and float(shares.sum(1).max()) <= 2 / 3 + 1e-6
    assert float(1 - shares.sum(1).mean()) > 0.5


def test_without_blending_the_shares_are_zero(tiny_faces: FaceSet) -> None:
    item = TrainingFaces(tiny_faces, 64, Augmentation("none"), seed=3)[0, 1]
    assert item["mixup_weight"].tolist() == [0, 0]
    assert set(item["mixup_identity"].tolist()) == {int(item["identity"])}


def test_the_same_seed_blends_the_same(blended: TrainingFaces) -> None:
    assert torch.equal(blended[2, 1]["face"], blended[2, 1]["face"])
    assert not torch.equal(blended[2, 1]["face"], blended[3, 1]["face"])


def test_about_the_wanted_share_of_the_items_is_blended(tiny_faces: FaceSet) -> None:
    half = TrainingFaces(tiny_faces, 64, Augmentation("none"), seed=3, blend_probability=0.5)
    blended = [
        float(half[epoch, position]["mixup_weight"].sum()) > 0 for epoch in range(40) for position in range(len(half))
    ]
    assert 0.3 < np.mean(blended) < 0.7
