"""Free-form brush strokes, the irregular holes of the inpainting literature.

[0] Yu et al., "Free-form image inpainting with gated convolution", ICCV 2019: polylines of random turns and widths with
    round joints.
"""

from functools import reduce

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Kind, Layer

_STROKES, _TURNS = 2, 4


def _paint(canvas: Canvas) -> Layer:
    draws = canvas.draws
    distance = reduce(torch.minimum, [_stroke(canvas) for _ in range(_STROKES)])
    fill = canvas.paint(draws.colour())
    alpha = canvas.cover(distance)
    return Layer(alpha, (fill + (0.01 * canvas.grain).unsqueeze(1)).clamp_(0, 1))


def _stroke(canvas: Canvas) -> Tensor:
    """Return the signed distance (N, h, w) to a polyline of random thickness."""
    radius, u, v = canvas.draws.between_each((0.08, 0.22), (-0.9, 0.9), (-0.3, 1.6))
    squares = []
    for _ in range(_TURNS):
        u_next, v_next = canvas.draws.between_each((-1.0, 1.0), (-0.4, 1.8))
        squares.append(_segment(canvas, u, v, u_next, v_next))
        u, v = u_next, v_next
    return reduce(torch.minimum, squares).sqrt_().sub_(radius)


def _segment(canvas: Canvas, u: Tensor, v: Tensor, u_next: Tensor, v_next: Tensor) -> Tensor:
    """Return the squared distance (N, h, w) to the segment between two points."""
    du, dv = u_next - u, v_next - v
    length = (du * du + dv * dv).sqrt().clamp_min(1e-3)
    du, dv = du / length, dv / length
    along = canvas.affine(du, dv, -(u * du + v * dv))
    across = canvas.affine(-dv, du, u * dv - v * du)
    beyond = torch.minimum(along.clamp_min(0), length).sub_(along)
    return beyond.mul_(beyond).add_(across.mul_(across))


STROKES = Kind("strokes", (-1.3, -0.7, 1.3, 2.1), _paint)
