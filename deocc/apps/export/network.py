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
from deocc.networks.deoccluder import Deoccluder, whole_mask
from deocc.networks.generator import compose

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


class ExportNetwork(nn.Module):
    """`FaceNetwork` for faces of one size, without a given mask and without what tracing cannot follow.

    Where the de-occluder works at a smaller side, all resizing is by matrix products with fixed matrices: not every runtime has the
    antialiased form.
    """

    center: Tensor
    shrink: Tensor | None
    enlarge: Tensor

    def __init__(self, network: FaceNetwork, size: int) -> None:
        """Share the weights of `network`; size: side of the canonical crops in pixels."""
        super().__init__()
        self.deoccluder, self.student = network.deoccluder, network.student
        self.crop = FixedCrop(network.student.embedder.template, size)
        work_size = size if network.deoccluder is None or network.deoccluder.size is None else network.deoccluder.size
        self.register_buffer("shrink", _resizing(size, work_size) if work_size < size else None)
        self.register_buffer("enlarge", _resizing(work_size, size))
        self.register_buffer("center", network.center)
        self.requires_grad_(False).eval()

    def forward(self, face: Tensor) -> tuple[Tensor, ...]:
        """Canonical crops (B, 3, S, S) in [-1, 1], masked or not -> the fields of `Outputs`, by the predicted mask."""
        if self.deoccluder is None:
            mask, completed_face = torch.zeros_like(face[:, :1]), face.clone()
        else:
            mask, completed_face = self._complete(self.deoccluder, face)
        embedding = centred(self._embed(face, completed_face, mask), self.center)
        return tuple(Outputs(completed_face, mask, embedding, covered_share(mask)))

    def _complete(self, deoccluder: Deoccluder, face: Tensor) -> tuple[Tensor, Tensor]:
        """As `Deoccluder`, whose own methods run under inference mode and choose images, neither of which can be traced."""
        if self.shrink is None:
            mask = deoccluder.segmenter.predict_mask(face)
            return mask, compose(face, deoccluder.generator(face, whole_mask(mask)), mask)
        small = self.shrink @ face @ self.shrink.T
        mask = self.enlarge @ deoccluder.segmenter.predict_mask(small) @ self.enlarge.T
        generated = deoccluder.generator(small, whole_mask(self.shrink @ mask @ self.shrink.T))
        return mask, compose(face, self.enlarge @ generated @ self.enlarge.T, mask)

    def _embed(self, face: Tensor, completed_face: Tensor, mask: Tensor) -> Tensor:
        """As `Student.forward`, by the fixed crop."""
        student = self.student
        shown = completed_face if student.needs_completion else face
        image = torch.cat([shown] + [face] * (student.student_input == "both") + [mask] * student.mask_channel, 1)
        embedding = self._embed_crop(self.crop(image))
        if student.embedder.spec.mirror:
            embedding = (embedding + self._embed_crop(self.crop(image.flip(-1)))) / 2
        projected: Tensor = student.projection(embedding)
        return projected

    def _embed_crop(self, channels: Tensor) -> Tensor:
        embedder = self.student.embedder
        return embedder.embed_crop(channels[:, :3], channels[:, 3:] if embedder.extra_channels else None)


def _resizing(before: int, after: int) -> Tensor:
    """(after, before): the matrix of an antialiased bilinear resizing along one axis."""
    identity = torch.eye(before)[None, None]
    return F.interpolate(identity, (after, before), mode="bilinear", antialias=True, align_corners=False)[0, 0]
