"""The scarf: woven cloth in folds over the lower face and the neck."""

from torch import Tensor

from deocc.masking.canvas import Canvas, Layer
from deocc.masking.fabrics import shading, tinted, wave, weave
from deocc.masking.kind import Kind
from deocc.masking.kinds.cloth import random_colours
from deocc.masking.outlines import smooth_max
from deocc.masking.randomness import Draws


def _paint(canvas: Canvas) -> Layer:
    draws, u, v = canvas.draws, canvas.posed_u(0.25), canvas.v
    u2 = u * u
    top = _top(canvas, u, u2, draws)
    flare = canvas.affine(0.0, 0.5, -0.5).clamp_min(0)
    sheet = smooth_max(top - v, u.abs() - (flare + draws.between(1.1, 1.25)), 0.25)
    depth = v - top
    folds = _folds(u, u2, depth, draws)
    rim = (sheet + 0.1).clamp_min(0)
    threads = weave(canvas, u, depth, draws.between(11.0, 20.0)) * draws.between(0.06, 0.22)
    shade = shading(canvas, u, 0.10, 0.05) * (0.70 + 0.42 * folds) - rim * 1.5 + threads
    stripes = (wave(depth * draws.between(0.8, 2.2) + draws.unit()) - 0.45) * 9
    share = stripes.clamp(0, 1) * draws.chance(0.4)
    return Layer(canvas.cover(sheet), tinted(canvas, *random_colours(canvas, draws), share, shade))


def _top(canvas: Canvas, u: Tensor, u2: Tensor, draws: Draws) -> Tensor:
    """(N, h, w) v of the upper edge, over the nose or under it, slightly slack."""
    edge = draws.between(0.78, 0.98) - draws.chance(0.7) * draws.between(0.36, 0.52)
    sway = wave(canvas.affine(draws.between(0.2, 0.5), 0.0, draws.unit())) * 0.08
    return edge + u * draws.between(-0.12, 0.12) + (u2 / (u2 + 0.4)) * draws.between(-0.05, 0.22) + sway


def _folds(u: Tensor, u2: Tensor, depth: Tensor, draws: Draws) -> Tensor:
    """(N, h, w) in [0, 1]: broad drapes that run together towards one side, crossed by finer creases."""
    gather = depth * (1 + u * draws.between(-0.4, 0.4))
    slack = u2 * draws.between(-0.5, 0.1)
    broad = wave(gather * draws.between(1.1, 1.9) + slack + u * draws.between(-0.3, 0.3) + draws.unit())
    fine = wave(gather * draws.between(1.6, 2.6) + u * draws.between(-1.1, 1.1) + broad * 0.5)
    return broad * broad * 0.65 + fine * 0.35


SCARF = Kind("scarf", (-4.0, 0.1, 4.0, 4.0), _paint)
