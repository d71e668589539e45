"""The trained system as one graph that an exporter can trace: canonical crops in, `Outputs` out."""

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.apps.export.graph import Outputs
from deocc.apps.pipeline import FaceNetwork
from deocc.evaluation.calibration import covered_share
from deocc.geometry import Template, canonical_to, invert_transform, transform_points
from deocc.modules.comparison import centred
from deocc.networks import Deoccluder
from deocc.networks.generator import complete, compose

_COARSE: Final = 1 / 1.5  # where `deocc.geometry.warp` begins to take a crop from a smaller copy


class FixedCrop(nn.Module):
    """`deocc.geometry.warp` from canonical crops of one side to a template, with all that does not depend on pixels computed beforehand.

    The antialiased smaller copy, where there is one, is taken by two matrix products: resizing is linear along each axis, and not every
    runtime has an antialiased one.
    """

    grid: Tensor
    resize: Tensor | None

    def __init__(self, template: Template, canonical_size: int) -> None:
        """Compute the sampling positions."""
        super().__init__()
        matrix = canonical_to(template, canonical_size)
        scale = math.sqrt(float(torch.linalg.det(matrix[:, :2])))
        axis = torch.arange(template.size, dtype=torch.float32)
        targets = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
        sources = transform_points(targets, invert_transform(matrix))
        # Relative to the image's extent, so that a smaller copy has the same.
        grid = (2 * sources + 1) / canonical_size - 1
        self.register_buffer("grid", grid.reshape(1, template.size, template.size, 2))
        self.register_buffer("resize", _resizing(canonical_size, max(2, round(canonical_size * scale))) if scale < _COARSE else None)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, T, T), T = the template's size."""
        if self.resize is not None:
            image = self.resize @ image @ self.resize.T
        grid = self.grid.expand(image.shape[0], -1, -1, -1)
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


class FixedDeoccluder(nn.Module):
    """`Deoccluder` for faces of one side that is larger than its own; resizing is a product with a fixed matrix."""

    shrink: Tensor
    enlarge_face: Tensor
    enlarge_mask: Tensor
    windows: Tensor

    def __init__(self, deoccluder: Deoccluder, size: int) -> None:
        """Share the weights of `deoccluder`; size: side of the canonical crops in pixels."""
        super().__init__()
        self.generator, self.segmenter = deoccluder.generator, deoccluder.segmenter
        small = deoccluder.size or size
        self.register_buffer("shrink", _resizing(size, small))
        self.register_buffer("enlarge_face", _resizing(small, size, "bicubic", antialias=False))
        self.register_buffer("enlarge_mask", _resizing(small, size, "bilinear", antialias=False))
        starts = torch.arange(small) * size // small
        ends = -(-(torch.arange(small) + 1) * size // small)
        reach = torch.arange(int((ends - starts).max()))
        # (small, K) positions under each pixel of the small mask, as in adaptive pooling; the last one of a short window is repeated.
        self.register_buffer("windows", torch.minimum(starts[:, None] + reach, ends[:, None] - 1))

    def forward(self, face: Tensor) -> tuple[Tensor, Tensor]:
        """Faces (B, 3, S, S) in [-1, 1] -> predicted mask (B, 1, S, S) and completed face (B, 3, S, S)."""
        small_face = self.shrink @ face @ self.shrink.T
        mask = self.enlarge_mask @ self.segmenter.predict_mask(small_face) @ self.enlarge_mask.T
        side, reach = self.windows.shape
        small_mask = mask[:, :, self.windows.flatten()].unflatten(2, (side, reach)).amax(3)
        small_mask = small_mask[..., self.windows.flatten()].unflatten(3, (side, reach)).amax(4)
        generated = self.enlarge_face @ self.generator(small_face, small_mask) @ self.enlarge_face.T
        return mask, compose(face, generated.clamp(-1, 1), mask)


class ExportNetwork(nn.Module):
    """`FaceNetwork` for faces of one size, without the given mask and without what tracing cannot follow."""

    center: Tensor

    def __init__(self, network: FaceNetwork, size: int) -> None:
        """Share the weights of `network`; size: side of the canonical crops in pixels."""
        super().__init__()
        self.deoccluder, self.student = network.deoccluder, network.student
        self.crop = FixedCrop(network.student.embedder.template, size)
        shrinks = network.deoccluder is not None and network.deoccluder.size is not None and size > network.deoccluder.size
        self.resized = FixedDeoccluder(network.deoccluder, size) if network.deoccluder is not None and shrinks else None
        self.register_buffer("center", network.center)
        self.requires_grad_(False).eval()

    def forward(self, face: Tensor) -> tuple[Tensor, ...]:
        """Canonical crops (B, 3, S, S) in [-1, 1], masked or not -> the fields of `Outputs`, by the predicted mask."""
        if self.deoccluder is None:
            mask, completed_face = torch.zeros_like(face[:, :1]), face.clone()
        elif self.resized is not None:
            mask, completed_face = self.resized(face)
        else:
            # Its own methods run under inference mode, which cannot be traced.
            mask = self.deoccluder.segmenter.predict_mask(face)
            completed_face = complete(self.deoccluder.generator, face, mask)
        embedding = centred(self._embed(face, completed_face, mask), self.center)
        return tuple(Outputs(completed_face, mask, embedding, covered_share(mask)))

    def _embed(self, face: Tensor, completed_face: Tensor, mask: Tensor) -> Tensor:
        """As `Student.forward`, by the fixed crop."""
        student = self.student
        shown = completed_face if student.needs_completion else face
        images = torch.cat([shown] + [face] * (student.student_input == "both") + [mask] * student.mask_channel, 1)
        embedding = self._embed_cropped(self.crop(images))
        if student.embedder.spec.mirror:
            embedding = (embedding + self._embed_cropped(self.crop(images.flip(-1)))) / 2
        projected: Tensor = student.projection(embedding)
        return projected

    def _embed_cropped(self, channels: Tensor) -> Tensor:
        """(B, D) raw embeddings of what `FixedCrop` returns."""
        embedder = self.student.embedder
        return embedder.embed_crop(channels[:, :3], channels[:, 3:] if embedder.extra_channels else None)


def _resizing(before: int, after: int, mode: str = "bilinear", antialias: bool = True) -> Tensor:
    """(after, before): the matrix of a resizing along one axis."""
    identity = torch.eye(before)[None, None]
    return F.interpolate(identity, (after, before), mode=mode, antialias=antialias, align_corners=False)[0, 0]
