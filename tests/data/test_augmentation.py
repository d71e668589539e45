"""Augmentation follows from its seed, and the landmarks follow the pixels."""

import numpy as np
import pytest
from numpy.typing import NDArray

from deocc.data.dataset import Augmentation, Strength
from deocc.geometry import TEMPLATES

_SIZE = 112
_LANDMARKS = TEMPLATES["canonical"].tensor(_SIZE).numpy()
_RED, _GREEN = (255, 40, 40), (40, 255, 40)  # red lies left, green lies right
_COLOURS = (_RED, _GREEN, (230, 230, 230), _RED, _GREEN)


@pytest.fixture(scope="module")
def dotted() -> NDArray[np.uint8]:
    """A dark crop with a dot of 3 pixels' radius at each landmark."""
    rows, columns = np.mgrid[:_SIZE, :_SIZE]
    image = np.full((_SIZE, _SIZE, 3), 40, np.uint8)
    for (x, y), colour in zip(_LANDMARKS, _COLOURS, strict=True):
        image[(columns - x) ** 2 + (rows - y) ** 2 <= 9] = colour
    return image


def _dot_near(image: NDArray[np.uint8], point: NDArray[np.float32]) -> NDArray[np.float64]:
    """The centre of what is bright within 8 pixels of the point."""
    left, top = np.maximum(np.round(point).astype(int) - 8, 0)
    patch = image[top : top + 17, left : left + 17].max(2).astype(float)
    rows, columns = np.nonzero(patch > (patch.min() + patch.max()) / 2)
    return np.array([columns.mean() + left, rows.mean() + top])


@pytest.mark.parametrize(("strength", "tolerance"), [("none", 0.3), ("flip", 0.3), ("light", 0.6), ("strong", 1.0)])
def test_landmarks_follow_the_pixels(dotted: NDArray[np.uint8], strength: Strength, tolerance: float) -> None:
    augmentation = Augmentation(strength)
    for seed in range(20):
        image, points, _ = augmentation(dotted, _LANDMARKS, seed)
        assert image.shape == dotted.shape and image.dtype == np.uint8
        assert points.shape == (5, 2) and points.dtype == np.float32
        for point in points:
            assert np.linalg.norm(_dot_near(image, point) - point) < tolerance


@pytest.mark.parametrize("strength", ["flip", "light", "strong"])
def test_flip_swaps_eyes_and_corners(dotted: NDArray[np.uint8], strength: Strength) -> None:
    augmentation, flips = Augmentation(strength), []
    for seed in range(20):
        image, points, flipped = augmentation(dotted, _LANDMARKS, seed)
        assert points[0, 0] < points[1, 0] and points[3, 0] < points[4, 0]
        red_is_left = [
            bool(np.subtract(*image[round(y), round(x), :2].astype(int)) > 0) for x, y in points[[0, 3]].tolist()
        ]
        assert red_is_left[0] == red_is_left[1]
        assert flipped is not red_is_left[0]
        flips.append(flipped)
    assert 3 < sum(flips) < 17


@pytest.mark.parametrize("strength", ["light", "strong"])
def test_equal_seeds_give_equal_faces(dotted: NDArray[np.uint8], strength: Strength) -> None:
    first, second = Augmentation(strength), Augmentation(strength)
    second(dotted, _LANDMARKS, 999)
    results = []
    for seed in range(12):
        image, points, flipped = first(dotted, _LANDMARKS, seed)
        again, points_again, flipped_again = second(dotted, _LANDMARKS, seed)
        np.testing.assert_array_equal(image, again)
        np.testing.assert_array_equal(points, points_again)
        assert flipped == flipped_again
        results.append(image.tobytes())
    assert len(set(results)) > 10


def test_no_augmentation_changes_nothing(dotted: NDArray[np.uint8]) -> None:
    image, points, flipped = Augmentation("none")(dotted, _LANDMARKS, 0)
    np.testing.assert_array_equal(image, dotted)
    np.testing.assert_array_equal(points, _LANDMARKS)
    assert flipped is False


def test_flip_mirrors_to_the_pixel(dotted: NDArray[np.uint8]) -> None:
    augmentation, mirrored = Augmentation("flip"), _LANDMARKS[[1, 0, 2, 4, 3]] * [-1, 1] + [_SIZE - 1, 0]
    for seed in range(12):
        image, points, flipped = augmentation(dotted, _LANDMARKS, seed)
        np.testing.assert_array_equal(image, dotted[:, ::-1] if flipped else dotted)
        np.testing.assert_allclose(points, mirrored if flipped else _LANDMARKS, rtol=0, atol=1e-4)


def test_right_eye_first_is_no_flip(dotted: NDArray[np.uint8]) -> None:
    _, points, flipped = Augmentation("none")(dotted, _LANDMARKS[[1, 0, 2, 4, 3]], 0)
    np.testing.assert_array_equal(points, _LANDMARKS)
    assert flipped is False
