"""Surfaces: waves, folds, prints and shading, in exact arithmetic only (see `deocc.masking.canvas`)."""

from torch import Tensor

from deocc.masking.canvas import Canvas
from deocc.masking.random import Draws


def wave(phase: Tensor) -> Tensor:
    """A periodic wave in [0, 1], period 1, peak at integers: a smoothstepped triangle, near (1 + cos 2 pi t) / 2 without its cost."""
    t = (phase - phase.floor()).sub_(0.5).abs_()
    return (t * t).mul_(3 - 4 * t).mul_(4)


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
    column = (u * u).mul_(-bulge * base).add_(u.clamp(-1.5, 1.5).mul_(slope * base))
    return column.add_(canvas.affine(0.0, -rows * base, (0.6 * rows + 1) * base))


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
    first = wave(wave(q * 0.7).mul_(bend).add_(p))
    second = wave(wave(p * 0.37).add_(first).mul_(bend).add_(q))
    spots = dots + blotches
    crossed = 0.5 * (checks + spots)
    first = _sharpened(first, stripes + checks).mul_(stripes + crossed)
    second = _sharpened(second, stripes + checks).mul_(crossed)
    threshold = 0.72 * dots + 0.5 * blotches
    return first.add_(second).sub_(threshold).mul_(1 + 9 * spots).clamp_(0, 1)


def _sharpened(ramp: Tensor, hard: Tensor) -> Tensor:
    """A wave as it is where `hard` is 0, six times steeper round its middle where it is 1; in place."""
    return ramp.mul_(1 + 5 * hard).sub_(2.5 * hard).clamp_(0, 1)


def _within(value: Tensor, low: float, high: float) -> Tensor:
    return ((value >= low) & (value < high)).float()


def tinted(canvas: Canvas, first: Tensor, second: Tensor, share: Tensor, shade: Tensor) -> Tensor:
    """(N, C, h, w): `share` (N, h, w) of the second colour in the first, times `shade`, plus grain; colours are (N, C, 1, 1)."""
    lit = (0.03 * canvas.grain).add_(shade).unsqueeze(1)
    return ((second - first) * share.unsqueeze(1)).add_(first).mul_(lit).clamp_(0, 1)


def weave(canvas: Canvas, u: Tensor, v: Tensor, threads: Tensor) -> Tensor:
    """(N, h, w) in [0, 1], a knit of `threads` per eye distance that fades out where pixels are too coarse to show it."""
    visible = ((canvas.frame.unit / threads - 1.5) * 0.5).clamp(0, 1)
    along = u * threads
    return wave((v * threads).add_(0.5 * along)).mul_(wave(along)).sub_(0.25).mul_(visible)
