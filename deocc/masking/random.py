"""Random numbers that depend on an image's seed alone, never on its neighbours in the batch or on a global generator.

A counter-based generator: number i of seed s is a hash of (s, stream, i), so that all of a batch is drawn by a handful of tensor operations
and every number is the same on any device, in any order, in any batch.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_BLOCK = 64


def mix(values: Tensor) -> Tensor:
    """The finaliser of splitmix64 [0], a bijection of the 64-bit integers that spreads every input bit over all output bits.

    [0] Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Args:
        values: (...) int64; arithmetic wraps around as in the unsigned original.

    Returns:
        (...) int64.
    """
    values = (values ^ _shift_right(values, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    values = (values ^ _shift_right(values, 27)) * (0x94D049BB133111EB - 2**64)
    return values ^ _shift_right(values, 31)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own copies the sign bit."""
    return torch.bitwise_and(values >> bits, 2 ** (64 - bits) - 1)


def uniform(seeds: Tensor, count: int, stream: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24.

    Args:
        seeds: (B,) int64.
        count: numbers per seed.
        stream: numbers of different streams are independent.

    Returns:
        (B, count) float32.
    """
    keys = mix(mix(seeds + _GOLDEN) + stream)
    counters = torch.arange(1, count + 1, device=seeds.device)
    return _shift_right(mix(keys[:, None] + counters * _GOLDEN), 40).float() * 2.0**-24


def chosen_share(seeds: Tensor, share: float) -> Tensor:
    """(B,) bool: whether each seed of (B,) int64 is among a `share` in [0, 1] of all seeds, to a thousandth."""
    return (seeds % 1000).float() < share * 1000


class Draws:
    """A stream of random parameters, one value per image and call, each (N, 1, 1) so that it broadcasts over pixels.

    Args:
        seeds: (N,) int64.
        stream: see `uniform`.
        block: the first numbers of the stream, (64, N, 1, 1), if they are known already.
    """

    def __init__(self, seeds: Tensor, stream: int = 1, block: Tensor | None = None) -> None:
        self._seeds, self._stream, self._used = seeds, stream, 0
        self._block = self._numbers() if block is None else block

    def take(self, index: slice) -> "Draws":
        """The unused stream of some of the images."""
        return Draws(self._seeds[index], self._stream, self._block[:, index])

    def unit(self) -> Tensor:
        """(N, 1, 1) in [0, 1)."""
        if self._used == _BLOCK:
            self._stream, self._used = self._stream + (1 << 32), 0
            self._block = self._numbers()
        self._used += 1
        return self._block[self._used - 1]

    def _numbers(self) -> Tensor:
        """(64, N, 1, 1): the stream's next numbers."""
        return uniform(self._seeds, _BLOCK, self._stream).t().contiguous()[:, :, None, None]

    def between(self, low: float, high: float) -> Tensor:
        """(N, 1, 1) in [low, high)."""
        return self.unit() * (high - low) + low

    def between_each(self, *ranges: tuple[float, float]) -> tuple[Tensor, ...]:
        """What `between` gives for one range after the other, for the price of one."""
        stop = self._used + len(ranges)
        if stop > _BLOCK:
            return tuple(self.between(low, high) for low, high in ranges)
        numbers, self._used = self._block[self._used : stop], stop
        spans, lows = _spans_and_lows(ranges, numbers.device)
        return (numbers * spans + lows).unbind(0)

    def colour(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(N, 3), three numbers in [low, high)."""
        return torch.cat(self.between_each(*[(low, high)] * 3), 1)[:, :, 0]

    def sign(self) -> Tensor:
        """(N, 1, 1), -1 or 1."""
        return (self.unit() < 0.5).float() * 2 - 1

    def chance(self, probability: float) -> Tensor:
        """(N, 1, 1) float, 1 with the given probability, else 0."""
        return (self.unit() < probability).float()

    def pick(self, options: Sequence[Sequence[float]]) -> Tensor:
        """(N, C): one of the rows, all equally likely."""
        table = torch.tensor(options, device=self._seeds.device)
        return table[(self.unit()[:, 0, 0] * len(options)).long()]


@lru_cache(maxsize=256)
def _spans_and_lows(ranges: tuple[tuple[float, float], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """high - low and low of each range, (K, 1, 1, 1)."""
    columns = zip(*[(high - low, low) for low, high in ranges], strict=True)
    spans, lows = (torch.tensor(column, device=device)[:, None, None, None] for column in columns)
    return spans, lows
