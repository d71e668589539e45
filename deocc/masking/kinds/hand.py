"""A hand over the mouth: the back of a palm, four fingers and a thumb in the face's own skin colour."""

from typing import NamedTuple

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Layer
from deocc.masking.kind import Kind
from deocc.masking.outlines import capsule, rounded_box, smooth_min
from deocc.masking.randomness import Draws

_PITCH = 0.228
"""Distance between neighbouring fingers' axes; like all lengths here in units of the hand, whose palm is 0.88 wide. OURS."""


class _Fingers(NamedTuple):
    """The nearest finger at each pixel, each map (N, h, w)."""

    distance: Tensor
    """Signed distance to its outline."""
    across: Tensor
    """Place across it, -1 to 1 from edge to edge."""
    tip: Tensor
    """Place along it from its tip, negative inside."""


def _paint(canvas: Canvas) -> Layer:
    draws = canvas.draws
    p, q = _hand_coordinates(canvas, draws)
    q = q + p * p * draws.between(-0.08, 0.08)
    fingers = _fingers(p, q, draws)
    back = _back(p, q, draws)
    hand = smooth_min(fingers.distance, back, 0.05)
    shade = _relief(canvas, fingers, p, back, hand)
    tone = canvas.paint(canvas.light.skin) * draws.between(0.88, 1.10).unsqueeze(1)
    light = shade * (1 + canvas.u.clamp(-1.5, 1.5) * (canvas.light.slope * 0.7)) + canvas.grain * 0.025
    return Layer(canvas.cover(hand), (tone * light.unsqueeze(1)).clamp(0, 1))


def _hand_coordinates(canvas: Canvas, draws: Draws) -> tuple[Tensor, Tensor]:
    """p from the knuckles to the fingertips, q across from the little finger to the index; from either side, flat to nearly upright."""
    side, mirror, size = draws.sign(), draws.sign(), draws.between(1.0, 1.25)
    steep = draws.between(-0.5, 0.95)
    length = (1 + steep * steep).sqrt()
    cos, sin = side / (length * size), steep / (length * size)
    cu, cv = draws.between(-0.2, 0.2) - 0.25 * side / length, draws.between(1.05, 1.3) + 0.25 * steep / length
    p = canvas.affine(cos, -sin, sin * cv - cos * cu)
    sin, cos = mirror * sin * side, mirror * cos * side
    return p, canvas.affine(-sin, -cos, sin * cu + cos * cv)


def _fingers(p: Tensor, q: Tensor, draws: Draws) -> _Fingers:
    """Four capsules, one to a band of q, so that one evaluation serves all: the number of the band gives the length."""
    spread, radius, reach = draws.between(-0.04, 0.22), draws.between(0.100, 0.114), draws.between(0.92, 1.08)
    place = q / (1 + p.clamp_min(0) * spread) * (1 / _PITCH) + 1.5
    number = place.round().clamp(0, 3)  # 0 = little finger, 3 = index
    tip = p - (0.62 + number * (0.25 - 0.065 * number)) * reach
    across = (place - number) * _PITCH
    along = (tip + radius).clamp_min(0)
    return _Fingers((along * along + across * across).sqrt() - radius, across / radius, tip)


def _back(p: Tensor, q: Tensor, draws: Draws) -> Tensor:
    """Signed distance to the palm with wrist and thumb, which leaves it on the index finger's side."""
    turn = draws.between(0.1, 0.5)
    length = (1 + turn * turn).sqrt()
    x, y = p + 0.5, q - 0.33
    thumb = capsule((x * turn + y) / length, (x - y * turn) / length, 0.55) - 0.12
    wrist = torch.maximum(q.abs() - 0.32, p + 0.7)
    return smooth_min(smooth_min(rounded_box(p + 0.42, q, 0.48, 0.44, 0.2), wrist, 0.2), thumb, 0.12)


def _relief(canvas: Canvas, fingers: _Fingers, p: Tensor, back: Tensor, hand: Tensor) -> Tensor:
    """(N, h, w) brightness: round fingers with gaps, creases over the joints and nails, knuckles, and a rim that turns away."""
    finger = (p * 6 + 0.2).clamp(0, 1)
    roundness = (1 - fingers.across * fingers.across).clamp(-0.2, 1)
    gaps = canvas.line(fingers.distance, 0.03) * 0.30
    joints = (canvas.line(fingers.tip + 0.30, 0.022) + canvas.line(fingers.tip + 0.52, 0.022)) * 0.10
    nail_x, nail_y = fingers.across * 1.5, (fingers.tip + 0.11) * 11
    nails = ((1 - nail_x * nail_x - nail_y * nail_y) * 4).clamp(0, 1) * 0.10
    knuckles = (1 - (p + 0.02).abs() * 5).clamp_min(0) * roundness * 0.10
    edge = ((back + 0.12).clamp(0, 0.12) * 0.5 + 0.02) * (1 - finger)
    return 0.94 + finger * (roundness * 0.14 - gaps - joints + nails) + knuckles - edge - (hand + 0.1).clamp_min(0) * 1.6


HAND = Kind("hand", (-4.0, -0.5, 4.0, 4.0), _paint)
