"""Signed distances of shapes, and the face coordinates u and v.

u points right along the eyes and v down to the mouth, in eye distances from the point between the eyes. On the
canonical template the eyes are at (-0.5, 0) and (0.5, 0), the nose at (0, 0.56), the mouth at v = 1.1, the chin near v
= 1.85 and the edge of the cheeks near |u| = 1.05.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def smooth_max(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Intersect two shapes with rounded corners, by the polynomial smooth maximum.

    Source: I. Quilez, "Smooth minimum", quadratic form: max(a, b) + max(k - |a - b|, 0)^2 / 4k.
    """
    return torch.maximum(a, b).add_(_blend(a, b, radius))


def smooth_min(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Unite two shapes and fill the notch between them; see `smooth_max`."""
    return torch.minimum(a, b).sub_(_blend(a, b, radius))


def _blend(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Return max(k - |a - b|, 0)^2 / 4k."""
    overlap = (a - b).abs_().sub_(radius).clamp_max_(0)
    return overlap.mul_(overlap).mul_(0.25 / radius)


def rounded_box(
    x: Tensor, y: Tensor, half_width: float | Tensor, half_height: float | Tensor, radius: float | Tensor
) -> Tensor:
    """Return the signed distance to a box around (0, 0) with corners of the given radius."""
    dx, dy = x.abs() - (half_width - radius), y.abs() - (half_height - radius)
    inside = torch.maximum(dx, dy).clamp_max_(0)
    return norm(dx.clamp_min_(0), dy.clamp_min_(0)).add_(inside).sub_(radius)


def superellipse(x: Tensor, y: Tensor, squareness: float | Tensor) -> Tensor:
    """Return a norm whose unit circle is a circle (squareness 0) to a rounded square (squareness 1)."""
    x2, y2 = x * x, y * y
    square = norm(x2, y2).sqrt_().mul_(squareness)
    return x2.add_(y2).sqrt_().mul_(1 - squareness).add_(square)


def norm(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance of (x, y) from (0, 0)."""
    return (x * x).add_(y * y).sqrt_()


_MOUTH_V = 1.1  # on the canonical template of `deocc.geometry`


class FaceFrame(NamedTuple):
    """Maps pixels to face coordinates and back; every field is (N, 1, 1) float32, so that it broadcasts over pixels.

    u = ux x + uy y + u0, v = vx x + vy y + v0; the point (u, v) is at x = x0 + u xu + v xv, y = y0 + u yu + v yv.
    """

    ux: Tensor
    uy: Tensor
    u0: Tensor
    vx: Tensor
    vy: Tensor
    v0: Tensor
    x0: Tensor
    y0: Tensor
    xu: Tensor
    yu: Tensor
    xv: Tensor
    yv: Tensor
    unit: Tensor  # pixels per eye distance, the mean of both axes
    yaw: Tensor  # u of the nose: 0 for a frontal face, positive where the nose points right

    @classmethod
    def from_landmarks(cls, landmarks: Tensor) -> "FaceFrame":
        """Fit the frame to landmarks (N, 5, 2).

        The u axis follows the eyes and the v axis the line from the eyes to the mouth, so roll, and the foreshortening
        of yaw and pitch, are kept. Both are bounded, since the eyes nearly coincide on a face in profile. Only +, -, *,
        / and sqrt occur: IEEE arithmetic rounds these alike in every batch, unlike vectorised sines and matrix
        products.
        """
        eye_l, eye_r, nose, mouth_l, mouth_r = landmarks.float().unbind(1)
        origin, mouth = (eye_l + eye_r) / 2, (mouth_l + mouth_r) / 2
        ex, ey = (eye_r - eye_l).unbind(1)
        mx, my = ((mouth - origin) / _MOUTH_V).unbind(1)
        eyes = (ex * ex + ey * ey).sqrt().clamp_min(1e-3)
        ex, ey = ex / eyes, ey / eyes
        down = my * ex - mx * ey
        flip = torch.where(down < 0, -1.0, 1.0)  # upside-down face: points are sorted left to right
        nx, ny = -ey * flip, ex * flip
        du = torch.maximum(eyes, 0.6 * down.abs())
        dv = down.abs().clamp(0.7 * du, 1.5 * du)
        shear = (mx * ex + my * ey).clamp(-0.35 * dv, 0.35 * dv)
        slant = shear / dv
        ux, uy, vx, vy = (ex - nx * slant) / du, (ey - ny * slant) / du, nx / dv, ny / dv
        x0, y0 = origin.unbind(1)
        yaw = ((nose[:, 0] - x0) * ux + (nose[:, 1] - y0) * uy).clamp(-0.6, 0.6)
        xv, yv = nx * dv + ex * shear, ny * dv + ey * shear
        u0, v0 = -(ux * x0 + uy * y0), -(vx * x0 + vy * y0)
        columns = (ux, uy, u0, vx, vy, v0, x0, y0, ex * du, ey * du, xv, yv, (du * dv).sqrt(), yaw)
        return cls(*(column[:, None, None] for column in columns))

    def pixels(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and y, each (N, P), of points (P, 2) in face coordinates."""
        u, v = points[:, 0], points[:, 1]
        x, y = self.x0 + u * self.xu + v * self.xv, self.y0 + u * self.yu + v * self.yv
        return x[:, 0], y[:, 0]
