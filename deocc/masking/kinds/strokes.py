"""Free-form brush strokes, the irregular holes of the inpainting literature.

[0] Yu et al., "Free-form image inpainting with gated convolution", ICCV 2019: polylines of random turns and widths with round joints.
"""

from functools import reduce

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Layer
from deocc.masking.kind import Kind

_STROKES, _TURNS = 2, 4


def _paint(canvas: Canvas) -> Layer:
    draws = canvas.draws
    distances = []
    for _ in range(_STROKES):
        radius = draws.between(0.08, 0.22)
        u, v = draws.between(-0.9, 0.9), draws.between(-0.3, 1.6)
        for _ in range(_TURNS):
            u_next, v_next = draws.between(-1.0, 1.0), draws.between(-0.4, 1.8)
            distances.append(_segment(canvas, u, v, u_next, v_next) - radius)
            u, v = u_next, v_next
    random = torch.cat([draws.unit() for _ in range(3)], 1)[:, :, 0]
    fill = canvas.paint(random)
    return Layer(canvas.cover(reduce(torch.minimum, distances)), (fill + 0.01 * canvas.grain.unsqueeze(1)).clamp(0, 1))


def _segment(canvas: Canvas, u: Tensor, v: Tensor, u_next: Tensor, v_next: Tensor) -> Tensor:
    """(N, h, w) distance to the segment between two points."""
    du, dv = u_next - u, v_next - v
    length = (du * du + dv * dv).sqrt().clamp_min(1e-3)
    du, dv = du / length, dv / length
    along = canvas.affine(du, dv, -(u * du + v * dv))
    across = canvas.affine(-dv, du, u * dv - v * du)
    beyond = along - torch.minimum(along.clamp_min(0), length)
    return (beyond * beyond + across * across).sqrt()


STROKES = Kind("strokes", (-1.3, -0.7, 1.3, 2.1), _paint)
