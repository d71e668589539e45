"""Shapes as signed distances (negative inside) and their combinations, in exact arithmetic only (see `deocc.masking.canvas`)."""

import torch
from torch import Tensor


def smooth_max(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Intersection of two shapes with its corners rounded: the polynomial smooth maximum.

    Source: I. Quilez, "Smooth minimum", quadratic form: max(a, b) + max(k - |a - b|, 0)^2 / 4k.
    """
    return torch.maximum(a, b).add_(_blend(a, b, radius))


def smooth_min(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Union of two shapes with the notch between them filled; see `smooth_max`."""
    return torch.minimum(a, b).sub_(_blend(a, b, radius))


def _blend(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """max(k - |a - b|, 0)^2 / 4k."""
    overlap = (a - b).abs_().sub_(radius).clamp_max_(0)
    return overlap.mul_(overlap).mul_(0.25 / radius)


def rounded_box(x: Tensor, y: Tensor, half_width: float | Tensor, half_height: float | Tensor, radius: float | Tensor) -> Tensor:
    """Signed distance to an axis-parallel box round (0, 0) with corners of the given radius."""
    dx, dy = x.abs() - (half_width - radius), y.abs() - (half_height - radius)
    inside = torch.maximum(dx, dy).clamp_max_(0)
    return norm(dx.clamp_min_(0), dy.clamp_min_(0)).add_(inside).sub_(radius)


def capsule(x: Tensor, y: Tensor, length: float | Tensor) -> Tensor:
    """Distance to the segment from (0, 0) to (length, 0); subtract a radius to have a capsule."""
    along = x - torch.minimum(x.clamp_min(0), torch.as_tensor(length, dtype=x.dtype, device=x.device))
    return norm(along, y)


def superellipse(x: Tensor, y: Tensor, squareness: float | Tensor) -> Tensor:
    """A norm whose unit circle runs from an ellipse (squareness 0) to a rounded square (squareness 1)."""
    x2, y2 = x * x, y * y
    square = norm(x2, y2).sqrt_().mul_(squareness)
    return x2.add_(y2).sqrt_().mul_(1 - squareness).add_(square)


def norm(x: Tensor, y: Tensor) -> Tensor:
    """Distance of (x, y) from (0, 0)."""
    return (x * x).add_(y * y).sqrt_()
