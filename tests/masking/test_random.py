"""The counter-based generator against Python's own unbounded integers."""

import pytest
import torch

from deocc.masking import draw_kinds, list_kinds
from deocc.masking.random import Draws, mix, uniform

_M = 2**64 - 1


def _splitmix64(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) & _M
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _M
    return z ^ (z >> 31)


def _unsigned(value: int) -> int:
    return value & _M


def test_mix_is_splitmix64() -> None:
    golden = 0x9E3779B97F4A7C15
    states = [0, 1, -1, 12345, -(2**63), 2**63 - 1]
    shifted = [(_unsigned(s) + golden) & _M for s in states]
    inputs = torch.tensor([s - 2**64 if s >= 2**63 else s for s in shifted])
    assert [_unsigned(v) for v in mix(inputs).tolist()] == [_splitmix64(_unsigned(s)) for s in states]
    assert _splitmix64(0) == 0xE220A8397B1DCDAF  # the reference implementation's first output


def test_uniform_is_flat_and_uncorrelated() -> None:
    numbers = uniform(torch.arange(20000), 4)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers[:, 2], 20, 0, 1)
    assert ((counts - 1000).square() / 1000).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    pairs = torch.stack(
        [numbers[:-1, 0], numbers[1:, 0], numbers[:-1, 1], uniform(torch.arange(19999), 1, stream=1)[:, 0]]
    )
    assert (torch.corrcoef(pairs) - torch.eye(4)).abs().max() < 0.03


def test_long_stream_does_not_repeat() -> None:
    draws = Draws(torch.arange(3))
    assert len({float(draws.unit()[1]) for _ in range(200)}) == 200


def test_draw_kinds_probabilities() -> None:
    seeds = torch.arange(8000)
    chosen = draw_kinds(seeds, ("hand", "box"), clean_probability=0.25)
    assert torch.equal(chosen[seeds % 7 == 3], draw_kinds(seeds[seeds % 7 == 3], ("hand", "box"), 0.25))
    shares = [
        (chosen == number).float().mean() for number in (-1, list_kinds().index("hand"), list_kinds().index("box"))
    ]
    torch.testing.assert_close(torch.stack(shares), torch.tensor([0.25, 0.375, 0.375]), atol=0.02, rtol=0)
    assert set(draw_kinds(seeds, None).tolist()) == set(range(len(list_kinds())))


@pytest.mark.parametrize(("kinds", "clean"), [((), 0.0), (("box",), 1.5), (("box",), -0.1), (("beard",), 0.0)])
def test_draw_kinds_bad_input(kinds: tuple[str, ...], clean: float) -> None:
    with pytest.raises(ValueError, match=r"kind|unknown occluder 'beard': choose from surgical"):
        draw_kinds(torch.arange(2), kinds, clean)


@pytest.mark.parametrize("used", [0, 62, 64])
def test_between_each_equals_between(used: int) -> None:
    """Also where the stream's blocks of 64 numbers end."""
    ranges = ((0.1, 0.7), (-3.0, 2.0), (0.0, 1.0))
    one, other = Draws(torch.arange(5)), Draws(torch.arange(5))
    for draws in (one, other):
        for _ in range(used):
            draws.unit()
    assert all(
        torch.equal(a, one.between(*bounds)) for a, bounds in zip(other.between_each(*ranges), ranges, strict=True)
    )
    assert torch.equal(torch.cat([one.unit() for _ in range(3)], 1)[:, :, 0], other.colour())
