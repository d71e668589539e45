"""Distractors follow from the seed alone, keep the range, and leave grey photographs grey."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deocc.geometry import TEMPLATES
from deocc.masking.distractors import add_camera_defects, add_cast, add_worn

MakeFaces = Callable[..., Tensor]
Add = Callable[[Tensor, Tensor], Tensor]
SIZE = 64
LANDMARKS = TEMPLATES["canonical"].tensor(SIZE)


def _worn(faces: Tensor, seeds: Tensor) -> Tensor:
    return add_worn(faces, LANDMARKS.expand(len(faces), 5, 2), seeds)


def _cast(faces: Tensor, seeds: Tensor) -> Tensor:
    return add_cast(faces, LANDMARKS.expand(len(faces), 5, 2), seeds)


each = pytest.mark.parametrize("add", [_worn, _cast, add_camera_defects], ids=["worn", "cast", "camera"])


@each
def test_distractors_keep_range_and_grey(add: Add, make_faces: MakeFaces) -> None:
    faces, seeds = torch.cat([make_faces(24), make_faces(24, grey=True)]), torch.arange(48) * 7919
    before = faces.clone()
    changed = add(faces, seeds)
    assert torch.equal(faces, before)
    assert changed.shape == faces.shape and changed.dtype == faces.dtype
    assert changed.min() >= -1 and changed.max() <= 1 and changed.isfinite().all()
    grey = changed[24:]
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 1], grey[:, 2])
    assert not torch.equal(changed[:24, 0] - changed[:24, 1], faces[:24, 0] - faces[:24, 1])


@each
def test_distractors_follow_from_seed(add: Add, make_faces: MakeFaces) -> None:
    faces, seeds = make_faces(12), torch.arange(12) * 7919 + 2**50
    changed = add(faces, seeds)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(add(faces[order], seeds[order]), changed[order])
    for number in range(12):
        assert torch.equal(add(faces[number : number + 1], seeds[number : number + 1])[0], changed[number])
    same_face = faces[:1].expand(12, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in add(same_face, seeds)}) > 2


@pytest.mark.parametrize(("add", "probability"), [(add_worn, 0.4), (add_cast, 0.3)], ids=["worn", "cast"])
def test_distractors_change_share_of_faces(
    add: Callable[..., Tensor], probability: float, make_faces: MakeFaces
) -> None:
    faces, seeds, landmarks = make_faces(1).expand(200, -1, -1, -1), torch.arange(200), LANDMARKS.expand(200, 5, 2)
    share = (add(faces, landmarks, seeds) != faces).flatten(1).any(1).float().mean()
    assert abs(float(share) - probability) < 0.1
    assert torch.equal(add(faces, landmarks, seeds, 0.0), faces)
    assert (add(faces, landmarks, seeds, 1.0) != faces).flatten(1).any(1).float().mean() > 0.95


def test_camera_defects_of_float64(make_faces: MakeFaces) -> None:
    faces, seeds = make_faces(8), torch.arange(8)
    changed = add_camera_defects(faces.double(), seeds)
    assert changed.dtype == torch.float64
    # JPEG rounds to 8 bits, where rounding errors may decide.
    assert (changed - add_camera_defects(faces, seeds)).abs().mean() < 1e-3


def test_camera_defects_differ_in_strength(make_faces: MakeFaces) -> None:
    faces = make_faces(1).expand(40, -1, -1, -1)
    distance = (add_camera_defects(faces, torch.arange(40)) - faces).abs().mean((1, 2, 3))
    assert distance.min() < 0.1 < distance.max()
    assert (distance > 0).all()
