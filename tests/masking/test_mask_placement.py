"""Occluders lie where the landmarks say."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deocc.geometry import TEMPLATES, similarity_transform, transform_points
from deocc.masking import list_kinds, register_kind, render
from deocc.masking.registry import get_kind
from deocc.masking.shapes import FaceFrame

MakeFaces = Callable[..., Tensor]

SIZE = 128
FACE = TEMPLATES["canonical"].tensor(SIZE)
SEEDS = torch.arange(32)
all_kinds = pytest.mark.parametrize("kind", [kind for kind in list_kinds() if kind != "blob"])


def _turn(points: Tensor, degrees: float, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    angle, centre = math.radians(degrees), torch.tensor([SIZE / 2, SIZE / 2])
    rotation = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (points - centre) @ rotation * scale + centre + torch.tensor(shift)


def _covered(masks: Tensor, point: Tensor) -> Tensor:
    x, y = point.round().long().tolist()
    return masks[:, 0, y, x]


@pytest.mark.parametrize("degrees", [-60.0, -20.0, 0.0, 35.0, 180.0])
@pytest.mark.parametrize(
    ("kind", "covers", "spares"),
    [
        ("surgical", "mouth", "eyes"),
        ("cloth", "mouth", "eyes"),
        ("n95", "mouth", "eyes"),
        ("sunglasses", "eyes", "mouth"),
    ],
)
def test_worn_kinds_on_tilted_faces(kind: str, covers: str, spares: str, degrees: float, make_faces: MakeFaces) -> None:
    points = _turn(FACE, degrees, 0.7)
    given = points[[1, 0, 2, 4, 3]] if degrees == 180 else points  # left to right in the image
    _, masks = render(make_faces(32, SIZE), given, kind, SEEDS)
    parts = {"eyes": points[:2], "mouth": points[3:].mean(0, keepdim=True)}
    assert all(_covered(masks, point).all() for point in parts[covers])
    assert not any(_covered(masks, point).any() for point in parts[spares])


@all_kinds
def test_mask_moves_with_landmarks(kind: str, make_faces: MakeFaces) -> None:
    """A mask moved by nearest neighbours and the mask rendered at moved landmarks differ at most along their edges."""
    small = _turn(FACE, 0, 0.5)
    moved = _turn(small, 25, 0.9, (6.0, -4.0))
    faces = make_faces(32, SIZE)
    _, before = render(faces, small, kind, SEEDS)
    _, after = render(faces, moved, kind, SEEDS)
    back = similarity_transform(moved, small)
    axis = torch.arange(SIZE, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    x, y = transform_points(grid, back).round().long().unbind(-1)
    inside = (x >= 0) & (x < SIZE) & (y >= 0) & (y < SIZE)
    expected = before[:, 0].flatten(1)[:, y.clamp(0, SIZE - 1) * SIZE + x.clamp(0, SIZE - 1)][:, inside]
    got = after[:, 0].flatten(1)[:, inside]
    overlap = ((expected * got).sum(1) / (expected + got).clamp_max(1).sum(1)).mean()
    assert overlap > 0.80


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("surgical", 0.10, 0.30),
        ("cloth", 0.08, 0.30),
        ("n95", 0.08, 0.28),
        ("scarf", 0.20, 0.60),
        ("sunglasses", 0.04, 0.16),
        ("hand", 0.08, 0.40),
        ("box", 0.01, 0.30),
        ("strokes", 0.01, 0.35),
    ],
)
def test_coverage_in_range(kind: str, least: float, most: float, make_faces: MakeFaces) -> None:
    _, masks = render(make_faces(1, SIZE).expand(300, -1, -1, -1), None, kind, torch.arange(300))
    coverage = masks.mean((1, 2, 3))
    assert least < coverage.min() and coverage.max() < most


@all_kinds
def test_extent_contains_whole_mask(kind: str, own_kinds: None, make_faces: MakeFaces) -> None:
    """The same kind painted over the whole image, on small frontal and turned heads, covers not one pixel more."""
    points = _turn(FACE, 0, 0.5).expand(256, 5, 2).clone()
    points[::2, 2, 0] += torch.linspace(-12, 12, 128)
    faces, seeds = make_faces(1, SIZE).expand(256, -1, -1, -1), torch.arange(256)
    register_kind(replace(get_kind(list_kinds().index(kind)), name="everywhere", extent=None))
    assert torch.equal(render(faces, points, kind, seeds)[1], render(faces, points, "everywhere", seeds)[1])


def test_turned_head_narrows_far_side(make_faces: MakeFaces) -> None:
    turned = FACE.clone()
    turned[2, 0] += 12
    faces = make_faces(32, SIZE)
    _, frontal = render(faces, FACE, "cloth", SEEDS)
    _, yawed = render(faces, turned, "cloth", SEEDS)
    row = round(float(FACE[3:, 1].mean()))
    middle = (SIZE - 1) / 2

    def reach(masks: Tensor) -> tuple[Tensor, Tensor]:
        columns = torch.arange(SIZE) * masks[:, 0, row] + (1 - masks[:, 0, row]) * middle
        return middle - columns.amin(1), columns.amax(1) - middle

    near, far = (after - before for before, after in zip(reach(frontal), reach(yawed), strict=True))
    assert near.min() > 0 > far.max()


@pytest.mark.parametrize("collapsed", [FACE * 0 + 64, FACE * torch.tensor([0.0, 1.0]) + torch.tensor([64.0, 0.0])])
def test_degenerate_landmarks_not_silent(collapsed: Tensor, make_faces: MakeFaces) -> None:
    """Coincident points either still give an occluder or are refused aloud."""
    try:
        masked, masks = render(make_faces(4, SIZE), collapsed, "surgical", torch.arange(4))
    except ValueError as error:
        assert "outside the crop" in str(error)
    else:
        assert masks.flatten(1).any(1).all() and masked.isfinite().all()


def test_face_frame_is_invertible() -> None:
    points = _turn(FACE, 17, 0.8, (3.0, -5.0))
    frame = FaceFrame.from_landmarks(points[None])
    face = torch.tensor([(-0.5, 0.0), (0.5, 0.0), (0.0, 0.563), (-0.446, 1.1), (0.446, 1.1)])
    x, y = frame.pixels(face)
    torch.testing.assert_close(torch.stack([x[0], y[0]], -1), points, atol=1e-3, rtol=0)
    u, v = frame.ux * x + frame.uy * y + frame.u0, frame.vx * x + frame.vy * y + frame.v0
    torch.testing.assert_close(torch.stack([u[0, 0], v[0, 0]], -1), face, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shift", [(0.4, 0.0), (-0.4, 0.0), (0.0, 0.4), (0.0, -0.4)])
def test_blobs_reach_displaced_faces(shift: tuple[float, float]) -> None:
    face, size = torch.zeros(400, 3, 32, 32), 32
    landmarks = TEMPLATES["canonical"].tensor(size) + size * torch.tensor(shift)
    assert render(face, landmarks, "blob", torch.arange(400))[1].flatten(1).any(1).all()
