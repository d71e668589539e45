"""Face geometry: landmark templates, similarity alignment, and the differentiable warp between crops.

A template places five points (eye, eye, nose, mouth corner, mouth corner, left to right in the image) in a square crop.
Pixel coordinates refer to pixel centres: the centre of the top-left pixel is (0, 0), as in OpenCV's `warpAffine`. Every
face is stored in one *canonical* crop that contains the crops of all recognisers; generator, teacher and student cut
their input out of it by a constant warp.

Not known from the paper; our choice: the canonical and the FaceNet template.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Points = tuple[tuple[float, float], ...]

LARGEST_COORDINATE = float(1 << 24)
"""In pixels; float32 cannot distinguish neighbouring pixels beyond it, so landmarks must be within."""


@dataclass(frozen=True)
class Template:
    """Five points, x and y in pixels, in a square crop of `size` pixels a side."""

    size: int
    points: Points

    def tensor(self, size: int | None = None) -> Tensor:
        """Return the (5, 2) float32 points, scaled to a crop of `size` pixels (default: the template's size)."""
        points = torch.tensor(self.points, dtype=torch.float32)
        return (points + 0.5) * ((size or self.size) / self.size) - 0.5


# In eye distances from the midpoint of the eyes; nose and mouth are the mean of the ArcFace and dlib templates.
_CANONICAL_OFFSETS = ((-0.5, 0.0), (0.5, 0.0), (0.0, 0.563), (-0.446, 1.1), (0.446, 1.1))
TEMPLATES: dict[str, Template] = {
    # Eye distance 100 in 350 pixels: 150 above the eyes and 200 below contain dlib's chin and ArcFace's forehead.
    "canonical": Template(350, tuple((175 + 100 * x - 0.5, 150 + 100 * y - 0.5) for x, y in _CANONICAL_OFFSETS)),
    # insightface's published template, used by ArcFace, CosFace, AdaFace and MagFace.
    "arcface": Template(
        112, ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
    ),
    # Measured on dlib's 150 x 150 chips (padding 0.25).
    "dlib": Template(150, ((46.2, 45.6), (100.6, 46.7), (74.7, 76.3), (47.7, 102.7), (99.7, 103.3))),
    # FaceNet crops a detector's box, not points; the eyes are where such a box has them on average.
    "facenet": Template(160, ((54.0, 62.0), (106.0, 62.0), (80.0, 91.3), (56.8, 119.2), (103.2, 119.2))),
}


def get_template(name: str) -> Template:
    """Return the template with this name; the ValueError for another one lists the templates."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown face template {name!r}: choose one of {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]


def similarity_transform(source: Tensor, target: Tensor) -> Tensor:
    """Return the rotation, scale and shift that map `source` to `target` with the least squared error.

    A similarity of the plane is linear in (a, b, tx, ty): x' = a x - b y + tx, y' = b x + a y + ty. The solution is
    closed and, unlike that of a general Procrustes problem, never mirrors the face.

    Args:
        source: (..., P, 2) points, P >= 2 and not all equal.
        target: (..., P, 2) points.

    Returns:
        (..., 2, 3) matrix.
    """
    source, target = torch.broadcast_tensors(source, target)
    source_mean, target_mean = source.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    p, q = source - source_mean, target - target_mean
    spread = p.square().sum((-1, -2)).clamp_min(torch.finfo(p.dtype).tiny)
    a = (p * q).sum((-1, -2)) / spread
    b = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(-1) / spread
    linear = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], -2)
    shift = target_mean - _apply_linear(linear, source_mean)
    return torch.cat([linear, shift.transpose(-1, -2)], -1)


def transform_points(points: Tensor, matrix: Tensor) -> Tensor:
    """Apply (..., 2, 3) matrices to (..., P, 2) points."""
    return _apply_linear(matrix[..., :2], points) + matrix[..., 2].unsqueeze(-2)


def invert_transform(matrix: Tensor) -> Tensor:
    """Return the (..., 2, 3) inverse of (..., 2, 3) affine matrices."""
    linear = torch.linalg.inv(matrix[..., :2].float())
    shift = _apply_linear(linear, matrix[..., 2].float().unsqueeze(-2))
    return torch.cat([linear, -shift.transpose(-1, -2)], -1).to(matrix.dtype)


def canonical_to(template: Template, canonical_size: int) -> Tensor:
    """Return the (2, 3) matrix from pixels of a canonical crop of this size to pixels of a template."""
    return similarity_transform(TEMPLATES["canonical"].tensor(canonical_size), template.tensor())


def warp(image: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Resample images into square crops, differentiably; outside the image its edge pixels are repeated.

    If all crops are more than 1.5 times coarser than their images, they are taken from antialiased smaller copies,
    since bilinear sampling alone would alias. The finest crop of the batch determines the size of the copies.

    Args:
        image: (B, C, H, W).
        matrix: (B, 2, 3) or (2, 3), image pixels to crop pixels.
        size: side of the crops in pixels.

    Returns:
        (B, C, size, size).

    Raises:
        ValueError: a matrix is not finite or not invertible.
    """
    matrix = matrix.to(device=image.device, dtype=torch.float32).expand(image.shape[0], 2, 3)
    scales = torch.linalg.det(matrix[:, :, :2]).abs().sqrt()  # crop pixels per image pixel
    smallest, scale = torch.stack(scales.aminmax()).tolist()
    if not 0 < smallest <= scale < math.inf:
        found = f"scales from {smallest:g} to {scale:g}"
        raise ValueError(f"expected matrices with an inverse, got {found}: are the landmarks those of a face?")
    if scale < 1 / 1.5:
        height, width = (max(2, round(side * scale)) for side in image.shape[-2:])
        factor = torch.tensor([image.shape[-1] / width, image.shape[-2] / height], device=matrix.device)
        # Pixel centres: old = factor * new + (factor - 1) / 2.
        linear = matrix[:, :, :2]
        shift = matrix[:, :, 2] + _apply_linear(linear, ((factor - 1) / 2)[None]).squeeze(-2)
        image = F.interpolate(image, (height, width), mode="bilinear", antialias=True, align_corners=False)
        matrix = torch.cat([linear * factor, shift.unsqueeze(-1)], -1)
    axis = torch.arange(size, device=image.device, dtype=torch.float32)
    targets = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(1, -1, 2)
    sources = transform_points(targets, invert_transform(matrix))
    extent = torch.tensor([image.shape[-1], image.shape[-2]], device=image.device, dtype=torch.float32)
    grid = ((2 * sources + 1) / extent - 1).reshape(-1, size, size, 2)
    return F.grid_sample(image, grid.to(image.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def align(image: NDArray[np.uint8], landmarks: NDArray[np.floating], size: int) -> tuple[Tensor, Tensor]:
    """Cut the canonical crop out of a photo.

    Args:
        image: (H, W, 3) RGB.
        landmarks: (5, 2) x, y in pixels of the image.
        size: side of the crop in pixels.

    Returns:
        The face, (3, size, size) in [-1, 1], and its landmarks in the crop, (5, 2) in pixels.

    Raises:
        ValueError: the image is not uint8 (H, W, 3) or is empty; or the landmarks are not five points, not finite,
            beyond `LARGEST_COORDINATE`, or all in one place.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
        found = f"{image.shape} of {image.dtype}"
        raise ValueError(f"expected an RGB image of shape (H, W, 3) with pixels and of type uint8, got {found}")
    points = torch.as_tensor(np.asarray(landmarks), dtype=torch.float32)
    usable = points.shape == (5, 2) and bool((points.abs() <= LARGEST_COORDINATE).all())
    if not usable or float(points.std(0).max()) < 1e-3:
        given = points.tolist()
        raise ValueError(f"expected five finite landmarks (5, 2) in pixels, not all in one place, got {given}")
    matrix = similarity_transform(points, TEMPLATES["canonical"].tensor(size))
    pixels = torch.tensor(image).permute(2, 0, 1).float()[None] / 127.5 - 1
    return warp(pixels, matrix, size)[0].clamp(-1, 1), transform_points(points, matrix)


def _apply_linear(linear: Tensor, points: Tensor) -> Tensor:
    """Apply (..., 2, 2) matrices to (..., P, 2) points without matmul, which autocast and TF32 would round."""
    return points[..., :1] * linear[..., None, :, 0] + points[..., 1:] * linear[..., None, :, 1]
