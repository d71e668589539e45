"""Surfaces: waves, folds, prints and shading, in exact arithmetic only (see `deocc.masking.canvas`)."""

from torch import Tensor

from deocc.masking.canvas import Canvas
from deocc.masking.randomness import Draws


def wave(phase: Tensor) -> Tensor:
    """A periodic wave in [0, 1], period 1, peak at integers: a smoothstepped triangle, near (1 + cos 2 pi t) / 2 without its cost."""
    t = (phase - phase.floor() - 0.5).abs() * 2
    return t * t * (3 - 2 * t)


def shading(canvas: Canvas, u: Tensor, bulge: float, rows: float = 0.0) -> Tensor:
    """(N, h, w) brightness of a matt surface wrapped round the face.

    Args:
        canvas: whose light is used.
        u: (N, h, w) horizontal face coordinate.
        bulge: darkening at one eye distance from the middle.
        rows: darkening per eye distance below the nose.
    """
    slope = canvas.light.slope
    base = exposure(canvas)
    column = base - (u * u) * (bulge * base)
    return column + (u.clamp(-1.5, 1.5) * (slope * base)) + canvas.affine(0.0, -rows * base, 0.6 * rows * base)


def exposure(canvas: Canvas) -> Tensor:
    """(N, 1, 1) factor by which the face's brightness lightens or darkens an occluder: half of the deviation from a mid exposure. OURS."""
    return (0.72 + 0.5 * canvas.light.level).clamp(0.75, 1.12)


def print_pattern(canvas: Canvas, draws: Draws) -> Tensor:
    """(N, h, w) in [0, 1]: how much of the second colour a printed fabric shows: plain, stripes, checks, dots or blotches, at random.

    All are one formula, so that a batch needs no branching: two crossed waves, each sharpened (stripes, checks), or summed and then
    sharpened (dots, and blotches where the waves bend each other).
    """
    choice = draws.unit()
    stripes, checks, dots = _within(choice, 0.25, 0.45), _within(choice, 0.45, 0.6), _within(choice, 0.6, 0.78)
    blotches = _within(choice, 0.78, 1.0)
    diagonal = draws.between(-1, 1)
    frequency = draws.between(2.5, 5.5) * (1 - 0.62 * blotches)
    p = canvas.affine(frequency, frequency * diagonal, draws.unit())
    q = canvas.affine(-frequency * diagonal, frequency, draws.unit())
    bend = 0.5 * blotches
    first = wave(p + bend * wave(q * 0.7))
    second = wave(q + bend * (first + wave(p * 0.37)))
    sharp = 1 + 5 * (stripes + checks)
    first = ((first - 0.5) * sharp + 0.5).clamp(0, 1) * (stripes + 0.5 * (checks + dots + blotches))
    second = ((second - 0.5) * sharp + 0.5).clamp(0, 1) * (0.5 * (checks + dots + blotches))
    spots = dots + blotches
    threshold = 0.72 * dots + 0.5 * blotches
    return ((first + second - threshold) * (1 + 9 * spots)).clamp(0, 1)


def _within(value: Tensor, low: float, high: float) -> Tensor:
    return ((value >= low) & (value < high)).float()


def tinted(canvas: Canvas, first: Tensor, second: Tensor, share: Tensor, shade: Tensor) -> Tensor:
    """(N, C, h, w): `share` (N, h, w) of the second colour in the first, times `shade`, plus grain; colours are (N, C, 1, 1)."""
    lit = (shade + 0.03 * canvas.grain).unsqueeze(1)
    return ((first + (second - first) * share.unsqueeze(1)) * lit).clamp(0, 1)


def weave(canvas: Canvas, u: Tensor, v: Tensor, threads: Tensor) -> Tensor:
    """(N, h, w) in [0, 1], a knit of `threads` per eye distance that fades out where pixels are too coarse to show it."""
    visible = ((canvas.frame.unit / threads - 1.5) * 0.5).clamp(0, 1)
    return (wave(u * threads) * wave(v * threads + 0.5 * u * threads) - 0.25) * visible
