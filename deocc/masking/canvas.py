"""What a kind of occluder paints on: the pixels of one window in face coordinates, the images' random draws and the light on the faces.

Exact arithmetic: per pixel only +, -, *, /, sqrt, floor, round, abs, minimum, maximum and where are used. IEEE rounds each in one way, so
a pixel has the same value in any batch, window or thread; vectorised sines, fused `lerp` or `addcmul`, and sums promise no such thing.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from deocc.masking.frame import FaceFrame
from deocc.masking.randomness import Draws, uniform

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_TILE = 128


def luma(colour: Tensor) -> Tensor:
    """(N, ...) brightness of (N, 3, ...) colours."""
    red, green, blue = colour.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green) + _LUMA[2] * blue


@lru_cache(maxsize=8)
def _grain_tile(device: torch.device) -> Tensor:
    """(_TILE * _TILE,) noise in [-1, 1), the same in every process."""
    return uniform(torch.arange(_TILE, device=device), _TILE).flatten() * 2 - 1


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
        f = self.frame
        kx = along_u * f.ux + along_v * f.vx
        ky = along_u * f.uy + along_v * f.vy
        k0 = along_u * f.u0 + along_v * f.v0 + offset
        return (kx * self.x + k0) + ky * self.y[:, None]

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
        return w / (1 - (1.2 * yaw).clamp(-0.35, 0.35) * w).clamp_min(0.25)

    def cover(self, distance: Tensor) -> Tensor:
        """Alpha of a shape from its signed distance (negative inside, in eye distances), its edge as soft as a lens would make it."""
        return (0.5 - distance * self._sharpness).clamp(0, 1)

    @cached_property
    def _sharpness(self) -> Tensor:
        """(N, 1, 1) rise of alpha per eye distance: edges are 1 to 1.8 pixels wide, so that no single sharpness gives occluders away."""
        return self.frame.unit / self.draws.between(1.0, 1.8)

    def line(self, distance: Tensor, width: Tensor | float) -> Tensor:
        """Strength in [0, 1] of a soft line of half-width `width` where `distance` is 0, never thinner than a pixel but then fainter."""
        pixel = 1 / self.frame.unit
        wide = (pixel * 0.75).clamp_min(width)
        return (1 - distance.abs() / wide).clamp_min(0) * (width / wide)

    def paint(self, colour: Tensor) -> Tensor:
        """(N, C, 1, 1) from (N, 3) colours; on grey faces their brightness, since a hue would give the occluder away."""
        if self.channels == 1:
            colour = luma(colour)[:, None]
        return colour[:, :, None, None]

    @cached_property
    def grain(self) -> Tensor:
        """(N, h, w) sensor-like noise in [-1, 1], different for every seed: a tile of random numbers at a random place."""
        tile = _grain_tile(self.x.device)
        row = (self.y + (self.draws.unit() * _TILE).floor()).long().transpose(1, 2) % _TILE
        column = (self.x + (self.draws.unit() * _TILE).floor()).long() % _TILE
        return tile[(row * _TILE) + column]
