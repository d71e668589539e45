"""A rectangle filled with a colour, with noise, or with the colour of the skin."""

from deocc.masking.canvas import Canvas, Kind, Layer
from deocc.masking.shapes import rounded_box


def _paint(canvas: Canvas) -> Layer:
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


BOX = Kind("box", (-1.85, -1.2, 1.85, 2.5), _paint)
