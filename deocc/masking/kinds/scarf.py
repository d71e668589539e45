"""The scarf: woven cloth in folds over the lower face and the neck."""

from torch import Tensor

from deocc.masking.canvas import Canvas, Kind, Layer
from deocc.masking.fabrics import shading, tinted, wave, weave
from deocc.masking.kinds.cloth import random_colours
from deocc.masking.random import Draws
from deocc.masking.shapes import smooth_max


def _paint(canvas: Canvas) -> Layer:
    draws, u, v = canvas.draws, canvas.posed_u(0.25), canvas.v
    u2 = u * u
    top = _top(canvas, u, u2, draws)
    half = canvas.affine(0.0, 0.5, -0.5).clamp_min_(0).add_(draws.between(1.1, 1.25))
    depth = v - top
    sheet = smooth_max(top.sub_(v), u.abs().sub_(half), 0.25)
    folds = _folds(u, u2, depth, draws)
    rim = (sheet + 0.1).clamp_min_(0).mul_(1.5)
    fineness, relief, pitch, phase = draws.between_each((11.0, 20.0), (0.06, 0.22), (0.8, 2.2), (0.0, 1.0))
    threads = weave(canvas, u, depth, fineness).mul_(relief)
    shade = shading(canvas, u, 0.10, 0.05).mul_(folds.mul_(0.42).add_(0.70)).sub_(rim).add_(threads)
    stripes = wave(depth.mul_(pitch).add_(phase)).sub_(0.45).mul_(9)
    share = stripes.clamp_(0, 1).mul_(draws.chance(0.4))
    return Layer(canvas.cover(sheet), tinted(canvas, *random_colours(canvas, draws), share, shade))


def _top(canvas: Canvas, u: Tensor, u2: Tensor, draws: Draws) -> Tensor:
    """Return v (N, h, w) of the slack upper edge, over or under the nose."""
    edge = draws.between(0.78, 0.98) - draws.chance(0.7) * draws.between(0.36, 0.52)
    pitch, phase, lean, fall = draws.between_each((0.2, 0.5), (0.0, 1.0), (-0.12, 0.12), (-0.05, 0.22))
    sway = wave(canvas.affine(pitch, 0.0, phase)).mul_(0.08)
    return (u * lean).add_(edge).add_((u2 / (u2 + 0.4)).mul_(fall)).add_(sway)


def _folds(u: Tensor, u2: Tensor, depth: Tensor, draws: Draws) -> Tensor:
    """Return (N, h, w) in [0, 1]: broad drapes that converge to one side, crossed by finer creases."""
    towards, slack, pitch, slant, phase = draws.between_each(
        (-0.4, 0.4), (-0.5, 0.1), (1.1, 1.9), (-0.3, 0.3), (0.0, 1.0)
    )
    gather = (u * towards).add_(1).mul_(depth)
    broad = wave((gather * pitch).add_(u2 * slack).add_(u * slant).add_(phase))
    pitch, slant = draws.between_each((1.6, 2.6), (-1.1, 1.1))
    fine = wave(gather.mul_(pitch).add_(u * slant).add_(broad * 0.5))
    return broad.mul_(broad).mul_(0.65).add_(fine.mul_(0.35))


SCARF = Kind("scarf", (-99.0, 0.1, 99.0, 99.0), _paint)
