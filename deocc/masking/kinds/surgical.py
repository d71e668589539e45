"""The pleated medical mask with ear loops."""

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Kind, Layer
from deocc.masking.fabrics import shading, tinted
from deocc.masking.random import Draws
from deocc.masking.shapes import smooth_max

_COLOURS = (
    (0.62, 0.80, 0.90),
    (0.55, 0.75, 0.88),
    (0.70, 0.86, 0.82),
    (0.93, 0.94, 0.95),
    (0.93, 0.74, 0.80),
    (0.16, 0.16, 0.18),
)


def _edges(u: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return v (N, h, w) of the top edge, over the nose, and of the bottom edge, around the chin."""
    low = draws.chance(0.12)  # worn under the nose
    nose, lower, fall, lean, chin = draws.between_each(
        (0.27, 0.42), (0.36, 0.46), (0.20, 0.32), (-0.07, 0.07), (1.70, 1.92)
    )
    u2, leaning = u * u, u * lean
    top = (u2 / (u2 + 0.14)).mul_(fall * (1 - 0.7 * low)).add_(nose + low * lower)
    bottom = (chin - (u2 * 0.14).add_(0.28).mul_(u2)).add_(leaning)
    return top.sub_(u2.mul_(u2).mul_(0.08)).add_(leaning), bottom


def _paint(canvas: Canvas) -> Layer:
    draws, u, v = canvas.draws, canvas.posed_u(0.3), canvas.v
    side = u.abs()
    top, bottom = _edges(u, draws)
    half = draws.between(0.92, 1.03)
    sheet = smooth_max(smooth_max(top - v, v - bottom, 0.12), side - half, 0.2)
    loops = _loops(canvas, side, half)
    height = (v - top).div_(bottom - top)
    colour = canvas.paint(draws.pick(_COLOURS))
    strap = canvas.paint(draws.pick(((0.92, 0.93, 0.94), (0.85, 0.87, 0.9))))
    shade = shading(canvas, u, 0.20, 0.10).add_(_folds(canvas, height, sheet, draws))
    body = canvas.cover(sheet)
    alpha = torch.maximum(body, canvas.cover(loops))
    return Layer(alpha, tinted(canvas, strap, colour, body, shade))


def _loops(canvas: Canvas, side: Tensor, half: Tensor) -> Tensor:
    """Return the signed distance to the ear loops, thin bands from the corners of the sheet."""
    out = side - half
    upper = canvas.affine(0.0, 1.0, -0.66).add_(1.15 * out).abs_()
    lower = canvas.affine(0.0, 1.0, -1.28).add_(1.9 * out).abs_()
    band = torch.minimum(upper, lower.mul_(0.75)).mul_(0.7).sub_(0.018)
    return torch.maximum(band, torch.maximum(-0.12 - out, side - 1.24))


def _folds(canvas: Canvas, height: Tensor, sheet: Tensor, draws: Draws) -> Tensor:
    """Return the shade of pleats with dark creases, the seam of the hem, and the rim."""
    pitch, start, depth = draws.between_each((4.6, 5.6), (0.0, 0.3), (0.7, 1.3))
    phase = (height * pitch).sub_(start)
    ramp = phase.sub_(phase.floor())
    pleated = (height - 0.52).abs_().mul_(-5.2).add_(2).clamp_(0, 1)
    crease = torch.minimum(ramp, 1 - ramp).mul_(-8).add_(1).clamp_min_(0)
    seam = canvas.line(sheet + 0.085, 0.014, 0.08)
    rim = (sheet + 0.05).clamp_min_(0).mul_(1.2)
    pleats = ramp.sub_(0.5).mul_(0.10 * depth).sub_(crease.mul_(0.17 * depth)).mul_(pleated)
    return pleats.sub_(seam).sub_(rim)


SURGICAL = Kind("surgical", (-2.4, 0.12, 2.4, 2.03), _paint)
