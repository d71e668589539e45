"""Distractors follow from the seed alone, keep the range, and leave grey photographs grey."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deocc.geometry import TEMPLATES
from deocc.masking.distractors import add_camera_defects, add_cast, add_worn, displace, expose

MakeFaces = Callable[..., Tensor]
Add = Callable[[Tensor, Tensor], Tensor]
SIZE = 64
LANDMARKS = TEMPLATES["canonical"].tensor(SIZE)


def _worn(faces: Tensor, seeds: Tensor) -> Tensor:
    return add_worn(faces, LANDMARKS.expand(len(faces), 5, 2), seeds)


def _cast(faces: Tensor, seeds: Tensor) -> Tensor:
    return add_cast(faces, LANDMARKS.expand(len(faces), 5, 2), seeds)


def _displaced(faces: Tensor, seeds: Tensor) -> Tensor:
    return displace(faces, LANDMARKS.expand(len(faces), 5, 2), seeds)[0]


def _exposed(faces: Tensor, seeds: Tensor) -> Tensor:
    return expose(faces, torch.ones_like(faces[:, :1]), seeds)


each = pytest.mark.parametrize(
    "add",
    [_worn, _cast, add_camera_defects, _displaced, _exposed],
    ids=["worn", "cast", "camera", "displaced", "exposed"],
)


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


def test_displaced_landmarks_follow_face() -> None:
    """The brightest point of each face is its nose, before and after."""
    seeds, landmarks = torch.arange(40) * 7919, LANDMARKS.expand(40, 5, 2)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    distance = (columns - LANDMARKS[2, 0]).square() + (rows - LANDMARKS[2, 1]).square()
    faces = (2 * torch.exp(-distance / 8) - 1).expand(40, 3, -1, -1)
    moved, points = displace(faces, landmarks, seeds, probability=1.0)
    brightest = moved[:, 0].flatten(1).argmax(1)
    found = torch.stack([brightest % SIZE, brightest // SIZE], 1)
    assert (found - points[:, 2]).abs().max() <= 1.0
    assert (points[:, 2] - landmarks[:, 2]).norm(dim=1).max() > 4
    unmoved, same = displace(faces, landmarks, seeds, probability=0.0)
    torch.testing.assert_close((unmoved, same), (faces, landmarks), rtol=0, atol=1e-4)


def test_expose_changes_covered_pixels_only(make_faces: MakeFaces) -> None:
    faces, mask = make_faces(40), torch.zeros(40, 1, SIZE, SIZE)
    mask[:, :, 20:50, 10:50] = 1
    exposed = expose(faces, mask, torch.arange(40), probability=1.0)
    visible = (mask == 0).expand_as(faces)
    assert torch.equal(exposed[visible], faces[visible])
    brighter = ((exposed - faces) * mask).mean((1, 2, 3))
    assert brighter.min() < 0 < brighter.max()
