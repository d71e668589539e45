"""The light and the skin colour of a face, read from a few points of it."""

import torch
from torch import Tensor

from deocc.masking.canvas import Light, luma
from deocc.masking.frame import FaceFrame

_SIDE = ((0.18, -0.35), (0.42, -0.40), (0.30, 0.42), (0.50, 0.50), (0.62, 0.62), (0.50, 0.80), (0.72, 0.75), (0.62, 1.00))
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
