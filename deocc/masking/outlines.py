"""Shapes as signed distances (negative inside) and their combinations, in exact arithmetic only (see `deocc.masking.canvas`)."""

import torch
from torch import Tensor


def smooth_max(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Intersection of two shapes with its corners rounded: the polynomial smooth maximum.

    Source: I. Quilez, "Smooth minimum", quadratic form: max(a, b) + max(k - |a - b|, 0)^2 / 4k.
    """
    blend = (radius - (a - b).abs()).clamp_min(0)
    return torch.maximum(a, b) + blend * blend * (0.25 / radius)


def smooth_min(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Union of two shapes with the notch between them filled; see `smooth_max`."""
    blend = (radius - (a - b).abs()).clamp_min(0)
    return torch.minimum(a, b) - blend * blend * (0.25 / radius)


def rounded_box(x: Tensor, y: Tensor, half_width: float | Tensor, half_height: float | Tensor, radius: float | Tensor) -> Tensor:
    """Signed distance to an axis-parallel box round (0, 0) with corners of the given radius."""
    dx, dy = x.abs() - (half_width - radius), y.abs() - (half_height - radius)
    outside = _square(dx.clamp_min(0)) + _square(dy.clamp_min(0))
    return outside.sqrt() + torch.maximum(dx, dy).clamp_max(0) - radius


def capsule(x: Tensor, y: Tensor, length: float | Tensor) -> Tensor:
    """Distance to the segment from (0, 0) to (length, 0); subtract a radius to have a capsule."""
    along = x - torch.minimum(x.clamp_min(0), torch.as_tensor(length, dtype=x.dtype, device=x.device))
    return (along * along + y * y).sqrt()


def superellipse(x: Tensor, y: Tensor, squareness: float | Tensor) -> Tensor:
    """A norm whose unit circle runs from an ellipse (squareness 0) to a rounded square (squareness 1)."""
    x2, y2 = x * x, y * y
    square = (x2 * x2 + y2 * y2).sqrt().sqrt()
    return (x2 + y2).sqrt() * (1 - squareness) + square * squareness


def _square(x: Tensor) -> Tensor:
    return x * x
