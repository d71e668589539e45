"""Similarities, crops and templates, for any points."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from deocc.geometry import (
    LARGEST_COORDINATE,
    TEMPLATES,
    Template,
    align,
    canonical_to,
    invert_transform,
    similarity_transform,
    transform_points,
    warp,
)
from tests.properties.strategies import SEEDS, for_all, noise, similarities, similarity

TEMPLATE_NAMES = st.sampled_from(sorted(TEMPLATES))
COORDINATES = st.floats(-1e4, 1e4, width=32)


@st.composite
def point_sets(draw: st.DrawFn) -> Tensor:
    """(P, 2) float64 points, P from 2 to 6, two of which lie a pixel or more apart;

    they may coincide else, or lie on a line.
    """
    points = torch.tensor(
        draw(st.lists(st.tuples(COORDINATES, COORDINATES), min_size=2, max_size=6)), dtype=torch.float64
    )
    assume(float((points - points[0]).norm(dim=1).max()) >= 1)
    return points


def _compose(after: Tensor, before: Tensor) -> Tensor:
    """(2, 3) of `before` and then `after`."""
    full = [torch.cat([matrix, matrix.new_tensor([[0.0, 0.0, 1.0]])]) for matrix in (after, before)]
    return (full[0] @ full[1])[:2]


def _grid(size: int) -> Tensor:
    axis = torch.arange(size, dtype=torch.float64)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)


@for_all(source=point_sets(), matrix=similarities())
def test_similarity_is_recovered(source: Tensor, matrix: Tensor) -> None:
    target = transform_points(source, matrix)
    found = similarity_transform(source, target)
    size = 1 + float(target.abs().max())
    torch.testing.assert_close(found[:, :2], matrix[:, :2], rtol=0, atol=1e-9 * size)
    torch.testing.assert_close(transform_points(source, found), target, rtol=0, atol=1e-8 * size)


@for_all(source=point_sets(), seed=SEEDS)
def test_similarity_fits_best_unmirrored(source: Tensor, seed: int) -> None:
    target = source * torch.tensor([-1.0, 1.0]) + 5 * noise(seed, *source.shape).double()
    found = similarity_transform(source, target)
    assert found[0, 0] == found[1, 1] and found[0, 1] == -found[1, 0] and float(torch.linalg.det(found[:, :2])) >= 0

    def error(matrix: Tensor) -> float:
        return float((transform_points(source, matrix) - target).square().sum())

    change = 1e-3 * noise(seed, 4).double()
    near = found + torch.stack(
        [torch.stack([change[0], -change[1], change[2]]), torch.stack([change[1], change[0], change[3]])]
    )
    assert error(found) <= error(near) * (1 + 1e-9) + 1e-9


@for_all(matrix=similarities(), other=similarities(), points=point_sets())
def test_inverse_and_product_of_matrices(matrix: Tensor, other: Tensor, points: Tensor) -> None:
    back = transform_points(transform_points(points.float(), matrix.float()), invert_transform(matrix.float()))
    reach = float(points.abs().max()) + float(matrix[:, 2].abs().max()) / float(torch.linalg.det(matrix[:, :2]).sqrt())
    torch.testing.assert_close(back, points.float(), rtol=0, atol=1e-5 * (1 + reach))
    together = transform_points(points, _compose(other, matrix))
    torch.testing.assert_close(
        transform_points(transform_points(points, matrix), other), together, rtol=1e-9, atol=1e-6
    )


@for_all(name=TEMPLATE_NAMES, one=st.integers(1, 600), other=st.integers(1, 600))
def test_template_of_any_size(name: str, one: int, other: int) -> None:
    first, second = ((TEMPLATES[name].tensor(size) + 0.5) / size for size in (one, other))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


@for_all(name=TEMPLATE_NAMES, size=st.integers(16, 600))
def test_canonical_points_near_templates(name: str, size: int) -> None:
    template = TEMPLATES[name]
    placed = transform_points(TEMPLATES["canonical"].tensor(size), canonical_to(template, size))
    assert float((placed - template.tensor()).abs().max()) < 0.05 * template.size


@for_all(
    matrix=similarities(0.05, 20.0),
    size=st.integers(8, 96),
    seed=SEEDS,
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_align_meets_the_template(matrix: Tensor, size: int, seed: int, height: int, width: int) -> None:
    wanted = TEMPLATES["canonical"].tensor(size)
    image = (noise(seed, height, width, 3) * 99).numpy().astype(np.uint8)
    face, points = align(image, transform_points(wanted.double(), matrix).numpy(), size)
    assert face.shape == (3, size, size) and bool(face.isfinite().all())
    assert (
        float(image.min()) / 127.5 - 1 - 1e-5 <= float(face.min())
        and float(face.max()) <= float(image.max()) / 127.5 - 1 + 1e-5
    )
    scale = 1 / float(torch.linalg.det(matrix[:, :2]).sqrt())
    torch.testing.assert_close(points, wanted, rtol=0, atol=1e-3 + 1e-6 * scale * float(matrix[:, 2].abs().max()))


BROKEN = st.one_of(
    COORDINATES.map(lambda value: np.full((5, 2), value)),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e8, -1e19, 1e30, 1e300]).map(
        lambda value: np.where(np.eye(5, 2), value, 3.0)
    ),
    st.integers(1, 9).filter(lambda count: count != 5).map(lambda count: np.arange(2.0 * count).reshape(count, 2)),
)


@for_all(points=BROKEN)
def test_align_refuses_broken_points(points: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected five finite landmarks \(5, 2\)") as error:
        align(np.zeros((9, 9, 3), np.uint8), points, 16)
    assert "\n" not in str(error.value)


@for_all(matrix=similarities(), axis=st.sampled_from([0, 1]))
def test_align_of_collinear_points(matrix: Tensor, axis: int) -> None:
    points = TEMPLATES["canonical"].tensor(32).double()
    points[:, axis] = 16
    face, placed = align(np.zeros((9, 9, 3), np.uint8), transform_points(points, matrix).numpy(), 32)
    assert bool(face.isfinite().all()) and bool(placed.isfinite().all())


@for_all(matrix=similarities(0.7, 4.0, 20.0), slope=st.tuples(*[st.floats(-1, 1)] * 3))
def test_crop_of_linear_image(matrix: Tensor, slope: tuple[float, float, float]) -> None:
    """Bilinear sampling is exact there, so that every pixel inside has a known value."""
    grid, weights = _grid(24), torch.tensor(slope, dtype=torch.float64)
    image = (grid @ weights[:2] + weights[2]).view(1, 1, 24, 24).float()
    places = transform_points(grid, invert_transform(matrix))
    inside = ((places >= 0) & (places <= 23)).all(1)
    expected = places[inside] @ weights[:2] + weights[2]
    torch.testing.assert_close(warp(image, matrix, 24).flatten().double()[inside], expected, rtol=0, atol=2e-3)


@for_all(matrix=similarities(0.03, 0.6, 5.0), slope=st.tuples(*[st.floats(-1, 1)] * 3))
def test_coarse_crop_of_linear_image(matrix: Tensor, slope: tuple[float, float, float]) -> None:
    """Antialiasing takes means round a place;

    their weights, taken at whole pixels, miss it by a few hundredths of a pixel.
    """
    grid, weights = _grid(96), torch.tensor(slope, dtype=torch.float64)
    image = (grid @ weights[:2] + weights[2]).view(1, 1, 96, 96).float()
    places, border = (
        transform_points(_grid(24), invert_transform(matrix)),
        2 / float(torch.linalg.det(matrix[:, :2]).sqrt()),
    )
    inside = ((places >= border) & (places <= 95 - border)).all(1)
    error = (warp(image, matrix, 24).flatten().double() - places @ weights[:2] - weights[2])[inside].abs()
    assert bool((error <= 0.1 * float(weights[:2].abs().sum()) + 1e-3).all())


@for_all(
    first=similarities(0.8, 1.4, 6.0),
    second=similarities(0.8, 1.4, 6.0),
    pitch=st.floats(0.05, 0.25),
    angle=st.floats(0, 3),
)
def test_two_crops_equal_their_product(first: Tensor, second: Tensor, pitch: float, angle: float) -> None:
    """For a wave of radian frequency w, bilinear sampling has an error of at most w^2 / 4 along two axes."""
    size, together = 40, _compose(second, first)
    assume(float(torch.linalg.det(together[:, :2])) > 1 / 1.5**2)
    grid = _grid(size)
    image = (
        (pitch * (grid @ torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)))
        .sin()
        .view(1, 1, size, size)
        .float()
    )
    twice, once = warp(warp(image, first, size), second, size), warp(image, together, size)
    between = transform_points(grid, invert_transform(second))
    sources = transform_points(grid, invert_transform(together))
    inside = ((between >= 1) & (between <= size - 2) & (sources >= 1) & (sources <= size - 2)).all(1)
    error = (twice - once).flatten()[inside].abs()
    assert float(torch.cat([error, torch.zeros(1)]).max()) <= 3 * pitch**2 / 4 * 1.6 + 1e-3


@for_all(matrix=similarities(0.1, 5.0, 30.0), seed=SEEDS, size=st.integers(1, 20))
def test_crop_keeps_range_alone_or_not(matrix: Tensor, seed: int, size: int) -> None:
    images = noise(seed, 3, 2, 13, 17)
    crops = warp(images, matrix, size)
    for image, crop in zip(images, crops, strict=True):
        assert float(image.min()) - 1e-5 <= float(crop.min()) and float(crop.max()) <= float(image.max()) + 1e-5
        torch.testing.assert_close(warp(image[None], matrix, size)[0], crop, rtol=0, atol=1e-6)


_NO_INVERSE = (
    [[0.0, 0.0], [0.0, 0.0]],
    [[1.0, 2.0], [2.0, 4.0]],
    [[math.nan, 0.0], [0.0, 1.0]],
    [[math.inf, 0.0], [0.0, 1.0]],
)


@pytest.mark.parametrize("rows", _NO_INVERSE, ids=["zero", "rank one", "NaN", "infinite"])
def test_warp_refuses_singular_matrix(rows: list[list[float]]) -> None:
    bad = torch.cat([torch.tensor(rows), torch.zeros(2, 1)], 1)
    with pytest.raises(ValueError, match="expected matrices with an inverse"):
        warp(torch.zeros(2, 3, 8, 8), torch.stack([torch.eye(2, 3), bad]), 8)


def test_align_refuses_other_images() -> None:
    points = TEMPLATES["canonical"].tensor(16).numpy()
    images: list[Any] = [np.zeros((0, 9, 3), np.uint8), np.zeros((9, 9, 3), np.float32)]
    for image in images:
        with pytest.raises(
            ValueError, match=r"expected an RGB image of shape \(H, W, 3\) with pixels and of type uint8"
        ):
            align(image, points, 16)


def test_align_limits_coordinates() -> None:
    points = Template(2, ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (1.0, 1.0))).tensor() * LARGEST_COORDINATE
    assert bool(align(np.zeros((9, 9, 3), np.uint8), points.numpy(), 16)[0].isfinite().all())
    with pytest.raises(ValueError, match="not all in one place"):
        align(np.zeros((9, 9, 3), np.uint8), points.numpy() * 1.001, 16)


def test_similarity_of_two_points() -> None:
    pair = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        similarity_transform(pair, pair.flip(-1)), similarity(1.0, math.pi / 2, 0.0, 0.0), atol=1e-12, rtol=0
    )
