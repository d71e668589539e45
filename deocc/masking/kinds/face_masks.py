"""Surgical mask, home-made cloth mask, respirator and scarf."""

import torch
from torch import Tensor

from deocc.masking.canvas import Canvas, Kind, Layer, print_pattern, shading, tinted, wave, weave
from deocc.masking.shapes import smooth_max

_SURGICAL_COLOURS = (
    (0.62, 0.80, 0.90),
    (0.55, 0.75, 0.88),
    (0.70, 0.86, 0.82),
    (0.93, 0.94, 0.95),
    (0.93, 0.74, 0.80),
    (0.16, 0.16, 0.18),
)
_LOOP_COLOURS = ((0.92, 0.93, 0.94), (0.85, 0.87, 0.9))
_N95_COLOURS = ((0.93, 0.93, 0.91), (0.90, 0.91, 0.93), (0.72, 0.75, 0.78), (0.60, 0.72, 0.84), (0.25, 0.26, 0.28))
_STRAP_COLOURS = ((0.95, 0.85, 0.35), (0.92, 0.92, 0.9), (0.15, 0.15, 0.17))


def _paint_surgical(canvas: Canvas) -> Layer:
    """Paint a pleated sheet from the nose to the chin with ear loops from its corners."""
    draws, u, v = canvas.draws, canvas.posed_u(0.3), canvas.v
    low = draws.chance(0.12)  # worn under the nose
    nose, lower, fall, lean, chin = draws.between_each(
        (0.27, 0.42), (0.36, 0.46), (0.20, 0.32), (-0.07, 0.07), (1.70, 1.92)
    )
    u2, leaning = u * u, u * lean
    top = (u2 / (u2 + 0.14)).mul_(fall * (1 - 0.7 * low)).add_(nose + low * lower)
    bottom = (chin - (u2 * 0.14).add_(0.28).mul_(u2)).add_(leaning)
    top.sub_(u2.mul_(u2).mul_(0.08)).add_(leaning)
    side = u.abs()
    out = side - draws.between(0.92, 1.03)
    sheet = smooth_max(smooth_max(top - v, v - bottom, 0.12), out, 0.2)
    upper = canvas.affine(0.0, 1.0, -0.66).add_(1.15 * out).abs_()
    lower = canvas.affine(0.0, 1.0, -1.28).add_(1.9 * out).abs_()
    band = torch.minimum(upper, lower.mul_(0.75)).mul_(0.7).sub_(0.018)
    loops = torch.maximum(band, torch.maximum(-0.12 - out, side - 1.24))
    height = (v - top).div_(bottom - top)
    colour, strap = canvas.paint(draws.pick(_SURGICAL_COLOURS)), canvas.paint(draws.pick(_LOOP_COLOURS))
    pitch, start, depth = draws.between_each((4.6, 5.6), (0.0, 0.3), (0.7, 1.3))
    phase = (height * pitch).sub_(start)
    ramp = phase.sub_(phase.floor())
    pleated = (height - 0.52).abs_().mul_(-5.2).add_(2).clamp_(0, 1)
    crease = torch.minimum(ramp, 1 - ramp).mul_(-8).add_(1).clamp_min_(0)
    pleats = ramp.sub_(0.5).mul_(0.10 * depth).sub_(crease.mul_(0.17 * depth)).mul_(pleated)
    hem = canvas.line(sheet + 0.085, 0.014, 0.08)
    rim = (sheet + 0.05).clamp_min_(0).mul_(1.2)
    shade = shading(canvas, u, 0.20, 0.10).add_(pleats.sub_(hem).sub_(rim))
    body = canvas.cover(sheet)
    alpha = torch.maximum(body, canvas.cover(loops))
    return Layer(alpha, tinted(canvas, strap, colour, body, shade))


def _paint_cloth(canvas: Canvas) -> Layer:
    """Paint cloth of any colour and print: pointed over the nose, round at the chin, narrow at the ears."""
    draws, u, v = canvas.draws, canvas.posed_u(0.35), canvas.v
    low = draws.chance(0.12)  # worn under the nose
    nose, lower, lean, chin, half = draws.between_each(
        (0.24, 0.42), (0.34, 0.44), (-0.07, 0.07), (1.74, 1.98), (0.92, 1.06)
    )
    fall, curve = draws.between_each((0.18, 0.30), (0.3, 0.5))
    side, u2, leaning = u.abs(), u * u, u * lean
    top = (u2 / (u2 + 0.10)).mul_(fall * (1 - 0.7 * low)).add_(nose + low * lower).add_(leaning)
    bottom = (chin - (0.14 * u2).add_(curve).mul_(u2)).add_(leaning)
    sheet = smooth_max(smooth_max(top - v, v - bottom, 0.1), side - half, 0.25)
    out = side - draws.between(0.78, 0.9)
    band = canvas.affine(0.0, 1.0, -draws.between(0.62, 0.78)).add_(0.9 * out).abs_().mul_(0.75).sub_(0.035)
    strap = torch.maximum(band, torch.maximum(-out, side - 1.22))
    first, second = _random_colours(canvas)
    seam = canvas.line(u - draws.between(-0.03, 0.03), 0.02, 0.14 * draws.chance(0.6))
    depth, steep, slant, phase, threads = draws.between_each(
        (0.06, 0.1), (2.2, 3.4), (-0.6, 0.6), (0.0, 1.0), (18.0, 26.0)
    )
    hem = canvas.line(sheet + depth, 0.014, 0.10)
    wrinkles = wave((v * steep).add_(u * slant).add_(phase)).mul_(u.abs().clamp_max_(1))
    rim = (sheet + 0.06).clamp_min_(0).mul_(1.4)
    wrinkles.add_(weave(canvas, u, v, threads)).mul_(0.12).sub_(seam).sub_(hem).sub_(rim)
    shade = shading(canvas, u, 0.20, 0.12).add_(wrinkles)
    body = canvas.cover(sheet)
    share = print_pattern(canvas).mul_(body)
    return Layer(torch.maximum(body, canvas.cover(strap)), tinted(canvas, first, second, share, shade))


def _random_colours(canvas: Canvas) -> tuple[Tensor, Tensor]:
    """Draw two colours of cloth, (N, C, 1, 1) each: any hue, more often muted or dark than bright."""
    draws = canvas.draws
    base, contrast = draws.between(0.12, 0.85)[:, 0], (draws.sign() * draws.between(0.2, 0.45))[:, 0]
    first = base + draws.colour(-0.22, 0.22)
    other = (base + contrast + (base + contrast).floor() * -1.0).clamp(0.08, 0.92)
    second = other + draws.colour(-0.22, 0.22)
    return canvas.paint(first.clamp(0.06, 0.95)), canvas.paint(second.clamp(0.06, 0.95))


def _paint_n95(canvas: Canvas) -> Layer:
    """Paint a stiff cup from the nose to below the chin, with one strap over and one below the ears."""
    draws, u, v = canvas.draws, canvas.posed_u(0.45), canvas.v
    nose, chin, half, lean, fall = draws.between_each(
        (0.22, 0.36), (1.72, 1.92), (0.80, 0.92), (-0.05, 0.05), (0.40, 0.55)
    )
    side, u2, leaning = u.abs(), u * u, u * lean
    top = (u2 / (u2 + 0.22)).mul_(fall).add_(nose).add_(leaning)
    bottom = (chin - (0.25 * u2).add_(0.42).mul_(u2)).add_(leaning)
    cup = smooth_max(smooth_max(top - v, v - bottom, 0.25), side - half, 0.3)
    depth, height = draws.between_each((0.2, 0.26), (0.95, 1.15))
    rim = canvas.line(cup + 0.07, 0.02, 0.16)
    ring = canvas.line(cup + depth, 0.035, 0.10)
    weld = canvas.line(canvas.affine(0.0, 1.0, -height).add_((u * u).mul_(0.28)), 0.035, 0.12 * draws.chance(0.6))
    clip = canvas.line(cup + 0.13, 0.045, 0.5).mul_(u.abs().mul_(-2.6).add_(1).clamp_(0, 0.3)).mul_(v.clone().lt_(0.9))
    dome = (cup + 0.6).clamp_(0, 0.6)
    embossing = clip.sub_(weld).sub_(ring).sub_(rim).sub_(dome.mul_(dome).mul_(0.45))
    shade = shading(canvas, u, 0.30, 0.14).add_(embossing)
    body = canvas.cover(cup)
    over, under = draws.between_each((0.85, 0.95), (1.26, 1.36))
    out = side - 0.72
    upper = canvas.affine(0.0, 1.0, -over).add_(0.85 * out).abs_().mul_(0.76)
    lower = canvas.affine(0.0, 1.0, -under).add_(out.mul_(0.15)).abs_()
    straps = torch.maximum(torch.minimum(upper, lower).sub_(0.032), torch.maximum(0.66 - side, side - 1.22))
    colours = canvas.paint(draws.pick(_STRAP_COLOURS)), canvas.paint(draws.pick(_N95_COLOURS))
    return Layer(torch.maximum(body, canvas.cover(straps)), tinted(canvas, *colours, body, shade))


def _paint_scarf(canvas: Canvas) -> Layer:
    """Paint woven cloth over the lower face and the neck, with a slack upper edge over or under the nose."""
    draws, u, v = canvas.draws, canvas.posed_u(0.25), canvas.v
    u2 = u * u
    edge = draws.between(0.78, 0.98) - draws.chance(0.7) * draws.between(0.36, 0.52)
    pitch, phase, lean, fall = draws.between_each((0.2, 0.5), (0.0, 1.0), (-0.12, 0.12), (-0.05, 0.22))
    sway = wave(canvas.affine(pitch, 0.0, phase)).mul_(0.08)
    top = (u * lean).add_(edge).add_((u2 / (u2 + 0.4)).mul_(fall)).add_(sway)
    half = canvas.affine(0.0, 0.5, -0.5).clamp_min_(0).add_(draws.between(1.1, 1.25))
    depth = v - top
    sheet = smooth_max(top.sub_(v), u.abs().sub_(half), 0.25)
    # Broad drapes that converge to one side, crossed by finer creases.
    towards, slack, pitch, slant, phase = draws.between_each(
        (-0.4, 0.4), (-0.5, 0.1), (1.1, 1.9), (-0.3, 0.3), (0.0, 1.0)
    )
    gather = (u * towards).add_(1).mul_(depth)
    broad = wave((gather * pitch).add_(u2 * slack).add_(u * slant).add_(phase))
    pitch, slant = draws.between_each((1.6, 2.6), (-1.1, 1.1))
    fine = wave(gather.mul_(pitch).add_(u * slant).add_(broad * 0.5))
    folds = broad.mul_(broad).mul_(0.65).add_(fine.mul_(0.35))
    rim = (sheet + 0.1).clamp_min_(0).mul_(1.5)
    fineness, relief, pitch, phase = draws.between_each((11.0, 20.0), (0.06, 0.22), (0.8, 2.2), (0.0, 1.0))
    threads = weave(canvas, u, depth, fineness).mul_(relief)
    shade = shading(canvas, u, 0.10, 0.05).mul_(folds.mul_(0.42).add_(0.70)).sub_(rim).add_(threads)
    stripes = wave(depth.mul_(pitch).add_(phase)).sub_(0.45).mul_(9)
    share = stripes.clamp_(0, 1).mul_(draws.chance(0.4))
    return Layer(canvas.cover(sheet), tinted(canvas, *_random_colours(canvas), share, shade))


SURGICAL = Kind("surgical", (-2.4, 0.12, 2.4, 2.03), _paint_surgical)
CLOTH = Kind("cloth", (-2.4, 0.04, 2.4, 2.08), _paint_cloth)
N95 = Kind("n95", (-2.4, 0.1, 2.4, 2.02), _paint_n95)
SCARF = Kind("scarf", (-99.0, 0.1, 99.0, 99.0), _paint_scarf)
