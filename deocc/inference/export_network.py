"""The trained system as one traceable network: canonical crops in, `Outputs` out."""

import math
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.evaluation.thresholds import covered_share
from deocc.geometry import Template, canonical_to, invert_transform, transform_points
from deocc.inference.network import FaceNetwork
from deocc.networks.deoccluder import Deoccluder, whole_mask
from deocc.networks.embedders.embedder import Embedder, centred
from deocc.networks.generator import compose

_COARSE: Final = 1 / 1.5  # scale below which `deocc.geometry.warp` samples a smaller copy


class Outputs(NamedTuple):
    """The outputs of an exported file for B faces, by name.

    Attributes:
        completed_face: (B, 3, S, S) in [-1, 1].
        mask: (B, 1, S, S), 1 = covered.
        embedding: (B, D) unit vectors.
        covered: (B,) covered share of the face, in [0, 1], by which the threshold of a pair is chosen.
    """

    completed_face: Tensor
    mask: Tensor
    embedding: Tensor
    covered: Tensor


class FixedCrop(nn.Module):
    """`deocc.geometry.warp` from canonical crops of one size to a template, with a precomputed sampling grid.

    If the template is much coarser, the antialiased smaller copy is computed by two matrix products: resizing is linear
    along each axis, and not every runtime has an antialiased resize.

    Args:
        template: the template of the recogniser.
        canonical_size: side of the canonical crops in pixels.
    """

    grid: Tensor
    resize: Tensor | None

    def __init__(self, template: Template, canonical_size: int) -> None:
        super().__init__()
        matrix = canonical_to(template, canonical_size)
        scale = math.sqrt(float(torch.linalg.det(matrix[:, :2])))
        axis = torch.arange(template.size, dtype=torch.float32)
        targets = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
        sources = transform_points(targets, invert_transform(matrix))
        grid = (2 * sources + 1) / canonical_size - 1  # relative to the extent, which a smaller copy has in common
        self.register_buffer("grid", grid.reshape(1, template.size, template.size, 2))
        smaller = max(2, round(canonical_size * scale))
        self.register_buffer("resize", _resize_matrix(canonical_size, smaller) if scale < _COARSE else None)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, S, S) to (B, C, T, T), T = the template's size."""
        if self.resize is not None:
            image = self.resize @ image @ self.resize.T
        grid = self.grid.expand(image.shape[0], -1, -1, -1)
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


class ExportNetwork(nn.Module):
    """`FaceNetwork` for faces of one size with predicted masks, without operations that cannot be traced.

    If the de-occluder works at a smaller size, images are resized by products with fixed matrices, as in `FixedCrop`.

    Args:
        network: the network, whose weights are shared.
        size: side of the canonical crops in pixels.
    """

    center: Tensor
    shrink: Tensor | None
    enlarge: Tensor

    def __init__(self, network: FaceNetwork, size: int) -> None:
        super().__init__()
        self.deoccluder, self.student, self.teacher = network.deoccluder, network.student, network.teacher
        self.crop = FixedCrop(network.student.embedder.template, size)
        self.teacher_crop = FixedCrop(network.teacher.template, size) if network.teacher is not None else None
        work_size = size if network.deoccluder is None or network.deoccluder.size is None else network.deoccluder.size
        self.register_buffer("shrink", _resize_matrix(size, work_size) if work_size < size else None)
        self.register_buffer("enlarge", _resize_matrix(work_size, size))
        self.register_buffer("center", network.center)
        self.requires_grad_(False).eval()

    def forward(self, face: Tensor) -> tuple[Tensor, ...]:
        """Map canonical crops (B, 3, S, S) in [-1, 1], masked or not, to the fields of `Outputs`."""
        if self.deoccluder is None:
            mask, completed_face = torch.zeros_like(face[:, :1]), face.clone()
        else:
            mask, completed_face = self._complete(self.deoccluder, face)
        embedding = centred(self._embed(face, completed_face, mask), self.center)
        return tuple(Outputs(completed_face, mask, embedding, covered_share(mask)))

    def _complete(self, deoccluder: Deoccluder, face: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what `Deoccluder` does, whose inference mode and selection of images cannot be traced."""
        if self.shrink is None:
            mask = deoccluder.segmenter.predict_mask(face)
            return mask, compose(face, deoccluder.generator(face, whole_mask(mask)), mask)
        small = self.shrink @ face @ self.shrink.T
        mask = self.enlarge @ deoccluder.segmenter.predict_mask(small) @ self.enlarge.T
        generated = deoccluder.generator(small, whole_mask(self.shrink @ mask @ self.shrink.T))
        return mask, compose(face, self.enlarge @ generated @ self.enlarge.T, mask)

    def _embed(self, face: Tensor, completed_face: Tensor, mask: Tensor) -> Tensor:
        """Compute what `FaceNetwork` does with fixed crops; both networks embed every face."""
        student = self.student
        channels = [completed_face if student.needs_completion else face]
        if student.student_input == "both":
            channels.append(face)
        if student.mask_channel:
            channels.append(mask)
        embedding: Tensor = student.projection(_embed(student.embedder, self.crop, torch.cat(channels, 1)))
        if self.teacher is None or self.teacher_crop is None:
            return embedding
        masked = mask.flatten(1).amax(1, keepdim=True) > 0
        return torch.where(masked, embedding, _embed(self.teacher, self.teacher_crop, face))


def _embed(embedder: Embedder, crop: FixedCrop, image: Tensor) -> Tensor:
    """Compute what `Embedder.forward` does with a fixed crop."""

    def embed(image: Tensor) -> Tensor:
        channels = crop(image)
        return embedder.embed_crop(channels[:, :3], channels[:, 3:] if embedder.extra_channels else None)

    embedding = embed(image)
    return (embedding + embed(image.flip(-1))) / 2 if embedder.spec.mirror else embedding


def _resize_matrix(before: int, after: int) -> Tensor:
    """Return the (after, before) matrix of an antialiased bilinear resize along one axis."""
    identity = torch.eye(before)[None, None]
    return F.interpolate(identity, (after, before), mode="bilinear", antialias=True, align_corners=False)[0, 0]
