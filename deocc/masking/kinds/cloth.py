"""The home-made cloth mask: rounded, in any colour and print, with a seam in the middle."""

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Kind, Layer
from deocc.masking.fabrics import print_pattern, shading, tinted, wave, weave
from deocc.masking.random import Draws
from deocc.masking.shapes import smooth_max


def _paint(canvas: Canvas) -> Layer:
    draws, u, v = canvas.draws, canvas.posed_u(0.35), canvas.v
    sheet = _sheet(u, v, draws)
    side = u.abs()
    out = side - draws.between(0.78, 0.9)
    band = canvas.affine(0.0, 1.0, -draws.between(0.62, 0.78)).add_(0.9 * out).abs_().mul_(0.75).sub_(0.035)
    strap = torch.maximum(band, torch.maximum(-out, side - 1.22))
    first, second = random_colours(canvas, draws)
    shade = shading(canvas, u, 0.20, 0.12).add_(_relief(canvas, u, v, sheet, draws))
    body = canvas.cover(sheet)
    share = print_pattern(canvas, draws).mul_(body)
    return Layer(torch.maximum(body, canvas.cover(strap)), tinted(canvas, first, second, share, shade))


def _sheet(u: Tensor, v: Tensor, draws: Draws) -> Tensor:
    """Return the signed distance to the cloth: pointed over the nose, round at the chin, narrow at the ears."""
    low = draws.chance(0.12)
    nose, lower, lean, chin, half = draws.between_each(
        (0.24, 0.42), (0.34, 0.44), (-0.07, 0.07), (1.74, 1.98), (0.92, 1.06)
    )
    fall, curve = draws.between_each((0.18, 0.30), (0.3, 0.5))
    u2, leaning = u * u, u * lean
    top = (u2 / (u2 + 0.10)).mul_(fall * (1 - 0.7 * low)).add_(nose + low * lower).add_(leaning)
    bottom = (chin - (0.14 * u2).add_(curve).mul_(u2)).add_(leaning)
    return smooth_max(smooth_max(top - v, v - bottom, 0.1), u.abs() - half, 0.25)


def random_colours(canvas: Canvas, draws: Draws) -> tuple[Tensor, Tensor]:
    """Draw two colours of cloth, (N, C, 1, 1) each: any hue, more often muted or dark than bright."""
    base, contrast = draws.between(0.12, 0.85)[:, 0], (draws.sign() * draws.between(0.2, 0.45))[:, 0]
    first = base + draws.colour(-0.22, 0.22)
    other = (base + contrast + (base + contrast).floor() * -1.0).clamp(0.08, 0.92)
    second = other + draws.colour(-0.22, 0.22)
    return canvas.paint(first.clamp(0.06, 0.95)), canvas.paint(second.clamp(0.06, 0.95))


def _relief(canvas: Canvas, u: Tensor, v: Tensor, sheet: Tensor, draws: Draws) -> Tensor:
    """Return the shade of the middle seam, the hem, soft wrinkles and the threads."""
    seam = canvas.line(u - draws.between(-0.03, 0.03), 0.02, 0.14 * draws.chance(0.6))
    depth, steep, slant, phase, threads = draws.between_each(
        (0.06, 0.1), (2.2, 3.4), (-0.6, 0.6), (0.0, 1.0), (18.0, 26.0)
    )
    hem = canvas.line(sheet + depth, 0.014, 0.10)
    wrinkles = wave((v * steep).add_(u * slant).add_(phase)).mul_(u.abs().clamp_max_(1))
    rim = (sheet + 0.06).clamp_min_(0).mul_(1.4)
    return wrinkles.add_(weave(canvas, u, v, threads)).mul_(0.12).sub_(seam).sub_(hem).sub_(rim)


CLOTH = Kind("cloth", (-2.4, 0.04, 2.4, 2.08), _paint)
