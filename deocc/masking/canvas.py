"""The canvas that occluders are painted on, and the definition of a kind of occluder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from deocc.masking.random import Draws, uniform
from deocc.masking.shapes import FaceFrame

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_TILE = 128


def luma(colour: Tensor) -> Tensor:
    """Return the brightness (N, ...) of colours (N, 3, ...)."""
    red, green, blue = colour.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green) + _LUMA[2] * blue


@lru_cache(maxsize=8)
def noise_tiles(device: torch.device, rows: int, columns: int) -> Tensor:
    """Return (rows * _TILE, columns * _TILE), a repeated tile of noise in [-1, 1), equal in every process."""
    return (uniform(torch.arange(_TILE, device=device), _TILE) * 2 - 1).repeat(rows, columns)


@dataclass(frozen=True)
class Light:
    """Low-frequency lighting of the faces, applied to occluders so that they do not look pasted."""

    level: Tensor
    """(N, 1, 1) mean brightness of the visible skin in [0, 1]."""
    slope: Tensor
    """(N, 1, 1) relative change of brightness per eye distance to the right."""
    skin: Tensor
    """(N, 3) colour of the skin in [0, 1]."""

    def take(self, index: Tensor | slice) -> "Light":
        """Return the lighting of some of the faces."""
        return Light(self.level[index], self.slope[index], self.skin[index])


@dataclass(frozen=True)
class Layer:
    """A painted occluder, blended over the face."""

    alpha: Tensor
    """(N, h, w) in [0, 1]; 0 = not part of the mask."""
    colour: Tensor
    """(N, C, h, w) in [0, 1], ignored where alpha is 0."""


@dataclass(frozen=True)
class Canvas:
    """One window of N images: rows y, columns x, C colour channels (1 for grey faces, 3 otherwise)."""

    x: Tensor
    """(w,) float32, the window's columns in pixels."""
    y: Tensor
    """(h,) float32, the window's rows in pixels."""
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
        kx, ky, k0 = _weighted_sum(along_u, self._u_row, along_v, self._v_row).unbind(0)
        return (kx * self.x + (k0 + offset)) + ky * self._y_column

    @cached_property
    def _u_row(self) -> Tensor:
        """(3, N, 1, 1), the weights of x, y and 1 in u."""
        return torch.stack([self.frame.ux, self.frame.uy, self.frame.u0])

    @cached_property
    def _v_row(self) -> Tensor:
        return torch.stack([self.frame.vx, self.frame.vy, self.frame.v0])

    @cached_property
    def _y_column(self) -> Tensor:
        return self.y[:, None]

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
        """Draw a soft line of half-width `width` where `distance` is 0; below a pixel it gets fainter, not thinner.

        Returns:
            (N, h, w), from 0 beside the line to `strength` in its middle.
        """
        wide = self._pixel.clamp_min(width)
        peak = (width / wide) * strength
        return (peak - distance.abs().mul_(peak / wide)).clamp_min_(0)

    @cached_property
    def _pixel(self) -> Tensor:
        """(N, 1, 1) smallest half-width of a line: 0.75 pixels, in eye distances."""
        return 0.75 / self.frame.unit

    def paint(self, colour: Tensor) -> Tensor:
        """Return colours (N, 3) as (N, C, 1, 1), on grey faces their brightness."""
        if self.channels == 1:
            colour = luma(colour)[:, None]
        return colour[:, :, None, None]

    @cached_property
    def grain(self) -> Tensor:
        """(N, h, w) sensor-like noise in [-1, 1] for each seed: the tile of noise from a random offset."""
        height, width = len(self.y), len(self.x)
        tiles = noise_tiles(self.x.device, height // _TILE + 2, width // _TILE + 2)
        row = ((self.draws.unit() * _TILE).floor() + self.y[0]).long()[:, 0, 0] % _TILE
        column = ((self.draws.unit() * _TILE).floor() + self.x[0]).long()[:, 0, 0] % _TILE
        return tiles.unfold(0, height, 1).unfold(1, width, 1)[row, column]


def _weighted_sum(a: float | Tensor, p: Tensor, b: float | Tensor, q: Tensor) -> Tensor:
    """Return a p + b q, without arithmetic for the frequent weights 0 and 1."""
    if isinstance(a, float) and a == 0:
        return q if isinstance(b, float) and b == 1 else b * q
    first = p if isinstance(a, float) and a == 1 else a * p
    return first if isinstance(b, float) and b == 0 else first + b * q


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
"""Forehead and cheek in face coordinates, bare skin on most faces. Our choice."""


def read_light(faces: Tensor, frame: FaceFrame) -> Light:
    """Estimate the lighting from skin samples on both halves of the faces.

    Args:
        faces: (N, 3, H, W) in [-1, 1].
        frame: face coordinates of the N faces.
    """
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
    extent: tuple[float, float, float, float] | None
    """Left, top, right, bottom of the painted area in face coordinates; None for the whole image."""
    paint: Callable[[Canvas], Layer]
    """Paints all images of a canvas at once, with +, -, *, / and sqrt only, which round alike in every batch."""
