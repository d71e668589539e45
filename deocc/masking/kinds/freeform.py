"""Rectangles, brush strokes and blobs, which resemble no object.

Strokes are the irregular holes of the inpainting literature: polylines of random turns and widths with round joints
[0]. Blobs have any outline, colour and transparency: a mask predictor that has seen them finds occluders it was never
trained on ([1] trains on such shapes alone).

[0] Yu et al., "Free-form image inpainting with gated convolution", ICCV 2019.
[1] Voo et al., "Delving into high-quality synthetic face occlusion segmentation datasets", CVPR workshops 2022.
"""

from functools import reduce

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Kind, Layer, print_pattern, weave
from deocc.masking.shapes import norm, rounded_box, smooth_min

_STROKES, _TURNS = 2, 4
_LOBES = 4
_JOINT = 0.25  # eye distances over which neighbouring lobes melt together


def _paint_box(canvas: Canvas) -> Layer:
    """Paint a rectangle filled with a colour, with noise, or with the colour of the skin."""
    draws = canvas.draws
    tilt, cu, cv, half_width, half_height = draws.between_each(
        (-0.25, 0.25), (-0.6, 0.6), (-0.1, 1.4), (0.3, 1.0), (0.25, 0.8)
    )
    x, y = canvas.affine(1.0, tilt, -cu - tilt * cv), canvas.affine(-tilt, 1.0, tilt * cu - cv)
    box = rounded_box(x, y, half_width, half_height, 0.01)
    choice = draws.unit()
    noisy, mean = (choice < 0.35).float(), ((choice >= 0.35) & (choice < 0.6)).float()
    solid, skin = canvas.paint(draws.colour()), canvas.paint(canvas.light.skin)
    fill = solid + (skin - solid) * mean.unsqueeze(1)
    alpha = canvas.cover(box)
    return Layer(alpha, (fill + (canvas.grain * (0.5 * noisy + 0.01)).unsqueeze(1)).clamp_(0, 1))


def _paint_strokes(canvas: Canvas) -> Layer:
    distance = reduce(torch.minimum, [_stroke(canvas) for _ in range(_STROKES)])
    fill = canvas.paint(canvas.draws.colour())
    alpha = canvas.cover(distance)
    return Layer(alpha, (fill + (0.01 * canvas.grain).unsqueeze(1)).clamp_(0, 1))


def _stroke(canvas: Canvas) -> Tensor:
    """Return the signed distance (N, h, w) to a polyline of random thickness."""
    radius, u, v = canvas.draws.between_each((0.08, 0.22), (-0.9, 0.9), (-0.3, 1.6))
    squares = []
    for _ in range(_TURNS):
        u_next, v_next = canvas.draws.between_each((-1.0, 1.0), (-0.4, 1.8))
        du, dv = u_next - u, v_next - v
        length = (du * du + dv * dv).sqrt().clamp_min(1e-3)
        du, dv = du / length, dv / length
        along = canvas.affine(du, dv, -(u * du + v * dv))
        across = canvas.affine(-dv, du, u * dv - v * du)
        beyond = torch.minimum(along.clamp_min(0), length).sub_(along)
        squares.append(beyond.mul_(beyond).add_(across.mul_(across)))
        u, v = u_next, v_next
    return reduce(torch.minimum, squares).sqrt_().sub_(radius)


def _paint_blob(canvas: Canvas) -> Layer:
    """Paint four ellipses that melt together, in a print or the skin's colour; 30 % let the face show through."""
    draws = canvas.draws
    u, v = _inside(canvas, *draws.between_each((-1.0, 1.0), (-0.7, 1.8)))
    distance = reduce(lambda shape, lobe: smooth_min(shape, lobe, _JOINT), [_lobe(canvas, u, v) for _ in range(_LOBES)])
    softness = draws.between(1.0, 6.0) / canvas.frame.unit  # eye distances over which the edge fades: 1 to 6 pixels
    alpha = (distance / -softness).add_(0.5).clamp_(0, 1)
    opacity = torch.where(draws.unit() < 0.3, draws.between(0.45, 0.95), 1.0)
    skin = canvas.paint(canvas.light.skin) * draws.between(0.7, 1.15).unsqueeze(1)
    is_skin = draws.chance(0.25).unsqueeze(1)
    first = canvas.paint(draws.colour())
    first = first + (skin - first) * is_skin
    second = canvas.paint(draws.colour())
    share = print_pattern(canvas).mul_(draws.chance(0.5) * draws.between(0.2, 1.0))
    knit = weave(canvas, canvas.u, canvas.v, draws.between(6.0, 14.0)).mul_(draws.chance(0.3) * 0.3)
    across, down = draws.between_each((-0.35, 0.35), (-0.3, 0.3))
    light = canvas.affine(across, down, 1.0).clamp_(0.4, 1.5).add_(knit).add_(canvas.grain * draws.between(0.0, 0.12))
    colour = ((second - first) * share.unsqueeze(1)).add_(first).mul_(light.unsqueeze(1)).clamp_(0, 1)
    return Layer(alpha.mul_(opacity), colour)


def _inside(canvas: Canvas, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Move points outside the image to its border: on a small or displaced face a blob could miss the image."""
    f = canvas.frame
    x, y = f.x0 + u * f.xu + v * f.xv, f.y0 + u * f.yu + v * f.yv
    inside_x, inside_y = x.clamp(canvas.x[0], canvas.x[-1]), y.clamp(canvas.y[0], canvas.y[-1])
    moved = (inside_x != x) | (inside_y != y)
    u_inside, v_inside = (a * inside_x + b * inside_y + c for a, b, c in ((f.ux, f.uy, f.u0), (f.vx, f.vy, f.v0)))
    return torch.where(moved, u_inside, u), torch.where(moved, v_inside, v)


def _lobe(canvas: Canvas, u: Tensor, v: Tensor) -> Tensor:
    """Return the signed distance (N, h, w) to an ellipse near (u, v)."""
    du, dv, tilt, width, height = canvas.draws.between_each(
        (-0.5, 0.5), (-0.5, 0.5), (-1.0, 1.0), (0.12, 0.6), (0.12, 0.45)
    )
    x = canvas.affine(1.0, tilt, -(u + du) - tilt * (v + dv))
    y = canvas.affine(-tilt, 1.0, tilt * (u + du) - (v + dv))
    return norm(x / width, y / height).sub_(1).mul_(torch.minimum(width, height))


BOX = Kind("box", (-1.85, -1.2, 1.85, 2.5), _paint_box)
STROKES = Kind("strokes", (-1.3, -0.7, 1.3, 2.1), _paint_strokes)
BLOB = Kind("blob", None, _paint_blob)
