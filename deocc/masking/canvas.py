"""Definition of a kind of occluder, the canvas that it is painted on, the lighting of faces, and surfaces to paint."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from deocc.masking.random import Draws, uniform
from deocc.masking.shapes import FaceFrame

NOISE_TILE = 128  # side of the repeated tile of noise, in pixels


def luma(colour: Tensor) -> Tensor:
    """Return the brightness (N, ...) of colours (N, 3, ...) by ITU-R BT.601."""
    red, green, blue = colour.unbind(1)
    return (0.299 * red + 0.587 * green) + 0.114 * blue


@lru_cache(maxsize=8)
def _noise_tiles(device: torch.device, rows: int, columns: int) -> Tensor:
    """Return rows x columns copies of the tile of noise in [-1, 1), which is equal in every process."""
    return (uniform(torch.arange(NOISE_TILE, device=device), NOISE_TILE) * 2 - 1).repeat(rows, columns)


def noise_windows(row: Tensor, column: Tensor, height: int, width: int) -> Tensor:
    """Return windows (N, height, width) of the repeated tile of noise at offsets (N,) int64 in 0..127."""
    tiles = _noise_tiles(row.device, height // NOISE_TILE + 2, width // NOISE_TILE + 2)
    return tiles.unfold(0, height, 1).unfold(1, width, 1)[row, column]


class Light(NamedTuple):
    """Low-frequency lighting of the faces, applied to occluders so that they do not look pasted."""

    level: Tensor  # (N, 1, 1) mean brightness of the visible skin in [0, 1]
    slope: Tensor  # (N, 1, 1) relative change of brightness per eye distance to the right
    skin: Tensor  # (N, 3) colour of the skin in [0, 1]


@dataclass(frozen=True)
class Layer:
    """A painted occluder, blended over the face."""

    alpha: Tensor  # (N, h, w) in [0, 1]; 0 = not part of the mask
    colour: Tensor  # (N, C, h, w) in [0, 1], ignored where alpha is 0


@dataclass(frozen=True)
class Canvas:
    """One window of N images: rows y, columns x, C colour channels (1 for grey faces, 3 otherwise)."""

    x: Tensor  # (w,) float32, the window's columns in pixels
    y: Tensor  # (h,) float32, the window's rows in pixels
    frame: FaceFrame
    draws: Draws
    light: Light
    channels: int

    @cached_property
    def u(self) -> Tensor:
        """(N, h, w) face coordinate, to the right."""
        return self.affine(1.0, 0.0, 0.0)

    @cached_property
    def v(self) -> Tensor:
        """(N, h, w) face coordinate, downwards."""
        return self.affine(0.0, 1.0, 0.0)

    def affine(self, along_u: float | Tensor, along_v: float | Tensor, offset: float | Tensor) -> Tensor:
        """Return along_u * u + along_v * v + offset (N, h, w); each argument is (N, 1, 1) or a number."""
        in_u, in_v = self._weights
        kx, ky, k0 = (along_u * in_u + along_v * in_v).unbind(0)
        return (kx * self.x + (k0 + offset)) + ky * self.y[:, None]

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        """The weights of x, y and 1 in u and in v, each (3, N, 1, 1)."""
        f = self.frame
        return torch.stack([f.ux, f.uy, f.u0]), torch.stack([f.vx, f.vy, f.v0])

    def posed_u(self, shift: float) -> Tensor:
        """Return u (N, h, w) on the frontal face, so that outlines follow the yaw of the head.

        The head is modelled as a cylinder of radius 1.05 with the tip of the nose 1.35 from its axis. At yaw t the nose
        is at 0.43 tan t, and the cheeks move close to u = w / (1 - k w) with w from the visible middle and k = 1.2 yaw.
        Our choice.

        Args:
            shift: how far the middle moves with the nose: 0 at the eyes, more where the face protrudes.
        """
        yaw = self.frame.yaw
        w = self.affine(1.0, 0.0, -shift * yaw)
        return w.div_((1 - (1.2 * yaw).clamp(-0.35, 0.35) * w).clamp_min_(0.25))

    def cover(self, distance: Tensor) -> Tensor:
        """Return the alpha of a shape from its signed distance in eye distances, negative inside."""
        return (distance * self._fall).add_(0.5).clamp_(0, 1)

    @cached_property
    def _fall(self) -> Tensor:
        """(N, 1, 1) change of alpha per eye distance; edges are 1 to 1.8 pixels wide, so their sharpness varies."""
        return -(self.frame.unit / self.draws.between(1.0, 1.8))

    def line(self, distance: Tensor, width: float, strength: float | Tensor = 1.0) -> Tensor:
        """Draw a soft line of half-width `width` where `distance` is 0: (N, h, w), from 0 to `strength` in its middle.

        Lines below 0.75 pixels get fainter, not thinner.
        """
        wide = (0.75 / self.frame.unit).clamp_min(width)
        peak = (width / wide) * strength
        return (peak - distance.abs().mul_(peak / wide)).clamp_min_(0)

    def paint(self, colour: Tensor) -> Tensor:
        """Return colours (N, 3) as (N, C, 1, 1), on grey faces their brightness."""
        if self.channels == 1:
            colour = luma(colour)[:, None]
        return colour[:, :, None, None]

    @cached_property
    def grain(self) -> Tensor:
        """(N, h, w) sensor-like noise in [-1, 1] for each seed: the tile of noise from a random offset."""
        row = ((self.draws.unit() * NOISE_TILE).floor() + self.y[0]).long()[:, 0, 0] % NOISE_TILE
        column = ((self.draws.unit() * NOISE_TILE).floor() + self.x[0]).long()[:, 0, 0] % NOISE_TILE
        return noise_windows(row, column, len(self.y), len(self.x))


# Forehead and cheek in face coordinates, bare skin on most faces. Our choice.
_SIDE = (
    (0.18, -0.35),
    (0.42, -0.40),
    (0.30, 0.42),
    (0.50, 0.50),
    (0.62, 0.62),
    (0.50, 0.80),
    (0.72, 0.75),
    (0.62, 1.00),
)


def read_light(faces: Tensor, frame: FaceFrame) -> Light:
    """Estimate the lighting of faces (N, 3, H, W) in [-1, 1] from skin samples on both halves."""
    points = torch.tensor([(-u, v) for u, v in _SIDE] + list(_SIDE), device=faces.device)
    x, y = frame.pixels(points)
    height, width = faces.shape[-2:]
    index = y.round().clamp(0, height - 1).long() * width + x.round().clamp(0, width - 1).long()
    samples = faces.flatten(2).gather(2, index[:, None].expand(-1, faces.shape[1], -1)).float() * 0.5 + 0.5
    left, right = _middle_mean(samples[..., :8]), _middle_mean(samples[..., 8:])
    skin = (left + right) / 2
    one, other = luma(left)[:, None, None], luma(right)[:, None, None]
    slope = ((other - one) / (other + one).clamp_min(0.1)).clamp(-0.3, 0.3)
    return Light((one + other) / 2, slope, skin)


def _middle_mean(samples: Tensor) -> Tensor:
    """Return (N, 3), the mean of the middle four of eight samples (N, 3, 8), robust against hair and glasses."""
    a, b, c, d = samples.sort(-1).values[..., 2:6].unbind(-1)
    return ((a + b) + (c + d)) / 4


@dataclass(frozen=True)
class Kind:
    """One kind of occluder."""

    name: str
    # Left, top, right, bottom of the painted area in face coordinates; None for the whole image.
    extent: tuple[float, float, float, float] | None
    # Paints all images of a canvas at once, with +, -, *, / and sqrt only, which round alike in every batch.
    paint: Callable[[Canvas], Layer]


def wave(phase: Tensor) -> Tensor:
    """Return a wave in [0, 1] with period 1 and peaks at integers: a smoothstepped triangle, like a cosine."""
    t = (phase - phase.floor()).sub_(0.5).abs_()
    return (t * t).mul_(3 - 4 * t).mul_(4)


def shading(canvas: Canvas, u: Tensor, bulge: float, rows: float = 0.0) -> Tensor:
    """Return the brightness (N, h, w) of a matt surface wrapped around the face at horizontal face coordinates `u`.

    It darkens by `bulge` at one eye distance from the middle, and by `rows` per eye distance below the nose.
    """
    base = (0.72 + 0.5 * canvas.light.level).clamp(0.75, 1.12)  # half of the face's deviation from mid exposure
    column = (u * u).mul_(-bulge * base).add_(u.clamp(-1.5, 1.5).mul_(canvas.light.slope * base))
    return column.add_(canvas.affine(0.0, -rows * base, (0.6 * rows + 1) * base))


def print_pattern(canvas: Canvas) -> Tensor:
    """Return the share (N, h, w) of the second colour in a random print.

    Prints are plain, striped, checked, dotted or blotched. All are one formula, so that a batch needs no branching: two
    crossed waves, each sharpened (stripes, checks), or summed and then sharpened (dots, and blotches where the waves
    bend each other).
    """
    draws = canvas.draws
    choice = draws.unit()
    stripes, checks, dots, blotches = (
        ((choice >= low) & (choice < high)).float() for low, high in pairwise((0.25, 0.45, 0.6, 0.78, 1.0))
    )
    diagonal = draws.between(-1, 1)
    frequency = draws.between(2.5, 5.5) * (1 - 0.62 * blotches)
    p = canvas.affine(frequency, frequency * diagonal, draws.unit())
    q = canvas.affine(-frequency * diagonal, frequency, draws.unit())
    bend = 0.5 * blotches
    first = wave(wave(q * 0.7).mul_(bend).add_(p))
    second = wave(wave(p * 0.37).add_(first).mul_(bend).add_(q))
    spots = dots + blotches
    crossed = 0.5 * (checks + spots)
    hard = stripes + checks  # these waves are six times steeper around their middle
    first = first.mul_(1 + 5 * hard).sub_(2.5 * hard).clamp_(0, 1).mul_(stripes + crossed)
    second = second.mul_(1 + 5 * hard).sub_(2.5 * hard).clamp_(0, 1).mul_(crossed)
    threshold = 0.72 * dots + 0.5 * blotches
    return first.add_(second).sub_(threshold).mul_(1 + 9 * spots).clamp_(0, 1)


def tinted(canvas: Canvas, first: Tensor, second: Tensor, share: Tensor, shade: Tensor) -> Tensor:
    """Return (N, C, h, w): `first` mixed with a `share` (N, h, w) of `second`, times `shade`, plus grain."""
    lit = (0.03 * canvas.grain).add_(shade).unsqueeze(1)
    return ((second - first) * share.unsqueeze(1)).add_(first).mul_(lit).clamp_(0, 1)


def weave(canvas: Canvas, u: Tensor, v: Tensor, threads: Tensor) -> Tensor:
    """Return a knit (N, h, w) of `threads` per eye distance, which fades out where pixels are too coarse."""
    visible = ((canvas.frame.unit / threads - 1.5) * 0.5).clamp(0, 1)
    along = u * threads
    return wave((v * threads).add_(0.5 * along)).mul_(wave(along)).sub_(0.25).mul_(visible)
