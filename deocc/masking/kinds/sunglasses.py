"""Sunglasses: two lenses, tinted from top to bottom, with a reflection, a frame, a bridge and temples."""

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Layer
from deocc.masking.kind import Kind
from deocc.masking.outlines import superellipse

_TINTS = ((0.05, 0.05, 0.06), (0.10, 0.07, 0.05), (0.05, 0.09, 0.07), (0.06, 0.08, 0.14), (0.16, 0.11, 0.08))
_FRAMES = ((0.06, 0.06, 0.07), (0.06, 0.06, 0.07), (0.30, 0.19, 0.10), (0.75, 0.66, 0.42), (0.70, 0.71, 0.73), (0.55, 0.10, 0.12))


def _paint(canvas: Canvas) -> Layer:
    draws, u = canvas.draws, canvas.posed_u(0.0)
    v = canvas.affine(draws.between(-0.05, 0.05), 1.0, -draws.between(0.0, 0.1))
    side = u.abs()
    width, height = draws.between(0.36, 0.43), draws.between(0.24, 0.36)
    drop = draws.between(0.0, 0.25)  # aviators narrow towards the cheeks
    x = (side - (width + draws.between(0.08, 0.13))) / width + v * drop
    y = v / height
    lens = (superellipse(x, y, draws.between(0.0, 1.0)) - 1) * (width * 0.8)
    rim = draws.between(0.02, 0.05)
    frame = torch.minimum(lens.abs() - rim, _bars(side, v, width, height, rim))
    return _compose(canvas, lens, frame, (u, x, y))


def _bars(side: Tensor, v: Tensor, width: Tensor, height: Tensor, rim: Tensor) -> Tensor:
    """Signed distance to the bridge over the nose and the temples towards the ears."""
    bridge = torch.maximum((v + 0.3 * height - 0.6 * side * side).abs() - rim, side - 0.2)
    temple = torch.maximum((v + 0.35 * height).abs() - 1.3 * rim, (side - 1.2).clamp_min(2 * width + 0.06 - side))
    return torch.minimum(bridge, temple)


def _compose(canvas: Canvas, lens: Tensor, frame: Tensor, place: tuple[Tensor, Tensor, Tensor]) -> Layer:
    """Glass under its frame; a graded lens lets a little of the eyes show at its lower edge."""
    draws, (u, x, y) = canvas.draws, place
    tint, metal = canvas.paint(draws.pick(_TINTS)), canvas.paint(draws.pick(_FRAMES))
    clear = draws.chance(0.4) * draws.between(0.05, 0.22)
    glass = canvas.cover(lens) * (1 - clear * (0.5 + 0.5 * y).clamp(0, 1))
    rimmed = canvas.cover(frame)
    sky = (0.25 - 0.35 * y).clamp_min(0) * draws.between(0.05, 0.30)
    slant = (x + y * draws.between(0.3, 0.9) - draws.between(-0.5, 0.4)).abs()
    streak = (1 - slant * draws.between(2.5, 5.0)).clamp(0, 0.5) * draws.between(0.05, 0.35)
    gloss = (sky + streak) * (0.5 + canvas.light.level) + 0.012 * canvas.grain
    shine = (0.85 + 0.3 * (0.5 - y.abs())).clamp(0.6, 1.1) * (1 + u.clamp(-1, 1) * canvas.light.slope)
    inside = tint + gloss.unsqueeze(1)
    colour = inside + (metal * shine.unsqueeze(1) - inside) * rimmed.unsqueeze(1)
    return Layer(torch.maximum(glass, rimmed), colour.clamp(0, 1))


SUNGLASSES = Kind("sunglasses", (-2.3, -0.6, 2.3, 0.7), _paint)
