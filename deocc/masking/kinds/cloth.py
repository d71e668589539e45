"""The home-made cloth mask: rounder, in any colour and print, with a seam down its middle."""

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Layer
from deocc.masking.fabrics import print_pattern, shading, tinted, wave, weave
from deocc.masking.kind import Kind
from deocc.masking.outlines import smooth_max
from deocc.masking.randomness import Draws


def _paint(canvas: Canvas) -> Layer:
    draws, u, v = canvas.draws, canvas.posed_u(0.35), canvas.v
    sheet = _sheet(u, v, draws)
    side = u.abs()
    out = side - draws.between(0.78, 0.9)
    band = (canvas.affine(0.0, 1.0, -draws.between(0.62, 0.78)) + 0.9 * out).abs() * 0.75 - 0.035
    strap = torch.maximum(band, torch.maximum(-out, side - 1.22))
    first, second = random_colours(canvas, draws)
    shade = shading(canvas, u, 0.20, 0.12) + _relief(canvas, u, v, sheet, draws)
    body = canvas.cover(sheet)
    share = print_pattern(canvas, draws) * body
    return Layer(torch.maximum(body, canvas.cover(strap)), tinted(canvas, first, second, share, shade))


def _sheet(u: Tensor, v: Tensor, draws: Draws) -> Tensor:
    """Signed distance to the cloth: cut to a point over the nose, round at the chin, narrow towards the ears."""
    low = draws.chance(0.12)
    nose = draws.between(0.24, 0.42) + low * draws.between(0.34, 0.44)
    lean, chin, half = draws.between(-0.07, 0.07), draws.between(1.74, 1.98), draws.between(0.92, 1.06)
    u2 = u * u
    top = nose + (u2 / (u2 + 0.10)) * (draws.between(0.18, 0.30) * (1 - 0.7 * low)) + u * lean
    bottom = chin - u2 * (draws.between(0.3, 0.5) + 0.14 * u2) + u * lean
    return smooth_max(smooth_max(top - v, v - bottom, 0.1), u.abs() - half, 0.25)


def random_colours(canvas: Canvas, draws: Draws) -> tuple[Tensor, Tensor]:
    """Two colours of cloth, (N, C, 1, 1) each: any hue, more often muted or dark than bright."""
    base, contrast = draws.between(0.12, 0.85), draws.sign() * draws.between(0.2, 0.45)
    first = torch.cat([base + draws.between(-0.22, 0.22) for _ in range(3)], 1)[:, :, 0]
    other = (base + contrast + (base + contrast).floor() * -1.0).clamp(0.08, 0.92)
    second = torch.cat([other + draws.between(-0.22, 0.22) for _ in range(3)], 1)[:, :, 0]
    return canvas.paint(first.clamp(0.06, 0.95)), canvas.paint(second.clamp(0.06, 0.95))


def _relief(canvas: Canvas, u: Tensor, v: Tensor, sheet: Tensor, draws: Draws) -> Tensor:
    """The middle seam, the hem, soft wrinkles towards the ears, and the threads, as additions to the shade."""
    seam = canvas.line(u - draws.between(-0.03, 0.03), 0.02) * draws.chance(0.6)
    hem = canvas.line(sheet + draws.between(0.06, 0.1), 0.014)
    wrinkles = wave(v * draws.between(2.2, 3.4) + u * draws.between(-0.6, 0.6) + draws.unit()) * u.abs().clamp_max(1)
    rim = (sheet + 0.06).clamp_min(0)
    return wrinkles * 0.12 - seam * 0.14 - hem * 0.10 - rim * 1.4 + weave(canvas, u, v, draws.between(18.0, 26.0)) * 0.12


CLOTH = Kind("cloth", (-2.4, -0.1, 2.4, 2.1), _paint)
