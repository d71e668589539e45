"""The respirator: a stiff cup with an embossed ridge, a nose clip and two straps round the head."""

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Layer
from deocc.masking.fabrics import shading, tinted
from deocc.masking.kind import Kind
from deocc.masking.outlines import smooth_max
from deocc.masking.randomness import Draws

_COLOURS = ((0.93, 0.93, 0.91), (0.90, 0.91, 0.93), (0.72, 0.75, 0.78), (0.60, 0.72, 0.84), (0.25, 0.26, 0.28))
_STRAPS = ((0.95, 0.85, 0.35), (0.92, 0.92, 0.9), (0.15, 0.15, 0.17))


def _paint(canvas: Canvas) -> Layer:
    draws, u, v = canvas.draws, canvas.posed_u(0.45), canvas.v
    cup = _cup(u, v, draws)
    shade = shading(canvas, u, 0.30, 0.14) + _relief(canvas, u, v, cup, draws)
    body = canvas.cover(cup)
    straps = _straps(canvas, u.abs(), draws)
    colours = canvas.paint(draws.pick(_STRAPS)), canvas.paint(draws.pick(_COLOURS))
    return Layer(torch.maximum(body, canvas.cover(straps)), tinted(canvas, *colours, body, shade))


def _cup(u: Tensor, v: Tensor, draws: Draws) -> Tensor:
    """Signed distance to the cup: a dome over the nose, widest at the mouth, ending under the chin."""
    nose, chin, half = draws.between(0.22, 0.36), draws.between(1.72, 1.92), draws.between(0.80, 0.92)
    lean = draws.between(-0.05, 0.05)
    u2 = u * u
    top = nose + (u2 / (u2 + 0.22)) * draws.between(0.40, 0.55) + u * lean
    bottom = chin - u2 * (0.42 + 0.25 * u2) + u * lean
    return smooth_max(smooth_max(top - v, v - bottom, 0.25), u.abs() - half, 0.3)


def _relief(canvas: Canvas, u: Tensor, v: Tensor, cup: Tensor, draws: Draws) -> Tensor:
    """Light on the dome, two embossed rings or a welded cross seam, the flat rim and the metal clip, as additions to the shade."""
    rim = canvas.line(cup + 0.07, 0.02) * 0.16
    ring = canvas.line(cup + draws.between(0.2, 0.26), 0.035)
    ridge = canvas.line(canvas.affine(0.0, 1.0, -draws.between(0.95, 1.15)) + 0.28 * u * u, 0.035) * draws.chance(0.6)
    inner = ring * (cup < 0).float()
    clip = canvas.line(cup + 0.13, 0.045) * (1 - u.abs() * 2.6).clamp(0, 0.3) * (v < 0.9).float()
    dome = (cup + 0.6).clamp(0, 0.6)
    return ridge * -0.12 - inner * 0.10 - rim + clip * 0.5 - dome * dome * 0.45


def _straps(canvas: Canvas, side: Tensor, draws: Draws) -> Tensor:
    """Signed distance to the two straps: one rises over the ears, one runs below them."""
    upper = (canvas.affine(0.0, 1.0, -draws.between(0.85, 0.95)) + 0.85 * (side - 0.72)).abs() * 0.76
    lower = (canvas.affine(0.0, 1.0, -draws.between(1.26, 1.36)) + 0.15 * (side - 0.72)).abs()
    return torch.maximum(torch.minimum(upper, lower) - 0.032, torch.maximum(0.66 - side, side - 1.22))


N95 = Kind("n95", (-2.4, -0.1, 2.4, 2.1), _paint)
