"""Alignment and warping against NumPy's least squares, known images and known points; see also tests/properties."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deocc.geometry import (
    TEMPLATES,
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


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"canonical"}))
def test_canonical_crop_contains_every_other_crop(name: str) -> None:
    template, size = get_template(name), 112
    low, high = -0.5, template.size - 0.5
    corners = torch.tensor([[low, low], [high, low], [low, high], [high, high]])
    places = (transform_points(corners, invert_transform(canonical_to(template, size))) + 0.5) / size
    assert places.min() >= 0 and places.max() <= 1


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
    assert face.shape == (3, 96, 96) and face.min() >= -1 and face.max() <= 1
    torch.testing.assert_close(points, wanted, atol=1e-3, rtol=0)
    for x, y in wanted.tolist():
        top, left = round(y) - 6, round(x) - 6
        patch = face[None, :1, top : top + 13, left : left + 13] + 1
        torch.testing.assert_close(_centroid(patch) + torch.tensor([left, top]), torch.tensor([x, y]), atol=0.3, rtol=0)


@pytest.mark.parametrize("channels", [(), (1,)], ids=["grey", "one channel"])
def test_align_refuses_other_channels(channels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected an RGB image") as error:
        align(np.zeros((20, 20, *channels), np.uint8), TEMPLATES["canonical"].tensor(20).numpy(), 32)
    assert "\n" not in str(error.value)
