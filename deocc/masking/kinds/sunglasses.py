"""Sunglasses: two lenses, tinted from top to bottom, with a reflection, a frame, a bridge and temples."""

import torch

from deocc.masking.canvas import Canvas, Kind, Layer
from deocc.masking.shapes import superellipse

_TINTS = ((0.05, 0.05, 0.06), (0.10, 0.07, 0.05), (0.05, 0.09, 0.07), (0.06, 0.08, 0.14), (0.16, 0.11, 0.08))
_FRAMES = (
    (0.06, 0.06, 0.07),
    (0.06, 0.06, 0.07),
    (0.30, 0.19, 0.10),
    (0.75, 0.66, 0.42),
    (0.70, 0.71, 0.73),
    (0.55, 0.10, 0.12),
)


def _paint(canvas: Canvas) -> Layer:
    draws, u = canvas.draws, canvas.posed_u(0.0)
    tilt, shift, width, height = draws.between_each((-0.05, 0.05), (0.0, 0.1), (0.36, 0.43), (0.24, 0.36))
    drop, gap, squareness, rim = draws.between_each((0.0, 0.25), (0.08, 0.13), (0.0, 1.0), (0.02, 0.05))
    v = canvas.affine(tilt, 1.0, -shift)
    side = u.abs()
    x = (side - (width + gap)).div_(width).add_(v * drop)  # aviators narrow towards the cheeks
    y = v / height
    lens = superellipse(x, y, squareness).sub_(1).mul_(width * 0.8)
    bridge = (v + 0.3 * height).sub_((0.6 * side).mul_(side)).abs_().sub_(rim)
    bridge = torch.maximum(bridge, side - 0.2)
    ends = torch.maximum(side - 1.2, 2 * width + 0.06 - side)
    temple = torch.maximum((v + 0.35 * height).abs_().sub_(1.3 * rim), ends)
    frame = torch.minimum(lens.abs().sub_(rim), torch.minimum(bridge, temple))
    # Glass under its frame; a graded lens shows a little of the eyes at its lower edge.
    tint, metal = canvas.paint(draws.pick(_TINTS)), canvas.paint(draws.pick(_FRAMES))
    clear = draws.chance(0.4) * draws.between(0.05, 0.22)
    seen = (0.5 + 0.5 * y).clamp_(0, 1).mul_(-clear).add_(1)
    glass = canvas.cover(lens).mul_(seen)
    rimmed = canvas.cover(frame)
    # Reflection: sky from above, a slanted streak, and grain.
    sky, slope, place, narrow, streak = draws.between_each(
        (0.05, 0.30), (0.3, 0.9), (-0.5, 0.4), (2.5, 5.0), (0.05, 0.35)
    )
    light = 0.5 + canvas.light.level
    gloss = (y * slope).add_(x).sub_(place).abs_().mul_(-narrow).add_(1).clamp_(0, 0.5).mul_(streak * light)
    gloss.add_((0.25 - 0.35 * y).clamp_min_(0).mul_(sky * light)).add_(0.012 * canvas.grain)
    shine = y.abs().mul_(-0.3).add_(1).clamp_(0.6, 1.1).mul_(u.clamp(-1, 1).mul_(canvas.light.slope).add_(1))
    colour = metal * shine.mul_(rimmed).unsqueeze(1)
    colour += (tint + gloss.unsqueeze(1)).mul_((1 - rimmed).unsqueeze(1))
    return Layer(torch.maximum(glass, rimmed), colour.clamp_(0, 1))


SUNGLASSES = Kind("sunglasses", (-2.3, -0.54, 2.3, 0.66), _paint)
