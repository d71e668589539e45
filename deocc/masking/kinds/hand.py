"""A hand over the mouth: the back of the hand, four fingers and a thumb in the skin colour of the face."""

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Kind, Layer
from deocc.masking.random import Draws
from deocc.masking.shapes import norm, rounded_box, smooth_min

_PITCH = 0.228
"""Distance between the axes of neighbouring fingers. Lengths here are in units of the hand, whose palm is 0.88 wide.
Our choice."""


def _paint(canvas: Canvas) -> Layer:
    """Paint a hand that comes from either side, flat to nearly upright.

    p runs from the knuckles to the fingertips, q across from the little finger to the index finger.
    """
    draws = canvas.draws
    side, mirror = draws.sign(), draws.sign()
    size, steep = draws.between_each((1.0, 1.25), (-0.5, 0.95))
    length = (1 + steep * steep).sqrt()
    cos, sin = side / (length * size), steep / (length * size)
    cu, cv = draws.between(-0.2, 0.2) - 0.25 * side / length, draws.between(1.05, 1.3) + 0.25 * steep / length
    p = canvas.affine(cos, -sin, sin * cv - cos * cu)
    sin, cos = mirror * sin * side, mirror * cos * side
    q = canvas.affine(-sin, -cos, sin * cu + cos * cv)
    q.add_((p * p).mul_(draws.between(-0.08, 0.08)))
    fingers, across, tip = _fingers(p, q, draws)
    turn = draws.between(0.1, 0.5)
    length = (1 + turn * turn).sqrt()
    x, y = p + 0.5, q - 0.33
    along = (x * turn).add_(y).div_(length)
    thumb = norm(along - along.clamp(0, 0.55), (x - y * turn).div_(length)).sub_(0.12)  # a capsule
    wrist = torch.maximum(q.abs().sub_(0.32), p + 0.7)
    back = smooth_min(smooth_min(rounded_box(p + 0.42, q, 0.48, 0.44, 0.2), wrist, 0.2), thumb, 0.12)
    hand = smooth_min(fingers, back, 0.05)
    shade = _relief(canvas, (fingers, across, tip), p, back, hand)
    tone = canvas.paint(canvas.light.skin) * draws.between(0.88, 1.10).unsqueeze(1)
    lit = canvas.u.clamp(-1.5, 1.5).mul_(canvas.light.slope * 0.7).add_(1)
    light = shade.mul_(lit).add_(canvas.grain * 0.025)
    return Layer(canvas.cover(hand), (tone * light.unsqueeze(1)).clamp_(0, 1))


def _fingers(p: Tensor, q: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate the nearest of four capsules; its number, the rounded place across, gives its length.

    Returns:
        Three maps (N, h, w): signed distance to the finger's outline; place across it, -1 to 1 from edge to edge; place
        along it from its tip, negative inside.
    """
    spread, radius, reach = draws.between_each((-0.04, 0.22), (0.100, 0.114), (0.92, 1.08))
    place = (q / p.clamp_min(0).mul_(spread).add_(1)).mul_(1 / _PITCH).add_(1.5)
    number = place.round().clamp_(0, 3)  # 0 = little finger, 3 = index
    across = place.sub_(number).mul_(_PITCH)
    length = (0.25 - 0.065 * number).mul_(number).add_(0.62).mul_(reach)
    tip = p - length
    distance = norm((tip + radius).clamp_min_(0), across).sub_(radius)
    return distance, across.div_(radius), tip


def _relief(canvas: Canvas, fingers: tuple[Tensor, ...], p: Tensor, back: Tensor, hand: Tensor) -> Tensor:
    """Return the brightness (N, h, w) of fingers, gaps, joints, nails, knuckles and rim."""
    distance, across, tip = fingers
    across2 = across * across
    roundness = (1 - across2).clamp_(-0.2, 1)
    gaps = canvas.line(distance, 0.03, 0.30)
    joints = canvas.line((tip + 0.41).abs_().sub_(0.11), 0.022, 0.10)  # at 0.30 and at 0.52 from the tip
    height = (tip + 0.11).mul_(11)
    nails = across2.mul_(-9).sub_(height.mul_(height).mul_(4)).add_(4).clamp_(0, 1).mul_(0.10)
    knuckles = (p + 0.02).abs_().mul_(-0.5).add_(0.10).clamp_min_(0).mul_(roundness)
    finger = (p * 6).add_(0.2).clamp_(0, 1)
    edge = (back + 0.12).clamp_(0, 0.12).mul_(0.5).add_(0.02).mul_(1 - finger)
    rim = (hand + 0.1).clamp_min_(0).mul_(1.6)
    relief = roundness.mul_(0.14).sub_(gaps).sub_(joints).add_(nails).mul_(finger)
    return relief.add_(0.94).add_(knuckles).sub_(edge).sub_(rim)


HAND = Kind("hand", None, _paint)
