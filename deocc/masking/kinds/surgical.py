"""The pleated medical mask with ear loops."""

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Layer
from deocc.masking.fabrics import shading, tinted
from deocc.masking.kind import Kind
from deocc.masking.outlines import smooth_max
from deocc.masking.randomness import Draws

_COLOURS = (
    (0.62, 0.80, 0.90),
    (0.55, 0.75, 0.88),
    (0.70, 0.86, 0.82),
    (0.93, 0.94, 0.95),
    (0.93, 0.74, 0.80),
    (0.16, 0.16, 0.18),
)


def _edges(u: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Top and bottom edge, (N, h, w) as v over u: from the nose's ridge down on the cheeks, and round the chin."""
    low = draws.chance(0.12)  # worn under the nose
    nose = draws.between(0.27, 0.42) + low * draws.between(0.36, 0.46)
    fall, lean, chin = draws.between(0.20, 0.32), draws.between(-0.07, 0.07), draws.between(1.70, 1.92)
    u2 = u * u
    top = nose + (u2 / (u2 + 0.14)) * (fall * (1 - 0.7 * low)) - u2 * u2 * 0.08 + u * lean
    return top, chin - u2 * (0.28 + u2 * 0.14) + u * lean


def _paint(canvas: Canvas) -> Layer:
    draws, u, v = canvas.draws, canvas.posed_u(0.3), canvas.v
    side = u.abs()
    top, bottom = _edges(u, draws)
    half = draws.between(0.92, 1.03)
    sheet = smooth_max(smooth_max(top - v, v - bottom, 0.12), side - half, 0.2)
    loops = _loops(canvas, side, half)
    height = (v - top) / (bottom - top)
    colour = canvas.paint(draws.pick(_COLOURS))
    strap = canvas.paint(draws.pick(((0.92, 0.93, 0.94), (0.85, 0.87, 0.9))))
    shade = shading(canvas, u, 0.20, 0.10) + _folds(canvas, height, sheet, draws)
    body = canvas.cover(sheet)
    alpha = torch.maximum(body, canvas.cover(loops))
    return Layer(alpha, tinted(canvas, strap, colour, body, shade))


def _loops(canvas: Canvas, side: Tensor, half: Tensor) -> Tensor:
    """Signed distance to the ear loops: thin bands from the sheet's upper and lower corners to the ears."""
    out = side - half
    upper = (canvas.affine(0.0, 1.0, -0.66) + 1.15 * out).abs()
    lower = (canvas.affine(0.0, 1.0, -1.28) + 1.9 * out).abs()
    band = torch.minimum(upper, lower * 0.75) * 0.7 - 0.018
    return torch.maximum(band, torch.maximum(-0.12 - out, side - 1.24))


def _folds(canvas: Canvas, height: Tensor, sheet: Tensor, draws: Draws) -> Tensor:
    """Pleats (each a ramp that ends in a dark crease), the hem's seam, and the wire over the nose, as additions to the shade."""
    phase = height * draws.between(4.6, 5.6) - draws.between(0.0, 0.3)
    ramp = phase - phase.floor()
    pleated = (1 - (height - 0.52).abs() * 2.6).clamp(0, 0.5) * 2
    crease = (1 - torch.minimum(ramp, 1 - ramp) * 8).clamp_min(0)
    depth = draws.between(0.7, 1.3)
    seam = canvas.line(sheet + 0.085, 0.014)
    rim = (sheet + 0.05).clamp_min(0)
    return pleated * ((ramp - 0.5) * (0.10 * depth) - crease * (0.17 * depth)) - seam * 0.08 - rim * 1.2


SURGICAL = Kind("surgical", (-2.4, -0.1, 2.4, 2.1), _paint)
