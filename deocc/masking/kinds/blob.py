"""Free-form textured shapes of any outline, colour and transparency, unlike every other occluder.

A mask predictor that has seen them finds occluders it was never trained on (Voo et al., CVPR-W 2022, train on such
shapes alone).
"""

from functools import reduce

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Kind, Layer
from deocc.masking.fabrics import print_pattern, weave
from deocc.masking.shapes import norm, smooth_min

_LOBES = 4
_JOINT = 0.25  # eye distances over which neighbouring lobes melt together


def _paint(canvas: Canvas) -> Layer:
    """Paint four ellipses that melt together; 30 % of the blobs let the face show through."""
    draws = canvas.draws
    u, v = draws.between_each((-1.0, 1.0), (-0.7, 1.8))
    distance = reduce(lambda shape, lobe: smooth_min(shape, lobe, _JOINT), [_lobe(canvas, u, v) for _ in range(_LOBES)])
    softness = draws.between(1.0, 6.0) / canvas.frame.unit  # eye distances over which the edge fades: 1 to 6 pixels
    alpha = (distance / -softness).add_(0.5).clamp_(0, 1)
    opacity = torch.where(draws.unit() < 0.3, draws.between(0.45, 0.95), 1.0)
    return Layer(alpha.mul_(opacity), _surface(canvas))


def _lobe(canvas: Canvas, u: Tensor, v: Tensor) -> Tensor:
    """Return the signed distance (N, h, w) to an ellipse near (u, v)."""
    du, dv, tilt, width, height = canvas.draws.between_each(
        (-0.5, 0.5), (-0.5, 0.5), (-1.0, 1.0), (0.12, 0.6), (0.12, 0.45)
    )
    x = canvas.affine(1.0, tilt, -(u + du) - tilt * (v + dv))
    y = canvas.affine(-tilt, 1.0, tilt * (u + du) - (v + dv))
    return norm(x / width, y / height).sub_(1).mul_(torch.minimum(width, height))


def _surface(canvas: Canvas) -> Tensor:
    """Return (N, C, h, w): random colours or the skin's, in a print, under uneven light."""
    draws = canvas.draws
    skin = canvas.paint(canvas.light.skin) * draws.between(0.7, 1.15).unsqueeze(1)
    is_skin = draws.chance(0.25).unsqueeze(1)
    first = canvas.paint(draws.colour(0.0, 1.0))
    first = first + (skin - first) * is_skin
    second = canvas.paint(draws.colour(0.0, 1.0))
    share = print_pattern(canvas, draws).mul_(draws.chance(0.5) * draws.between(0.2, 1.0))
    knit = weave(canvas, canvas.u, canvas.v, draws.between(6.0, 14.0)).mul_(draws.chance(0.3) * 0.3)
    across, down = draws.between_each((-0.35, 0.35), (-0.3, 0.3))
    light = canvas.affine(across, down, 1.0).clamp_(0.4, 1.5).add_(knit).add_(canvas.grain * draws.between(0.0, 0.12))
    return ((second - first) * share.unsqueeze(1)).add_(first).mul_(light.unsqueeze(1)).clamp_(0, 1)


BLOB = Kind("blob", None, _paint)
