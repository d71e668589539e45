"""Counter-based random numbers that depend only on an image's seed.

Number i of seed s is a hash of (s, stream, i): a batch needs a few tensor operations, and every number is the same on
any device, in any order and in any batch.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_BLOCK = 64


def mix(values: Tensor) -> Tensor:
    """Apply the finaliser of splitmix64 [0], a bijection of int64; arithmetic wraps around as in the unsigned original.

    [0] Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    values = (values ^ _shift_right(values, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    values = (values ^ _shift_right(values, 27)) * (0x94D049BB133111EB - 2**64)
    return values ^ _shift_right(values, 31)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift logically; the shift of torch copies the sign bit."""
    return torch.bitwise_and(values >> bits, 2 ** (64 - bits) - 1)


def uniform(seeds: Tensor, count: int, stream: int = 0) -> Tensor:
    """Return uniform numbers (B, count) float32 in [0, 1), multiples of 2^-24, for seeds (B,) int64.

    Numbers of different streams are independent.
    """
    keys = mix(mix(seeds + _GOLDEN) + stream)
    counters = torch.arange(1, count + 1, device=seeds.device)
    return _shift_right(mix(keys[:, None] + counters * _GOLDEN), 40).float() * 2.0**-24


class Draws:
    """A stream of random parameters, one value per image and call, each (N, 1, 1) so that it broadcasts over pixels.

    Seeds are (N,) int64; `block` are the first numbers of the stream, (64, N, 1, 1), if already computed.
    """

    def __init__(self, seeds: Tensor, stream: int = 1, block: Tensor | None = None) -> None:
        self._seeds, self._stream, self._used = seeds, stream, 0
        self._block = self._numbers() if block is None else block

    def take(self, index: Tensor | slice) -> "Draws":
        """Return the stream of some of the images, from its beginning."""
        return Draws(self._seeds[index], self._stream, self._block[:, index])

    def unit(self) -> Tensor:
        """Return (N, 1, 1) in [0, 1)."""
        if self._used == _BLOCK:
            self._stream, self._used = self._stream + (1 << 32), 0
            self._block = self._numbers()
        self._used += 1
        return self._block[self._used - 1]

    def _numbers(self) -> Tensor:
        """Return the next numbers of the stream, (64, N, 1, 1)."""
        return uniform(self._seeds, _BLOCK, self._stream).t().contiguous()[:, :, None, None]

    def between(self, low: float, high: float) -> Tensor:
        """Return (N, 1, 1) in [low, high)."""
        return self.unit() * (high - low) + low

    def between_each(self, *ranges: tuple[float, float]) -> tuple[Tensor, ...]:
        """Return `between` of several ranges, with one operation."""
        stop = self._used + len(ranges)
        if stop > _BLOCK:
            return tuple(self.between(low, high) for low, high in ranges)
        numbers, self._used = self._block[self._used : stop], stop
        spans, lows = _spans_and_lows(ranges, numbers.device)
        return (numbers * spans + lows).unbind(0)

    def colour(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return (N, 3) in [low, high)."""
        return torch.cat(self.between_each(*[(low, high)] * 3), 1)[:, :, 0]

    def sign(self) -> Tensor:
        """Return (N, 1, 1), -1 or 1."""
        return (self.unit() < 0.5).float() * 2 - 1

    def chance(self, probability: float) -> Tensor:
        """Return (N, 1, 1) float, 1 with the given probability, else 0."""
        return (self.unit() < probability).float()

    def pick(self, options: Sequence[Sequence[float]]) -> Tensor:
        """Return (N, C), one of the rows with equal probability."""
        table = torch.tensor(options, device=self._seeds.device)
        return table[(self.unit()[:, 0, 0] * len(options)).long()]


@lru_cache(maxsize=256)
def _spans_and_lows(ranges: tuple[tuple[float, float], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return high - low and low of each range, (K, 1, 1, 1)."""
    columns = zip(*[(high - low, low) for low, high in ranges], strict=True)
    spans, lows = (torch.tensor(column, device=device)[:, None, None, None] for column in columns)
    return spans, lows
