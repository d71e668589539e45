"""Alignment and warping against NumPy's least squares, known images and known points."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.geometry import (
    TEMPLATES,
    Template,
    align,
    canonical_to,
    get_template,
    invert_transform,
    similarity_transform,
    transform_points,
    warp,
)


def _similarity(scale: float, degrees: float, x: float, y: float) -> Tensor:
    angle = np.deg2rad(degrees)
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    return torch.tensor([[a, -b, x], [b, a, y]], dtype=torch.float64)


def _points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 30 + 50


def _blob(x: float, y: float, height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 50)[None, None]


def _centroid(image: Tensor) -> Tensor:
    weight = image[0, 0] / image.sum()
    x, y = torch.arange(image.shape[-1]), torch.arange(image.shape[-2])
    return torch.stack([(weight.sum(0) * x).sum(), (weight.sum(1) * y).sum()])


@pytest.mark.parametrize(
    ("scale", "degrees", "x", "y"), [(1, 0, 0, 0), (2.5, 30, -7, 4), (0.2, -170, 100, 0), (1e-3, 90, 0, 1e3)]
)
def test_similarity_recovers_a_known_transform(scale: float, degrees: float, x: float, y: float) -> None:
    matrix, source = _similarity(scale, degrees, x, y), _points(5)
    torch.testing.assert_close(similarity_transform(source, transform_points(source, matrix)), matrix)


def test_similarity_is_numpys_least_squares_solution() -> None:
    source, target = _points(6, 5), _points(6, 5, seed=1)
    found = similarity_transform(source, target)
    for p, q, matrix in zip(source.numpy(), target.numpy(), found.numpy(), strict=True):
        rows = [row for x, y in p for row in ([x, -y, 1, 0], [y, x, 0, 1])]
        a, b, tx, ty = np.linalg.lstsq(np.array(rows), q.reshape(-1), rcond=None)[0]
        np.testing.assert_allclose(matrix, [[a, -b, tx], [b, a, ty]], rtol=1e-9)


def test_similarity_broadcasts_one_template() -> None:
    source, target = _points(3, 5), _points(5, seed=1)
    separate = torch.stack([similarity_transform(face, target) for face in source])
    torch.testing.assert_close(similarity_transform(source, target), separate)


def test_similarity_never_mirrors() -> None:
    source = _points(8, 5)
    mirrored = source * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert (torch.linalg.det(similarity_transform(source, mirrored)[..., :2]) > 0).all()


def test_inverse_maps_points_back() -> None:
    matrix = torch.stack([_similarity(2, 20, 3, 4), _similarity(0.5, -80, -30, 9)]).float()
    points = _points(2, 5).float()
    torch.testing.assert_close(
        transform_points(transform_points(points, matrix), invert_transform(matrix)), points, atol=1e-4, rtol=0
    )


def test_warp_by_the_identity() -> None:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(warp(image, torch.eye(2, 3), 16), image, atol=1e-5, rtol=0)


def test_warp_by_one_pixel_repeats_the_border() -> None:
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = warp(image, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), 8)
    expected = torch.cat([image[..., :1], image[..., :-1]], -1)
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.9, 0.4])
def test_warp_is_differentiable(scale: float) -> None:
    image = torch.rand(1, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    matrix = _similarity(scale, 10, 0.3, 0.2)
    assert torch.autograd.gradcheck(lambda pixels: warp(pixels, matrix, 3), image)


def test_warp_averages_a_checkerboard_when_shrinking() -> None:
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    board = ((rows + columns) % 2).float()[None, None] * 2 - 1
    assert warp(board, torch.eye(2, 3) / 4, 16)[..., 1:-1, 1:-1].abs().max() < 0.05


@pytest.mark.parametrize("scale", [1.3, 0.8, 0.43, 0.25])
def test_warp_moves_a_blob_at_every_scale(scale: float) -> None:
    image, place = _blob(20.3, 33.8, 61, 47), torch.tensor([[20.3, 33.8]])
    matrix = _similarity(scale, 12, 8, 3).float()
    expected = transform_points(place, matrix)[0]
    torch.testing.assert_close(_centroid(warp(image, matrix, 72)), expected, atol=0.06, rtol=0)


def test_template_scaling_keeps_the_crop_corners() -> None:
    template = Template(10, ((-0.5, -0.5), (9.5, 9.5), (0.0, 0.0), (4.5, 4.5), (2.0, 3.0)))
    expected = torch.tensor([[-0.5, -0.5], [19.5, 19.5], [0.5, 0.5], [9.5, 9.5], [4.5, 6.5]])
    torch.testing.assert_close(template.tensor(20), expected)
    torch.testing.assert_close(template.tensor(), torch.tensor(template.points))


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"canonical"}))
def test_canonical_crop_contains_every_other_crop(name: str) -> None:
    template, size = get_template(name), 112
    low, high = -0.5, template.size - 0.5
    corners = torch.tensor([[low, low], [high, low], [low, high], [high, high]])
    places = (transform_points(corners, invert_transform(canonical_to(template, size))) + 0.5) / size
    assert places.min() >= 0
    assert places.max() <= 1


def test_unknown_template_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match="unknown face template 'arc': choose one of arcface, canonical, dlib, facenet"
    ):
        get_template("arc")


def test_align_moves_landmarks_and_pixels() -> None:
    wanted = TEMPLATES["canonical"].tensor(96)
    landmarks = transform_points(wanted.double(), _similarity(2.2, 25, 120, 20)).numpy()
    image = np.zeros((300, 320, 3), np.uint8)
    spots = sum(_blob(x, y, 300, 320)[0, 0] for x, y in landmarks.tolist())
    image[...] = (torch.as_tensor(spots).clamp(0, 1) * 255).byte().numpy()[..., None]
    face, points = align(image, landmarks, 96)
    assert face.shape == (3, 96, 96)
    assert face.min() >= -1
    assert face.max() <= 1
    torch.testing.assert_close(points, wanted, atol=1e-3, rtol=0)
    for x, y in wanted.tolist():
        top, left = round(y) - 6, round(x) - 6
        patch = face[None, :1, top : top + 13, left : left + 13] + 1
        torch.testing.assert_close(_centroid(patch) + torch.tensor([left, top]), torch.tensor([x, y]), atol=0.3, rtol=0)


_FACE, _FIVE = np.zeros((20, 20, 3), np.uint8), TEMPLATES["canonical"].tensor(20).numpy()


@pytest.mark.parametrize(
    ("image", "landmarks"),
    [
        (_FACE[..., 0], _FIVE),
        (_FACE[..., :1], _FIVE),
        (_FACE, _FIVE[:4]),
        (_FACE, np.full((5, 2), np.nan)),
        (_FACE, np.full((5, 2), 3.0)),
    ],
    ids=["grey", "one channel", "four points", "not finite", "all equal"],
)
def test_align_refuses_bad_input(image: NDArray[np.uint8], landmarks: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        align(image, landmarks, 32)
    assert "\n" not in str(error.value)
