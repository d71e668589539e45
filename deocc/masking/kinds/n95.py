"""The respirator: a stiff cup with an embossed ridge, a nose clip and two straps around the head."""

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Kind, Layer
from deocc.masking.fabrics import shading, tinted
from deocc.masking.random import Draws
from deocc.masking.shapes import smooth_max

_COLOURS = ((0.93, 0.93, 0.91), (0.90, 0.91, 0.93), (0.72, 0.75, 0.78), (0.60, 0.72, 0.84), (0.25, 0.26, 0.28))
_STRAPS = ((0.95, 0.85, 0.35), (0.92, 0.92, 0.9), (0.15, 0.15, 0.17))


def _paint(canvas: Canvas) -> Layer:
    draws, u, v = canvas.draws, canvas.posed_u(0.45), canvas.v
    cup = _cup(u, v, draws)
    shade = shading(canvas, u, 0.30, 0.14).add_(_relief(canvas, u, v, cup, draws))
    body = canvas.cover(cup)
    straps = _straps(canvas, u.abs(), draws)
    colours = canvas.paint(draws.pick(_STRAPS)), canvas.paint(draws.pick(_COLOURS))
    return Layer(torch.maximum(body, canvas.cover(straps)), tinted(canvas, *colours, body, shade))


def _cup(u: Tensor, v: Tensor, draws: Draws) -> Tensor:
    """Return the signed distance to the cup, a dome from the nose to below the chin."""
    nose, chin, half, lean, fall = draws.between_each(
        (0.22, 0.36), (1.72, 1.92), (0.80, 0.92), (-0.05, 0.05), (0.40, 0.55)
    )
    u2, leaning = u * u, u * lean
    top = (u2 / (u2 + 0.22)).mul_(fall).add_(nose).add_(leaning)
    bottom = (chin - (0.25 * u2).add_(0.42).mul_(u2)).add_(leaning)
    return smooth_max(smooth_max(top - v, v - bottom, 0.25), u.abs() - half, 0.3)


def _relief(canvas: Canvas, u: Tensor, v: Tensor, cup: Tensor, draws: Draws) -> Tensor:
    """Return the shade of dome, embossed rings, welded cross seam, flat rim and metal clip."""
    depth, height = draws.between_each((0.2, 0.26), (0.95, 1.15))
    rim = canvas.line(cup + 0.07, 0.02, 0.16)
    ring = canvas.line(cup + depth, 0.035, 0.10)
    ridge = canvas.line(canvas.affine(0.0, 1.0, -height).add_((u * u).mul_(0.28)), 0.035, 0.12 * draws.chance(0.6))
    clip = canvas.line(cup + 0.13, 0.045, 0.5).mul_(u.abs().mul_(-2.6).add_(1).clamp_(0, 0.3)).mul_(v.clone().lt_(0.9))
    dome = (cup + 0.6).clamp_(0, 0.6)
    return clip.sub_(ridge).sub_(ring).sub_(rim).sub_(dome.mul_(dome).mul_(0.45))


def _straps(canvas: Canvas, side: Tensor, draws: Draws) -> Tensor:
    """Return the signed distance to two straps, one over and one below the ears."""
    over, under = draws.between_each((0.85, 0.95), (1.26, 1.36))
    out = side - 0.72
    upper = canvas.affine(0.0, 1.0, -over).add_(0.85 * out).abs_().mul_(0.76)
    lower = canvas.affine(0.0, 1.0, -under).add_(out.mul_(0.15)).abs_()
    return torch.maximum(torch.minimum(upper, lower).sub_(0.032), torch.maximum(0.66 - side, side - 1.22))


N95 = Kind("n95", (-2.4, 0.1, 2.4, 2.02), _paint)
