"""Properties of every kind of occluder, on any face that a detector may find."""

import math
import random
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from deocc.geometry import LARGEST_COORDINATE, TEMPLATES
from deocc.masking import draw_kinds, list_kinds, registry, render
from deocc.masking.random import Draws, uniform
from deocc.masking.registry import get_kind
from tests.properties.strategies import SEEDS, faces, for_all, landmarks, noise

KINDS = list_kinds()
NUMBERS = st.integers(-1, len(KINDS) - 1)


class Sitters(NamedTuple):
    """Arguments of `render`."""

    faces: Tensor
    landmarks: Tensor
    kinds: Tensor
    seeds: Tensor

    def take(self, index: Tensor | list[int]) -> "Sitters":
        """Some of the images, in this order."""
        return Sitters(*(column[index] for column in self))


@st.composite
def sitters(draw: st.DrawFn, least: int = 1, most: int = 5, kinds: st.SearchStrategy[int] = NUMBERS) -> Sitters:
    """A batch of any faces in one canonical crop."""
    count, size = draw(st.integers(least, most)), draw(st.integers(24, 80))
    points = torch.stack([draw(landmarks(size)) for _ in range(count)])
    numbers = torch.tensor(draw(st.lists(kinds, min_size=count, max_size=count)))
    seeds = torch.tensor(draw(st.lists(SEEDS, min_size=count, max_size=count)))
    return Sitters(draw(faces(count, size)), points, numbers, seeds)


def _same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@for_all(given=sitters())
def test_mask_is_where_the_face_changed(given: Sitters) -> None:
    before = given.faces.clone()
    masked, masks = render(*given)
    assert torch.equal(given.faces, before) and masked.shape == before.shape and masks.shape == before[:, :1].shape
    assert masked.dtype == masks.dtype == before.dtype and set(masks.unique().tolist()) <= {0.0, 1.0}
    assert bool(masked.isfinite().all()) and float(masked.abs().max()) <= 1
    visible = (masks == 0).expand_as(masked)
    assert torch.equal(masked[visible].view(torch.int32), before[visible].view(torch.int32))
    assert torch.equal(masks.flatten(1).any(1), given.kinds >= 0)


@for_all(given=sitters(least=2), others=sitters(most=2), order=st.randoms(use_true_random=False))
def test_image_ignores_its_batch(given: Sitters, others: Sitters, order: random.Random) -> None:
    whole = render(*given)
    for i in range(len(given.faces)):
        assert _same(render(*given.take([i])), (whole[0][i : i + 1], whole[1][i : i + 1]))
    places = list(range(len(given.faces)))
    order.shuffle(places)
    assert _same(render(*given.take(places)), (whole[0][places], whole[1][places]))
    count, size = len(others.faces), given.faces.shape[-1]
    points = TEMPLATES["canonical"].tensor(size).expand(count, 5, 2)
    beside = others._replace(faces=noise(0, count, 3, size, size).clamp(-1, 1), landmarks=points)
    joined = render(*(torch.cat(columns) for columns in zip(beside, given, strict=True)))
    assert _same((joined[0][count:], joined[1][count:]), whole)


@for_all(given=sitters(most=3))
def test_memory_layout_does_not_matter(given: Sitters) -> None:
    whole = render(*given)
    assert _same(render(given.faces.contiguous(memory_format=torch.channels_last), *given[1:]), whole)
    assert _same(render(given.faces.repeat_interleave(2, 0)[::2], *given[1:]), whole)


@for_all(kind=st.sampled_from(KINDS), seeds=st.sets(SEEDS, min_size=2, max_size=6), points=landmarks(64))
def test_seeds_give_different_occluders(kind: str, seeds: set[int], points: Tensor) -> None:
    masked, _ = render(
        torch.zeros(1, 3, 64, 64).expand(len(seeds), -1, -1, -1), points, kind, torch.tensor(sorted(seeds))
    )
    assert len({image.numpy().tobytes() for image in masked}) == len(seeds)


@for_all(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float64]),
    seed=SEEDS,
    points=landmarks(48),
)
def test_float_types_give_equal_masks(kind: str, dtype: torch.dtype, seed: int, points: Tensor) -> None:
    face, seeds = noise(seed, 1, 3, 48, 48).clamp(-1, 1).to(dtype), torch.tensor([seed])
    masked, mask = render(face, points, kind, seeds)
    assert masked.dtype == mask.dtype == dtype and float(masked.abs().max()) <= 1
    assert torch.equal(mask.float(), render(face.float(), points, kind, seeds)[1])
    assert torch.equal(torch.where(mask == 0, masked, face), face)


@for_all(given=sitters(most=4, kinds=st.integers(0, len(KINDS) - 1)))
def test_kind_stays_in_its_extent(given: Sitters) -> None:
    """Painted over the whole image instead of its window, it covers not one pixel more."""
    with pytest.MonkeyPatch.context() as patch:
        windowed = render(*given)[1]
        patch.setattr(
            registry, "_KINDS", {name: replace(get_kind(number), extent=None) for number, name in enumerate(KINDS)}
        )
        assert torch.equal(render(*given)[1], windowed)


WORN = {
    "surgical": "mouth",
    "cloth": "mouth",
    "n95": "mouth and nose",
    "scarf": "mouth",
    "hand": "mouth",
    "sunglasses": "eyes",
}
SPARED = {"surgical": "eyes", "cloth": "eyes", "n95": "eyes", "sunglasses": "mouth"}


@for_all(kind=st.sampled_from(sorted(WORN)), seed=SEEDS, points=landmarks(128))
def test_worn_kinds_cover_their_parts(kind: str, seed: int, points: Tensor) -> None:
    _, masks = render(torch.zeros(1, 3, 128, 128), points, kind, torch.tensor([seed]))
    parts = {"eyes": points[:2], "mouth": points[3:].mean(0, keepdim=True), "nose": points[2:3]}

    def covered(names: str) -> list[bool]:
        places = torch.cat([parts[name] for name in names.split(" and ")]).round().long()
        return [bool(masks[0, 0, y, x]) for x, y in places.tolist() if 0 <= x < 128 and 0 <= y < 128]

    assert all(covered(WORN[kind]))
    assert kind not in SPARED or not any(covered(SPARED[kind]))


@for_all(size=st.integers(16, 200), number=st.integers(0, len(KINDS) - 1), seed=SEEDS)
def test_covered_share_is_limited(size: int, number: int, seed: int) -> None:
    _, masks = render(torch.zeros(1, 3, size, size), None, torch.tensor([number]), torch.tensor([seed]))
    assert 0 < float(masks.mean()) < 0.8


@for_all(
    points=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=10, max_size=10),
    number=st.integers(0, len(KINDS) - 1),
    shape=st.sampled_from([(32, 32), (20, 40), (1, 1)]),
)
def test_any_landmarks_mask_or_refusal(points: list[float], number: int, shape: tuple[int, int]) -> None:
    try:
        masked, masks = render(
            torch.zeros(1, 3, *shape), torch.tensor(points).view(5, 2), torch.tensor([number]), torch.tensor([5])
        )
    except ValueError as error:
        assert "landmarks must be" in str(error) and "\n" not in str(error)
    else:
        assert bool(masks.any()) and bool(masked.isfinite().all()) and max(map(abs, points)) <= LARGEST_COORDINATE


@pytest.mark.parametrize("coordinate", [math.nan, -math.inf, 1e19, 3e38])
@pytest.mark.parametrize("kind", ["hand", "surgical"])
def test_far_landmarks_are_refused(coordinate: float, kind: str) -> None:
    with pytest.raises(ValueError, match="landmarks must be finite pixels up to"):
        render(torch.zeros(1, 3, 32, 32), TEMPLATES["canonical"].tensor(32) + coordinate, kind, torch.tensor([0]))


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_faces_stay_in_range(kind: str) -> None:
    face = noise(3, 16, 3, 64, 64).sign().double()
    masked, _ = render(face, None, kind, torch.arange(16))
    assert float(masked.abs().max()) <= 1


def test_faces_without_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="expected float faces"):
        render(torch.zeros(2, 3, 0, 0), None, "hand", torch.arange(2))


@for_all(seeds=st.lists(SEEDS, min_size=1, max_size=5), count=st.integers(1, 70), stream=st.integers(0, 3))
def test_uniform_numbers_of_24_bits(seeds: list[int], count: int, stream: int) -> None:
    numbers = uniform(torch.tensor(seeds), count, stream)
    assert numbers.shape == (len(seeds), count) and float(numbers.min()) >= 0 and float(numbers.max()) < 1
    assert torch.equal((numbers * 2**24).round() / 2**24, numbers)
    for seed, row in zip(seeds, numbers, strict=True):
        assert torch.equal(uniform(torch.tensor([seed]), count + 3, stream)[0, :count], row)


@for_all(
    unit=st.sampled_from([0.0, 0.5, 1 - 2.0**-24]),
    low=st.floats(-3, 3),
    width=st.floats(0.01, 5),
    options=st.integers(1, 40),
)
def test_draws_at_ends_of_interval(unit: float, low: float, width: float, options: int) -> None:
    draws = Draws(torch.tensor([0]), block=torch.full((64, 1, 1, 1), unit))
    value = float(draws.between(low, low + width))
    assert low - 1e-6 <= value <= low + width + 1e-6
    chosen = float(draws.pick([(float(number),) for number in range(options)]))
    assert chosen == min(options - 1, math.floor(unit * options))


@for_all(
    seeds=st.lists(SEEDS, min_size=1, max_size=20),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    clean=st.floats(0, 1),
)
def test_kinds_are_drawn_by_seed_alone(seeds: list[int], kinds: list[str], clean: float) -> None:
    chosen = draw_kinds(torch.tensor(seeds), kinds, clean)
    assert set(chosen.tolist()) <= {-1, *(KINDS.index(name) for name in kinds)}
    assert chosen.tolist() == [int(draw_kinds(torch.tensor([seed]), kinds, clean)) for seed in seeds]
    assert bool((draw_kinds(torch.tensor(seeds), kinds, 0.0) >= 0).all())
    assert bool((draw_kinds(torch.tensor(seeds), kinds, 1.0) == -1).all())
    rarer = draw_kinds(torch.tensor(seeds), kinds, clean / 2)
    assert bool(((rarer == chosen) | (chosen == -1)).all()), "more clean faces only take occluders away"
