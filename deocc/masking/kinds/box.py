"""A rectangle over part of the face, filled with a colour, with noise, or with the face's mean colour."""

import torch

from deocc.masking.canvas import Canvas, Layer
from deocc.masking.kind import Kind
from deocc.masking.outlines import rounded_box


def _paint(canvas: Canvas) -> Layer:
    draws = canvas.draws
    tilt, cu, cv = draws.between(-0.25, 0.25), draws.between(-0.6, 0.6), draws.between(-0.1, 1.4)
    x, y = canvas.affine(1.0, tilt, -cu - tilt * cv), canvas.affine(-tilt, 1.0, tilt * cu - cv)
    box = rounded_box(x, y, draws.between(0.3, 1.0), draws.between(0.25, 0.8), 0.01)
    choice = draws.unit()
    noisy, mean = (choice < 0.35).float(), ((choice >= 0.35) & (choice < 0.6)).float()
    random = torch.cat([draws.unit() for _ in range(3)], 1)[:, :, 0]
    solid, skin = canvas.paint(random), canvas.paint(canvas.light.skin)
    fill = solid + (skin - solid) * mean.unsqueeze(1)
    return Layer(canvas.cover(box), (fill + canvas.grain.unsqueeze(1) * (0.5 * noisy + 0.01).unsqueeze(1)).clamp(0, 1))


BOX = Kind("box", (-2.1, -1.4, 2.1, 2.7), _paint)
