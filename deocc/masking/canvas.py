"""What a kind of occluder is: a name, a place and a painter."""

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
    """(N, ...) brightness of (N, 3, ...) colours."""
    red, green, blue = colour.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green) + _LUMA[2] * blue


@lru_cache(maxsize=8)
def noise_tiles(device: torch.device, rows: int, columns: int) -> Tensor:
    """(rows * _TILE, columns * _TILE): one tile of noise in [-1, 1), repeated; the same in every process."""
    return (uniform(torch.arange(_TILE, device=device), _TILE) * 2 - 1).repeat(rows, columns)


@dataclass(frozen=True)
class Light:
    """The face's own low-frequency lighting: an occluder that ignored it would look pasted."""

    level: Tensor
    """(N, 1, 1) mean brightness of the visible skin in [0, 1]."""
    slope: Tensor
    """(N, 1, 1) relative change of brightness per eye distance to the right."""
    skin: Tensor
    """(N, 3) the skin's colour in [0, 1]."""

    def take(self, index: Tensor | slice) -> "Light":
        """The light on some of the faces."""
        return Light(self.level[index], self.slope[index], self.skin[index])


@dataclass(frozen=True)
class Layer:
    """A painted occluder."""

    alpha: Tensor
    """(N, h, w) in [0, 1]; 0 = the face shows, and the pixel is not part of the mask."""
    colour: Tensor
    """(N, C, h, w) in [0, 1], meaningless where alpha is 0."""


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
        """(N, h, w) face coordinate to the right."""
        return self.affine(1.0, 0.0, 0.0)

    @cached_property
    def v(self) -> Tensor:
        """(N, h, w) face coordinate downwards."""
        return self.affine(0.0, 1.0, 0.0)

    def affine(self, along_u: float | Tensor, along_v: float | Tensor, offset: float | Tensor) -> Tensor:
        """(N, h, w): along_u * u + along_v * v + offset, each (N, 1, 1) or a number; cheap, since linear in x and y."""
        kx, ky, k0 = _weighted_sum(along_u, self._u_row, along_v, self._v_row).unbind(0)
        return (kx * self.x + (k0 + offset)) + ky * self._y_column

    @cached_property
    def _u_row(self) -> Tensor:
        """(3, N, 1, 1): what x, y and 1 are weighed with to give u."""
        return torch.stack([self.frame.ux, self.frame.uy, self.frame.u0])

    @cached_property
    def _v_row(self) -> Tensor:
        return torch.stack([self.frame.vx, self.frame.vy, self.frame.v0])

    @cached_property
    def _y_column(self) -> Tensor:
        return self.y[:, None]

    def posed_u(self, shift: float) -> Tensor:
        """(N, h, w): u as it would be on the frontal face, so that outlines follow the head's yaw.

        A head turned by t is taken for a cylinder of radius 1.05 with the nose's tip 1.35 from its axis. Its nose then lies at 0.43 tan t,
        its far cheek comes nearer and its near cheek goes farther, close to u = w / (1 - k w) with w from the visible middle; k = 1.2 yaw.
        OURS.

        Args:
            shift: how far the middle moves with the nose: 0 at the eyes, which the frame already centres, more where the face protrudes.
        """
        yaw = self.frame.yaw
        w = self.affine(1.0, 0.0, -shift * yaw)
        return w.div_((1 - (1.2 * yaw).clamp(-0.35, 0.35) * w).clamp_min_(0.25))

    def cover(self, distance: Tensor) -> Tensor:
        """Alpha of a shape from its signed distance (negative inside, in eye distances), its edge as soft as a lens would make it."""
        return (distance * self._fall).add_(0.5).clamp_(0, 1)

    @cached_property
    def _fall(self) -> Tensor:
        """(N, 1, 1) change of alpha per eye distance: edges are 1 to 1.8 pixels wide, so that no single sharpness gives occluders away."""
        return -(self.frame.unit / self.draws.between(1.0, 1.8))

    def line(self, distance: Tensor, width: float, strength: float | Tensor = 1.0) -> Tensor:
        """A soft line of half-width `width` where `distance` is 0, never thinner than a pixel but then fainter.

        Returns:
            (N, h, w) from 0 beside the line to `strength` in its middle.
        """
        wide = self._pixel.clamp_min(width)
        peak = (width / wide) * strength
        return (peak - distance.abs().mul_(peak / wide)).clamp_min_(0)

    @cached_property
    def _pixel(self) -> Tensor:
        """(N, 1, 1) the least half-width of a line, three quarters of a pixel in eye distances."""
        return 0.75 / self.frame.unit

    def paint(self, colour: Tensor) -> Tensor:
        """(N, C, 1, 1) from (N, 3) colours; on grey faces their brightness, since a hue would give the occluder away."""
        if self.channels == 1:
            colour = luma(colour)[:, None]
        return colour[:, :, None, None]

    @cached_property
    def grain(self) -> Tensor:
        """(N, h, w) sensor-like noise in [-1, 1], different for every seed: a tile of random numbers at a random place."""
        height, width = len(self.y), len(self.x)
        tiles = noise_tiles(self.x.device, height // _TILE + 2, width // _TILE + 2)
        row = ((self.draws.unit() * _TILE).floor() + self.y[0]).long()[:, 0, 0] % _TILE
        column = ((self.draws.unit() * _TILE).floor() + self.x[0]).long()[:, 0, 0] % _TILE
        return tiles.unfold(0, height, 1).unfold(1, width, 1)[row, column]


def _weighted_sum(a: float | Tensor, p: Tensor, b: float | Tensor, q: Tensor) -> Tensor:
    """a p + b q; weights of 0 and 1, the most frequent, cost nothing."""
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
"""Forehead and cheek, in face coordinates: bare skin on most faces, away from eyes, nostrils and mouth. OURS."""


def read_light(faces: Tensor, frame: FaceFrame) -> Light:
    """Sample both halves of the faces.

    Args:
        faces: (N, 3, H, W) in [-1, 1].
        frame: of the N faces.
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
    """(N, 3) from (N, 3, 8): the mean of the four middle samples, so that hair or glasses at some points do not count."""
    a, b, c, d = samples.sort(-1).values[..., 2:6].unbind(-1)
    return ((a + b) + (c + d)) / 4


@dataclass(frozen=True)
class Kind:
    """One kind of occluder."""

    name: str
    extent: tuple[float, float, float, float] | None
    """Left, top, right, bottom in face coordinates beyond which nothing is ever painted; None = it may lie anywhere in the image."""
    paint: Callable[[Canvas], Layer]
    """Paints all images of a canvas at once; it must obey the canvas's rule of exact arithmetic."""
