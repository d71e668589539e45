"""Surfaces: waves, prints, weaves and shading, with the arithmetic that `Kind.paint` allows."""

from torch import Tensor

from deocc.masking.canvas import Canvas
from deocc.masking.random import Draws


def wave(phase: Tensor) -> Tensor:
    """Return a wave in [0, 1] with period 1 and peaks at integers: a smoothstepped triangle, like a cosine."""
    t = (phase - phase.floor()).sub_(0.5).abs_()
    return (t * t).mul_(3 - 4 * t).mul_(4)


def shading(canvas: Canvas, u: Tensor, bulge: float, rows: float = 0.0) -> Tensor:
    """Return the brightness (N, h, w) of a matt surface wrapped around the face.

    Args:
        canvas: provides the lighting.
        u: (N, h, w) horizontal face coordinate.
        bulge: darkening at one eye distance from the middle.
        rows: darkening per eye distance below the nose.
    """
    slope = canvas.light.slope
    base = exposure(canvas)
    column = (u * u).mul_(-bulge * base).add_(u.clamp(-1.5, 1.5).mul_(slope * base))
    return column.add_(canvas.affine(0.0, -rows * base, (0.6 * rows + 1) * base))


def exposure(canvas: Canvas) -> Tensor:
    """Return the brightness factor (N, 1, 1) of an occluder: half of the face's deviation from mid exposure."""
    return (0.72 + 0.5 * canvas.light.level).clamp(0.75, 1.12)


def print_pattern(canvas: Canvas, draws: Draws) -> Tensor:
    """Return the share (N, h, w) of the second colour in a random print.

    Prints are plain, striped, checked, dotted or blotched. All are one formula, so that a batch needs no branching: two
    crossed waves, each sharpened (stripes, checks), or summed and then sharpened (dots, and blotches where the waves
    bend each other).
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
    """Make a wave six times steeper around its middle where `hard` is 1, in place."""
    return ramp.mul_(1 + 5 * hard).sub_(2.5 * hard).clamp_(0, 1)


def _within(value: Tensor, low: float, high: float) -> Tensor:
    return ((value >= low) & (value < high)).float()


def tinted(canvas: Canvas, first: Tensor, second: Tensor, share: Tensor, shade: Tensor) -> Tensor:
    """Return (N, C, h, w): `first` mixed with a `share` (N, h, w) of `second`, times `shade`, plus grain."""
    lit = (0.03 * canvas.grain).add_(shade).unsqueeze(1)
    return ((second - first) * share.unsqueeze(1)).add_(first).mul_(lit).clamp_(0, 1)


def weave(canvas: Canvas, u: Tensor, v: Tensor, threads: Tensor) -> Tensor:
    """Return a knit (N, h, w) of `threads` per eye distance, which fades out where pixels are too coarse."""
    visible = ((canvas.frame.unit / threads - 1.5) * 0.5).clamp(0, 1)
    along = u * threads
    return wave((v * threads).add_(0.5 * along)).mul_(wave(along)).sub_(0.25).mul_(visible)
