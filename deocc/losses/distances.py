"""Distances and angles within a batch, in memory that does not depend on the embedding dimension.

With S_ij = |e_i - e_j|^2 and the law of cosines (the Gram form of an inner product of differences), the angle at vertex i is

    cos(i; j, k) = (S_ij + S_ik - S_jk) / (2 sqrt(S_ij S_ik)),

so no tensor needs the dimension D beside B x B, and the triples are taken in pieces that fit a cache, in buffers that all pieces share.
Since the loss is a scalar, dL/dS is summed in the forward pass, and B x B is all that is kept for the backward one. OURS: Park et al. [1]
and their code [2] build B x B x D differences.

[1] Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 8 and 9.
[2] github.com/lenscloth/RKD.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def loss_dtype(tensor: Tensor) -> torch.dtype:
    """float32 for tensors of float32 or less, float64 for float64: no loss is summed in half precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


def widen(tensor: Tensor) -> Tensor:
    """The tensor in its `loss_dtype`, differentiably."""
    return tensor.to(loss_dtype(tensor))


COINCIDENT = 1e-6
"""OURS: two images whose squared distance is at most this share of the batch's mean squared distance have no direction between them.

A direction between embeddings 1000 times closer than the batch's own extent is rounding, and its gradient grows as one over the distance.
"""

CHUNK_ELEMENTS = {"cpu": 2**19}
"""Triples taken at a time, 2 MiB a buffer in float32: with fewer, calls cost too much; more leave the cache. Measured. OURS."""

DEVICE_CHUNK_ELEMENTS = 2**24
"""The same elsewhere: enough work for one launch, 64 MiB a buffer."""


def squared_distances(embedding: Tensor) -> Tensor:
    """All squared distances of a batch, differentiably, exactly 0 between coincident embeddings.

    Args:
        embedding: (B, D), any floating type.

    Returns:
        (B, B), float64 (float32 on MPS, which has no float64), whatever the autocast state.
    """
    # In float32 the Gram matrix's rounding hides the distance of two unit vectors with cosine .9999.
    wide = embedding.to(_widest(embedding))
    with torch.autocast(embedding.device.type, enabled=False):
        centred = wide - wide.mean(0)  # leaves distances alone and makes the norms, hence the rounding, smaller
        gram = centred @ centred.T
        norms = gram.diagonal()[:, None] + gram.diagonal()
        squared = norms - 2 * gram
        return torch.where(squared <= 64 * torch.finfo(gram.dtype).eps * norms, torch.zeros_like(squared), squared)


def distances(squared: Tensor) -> Tensor:
    """Square roots of (B, B) squared distances; where a distance is 0 so is its gradient, where that of a square root would be infinite."""
    zero = squared == 0
    return torch.where(zero, torch.zeros_like(squared), torch.where(zero, torch.ones_like(squared), squared).sqrt())


def angle_difference(
    student: Tensor, teacher: Tensor, chunk_size: int | None = None, vertices: slice | None = None
) -> Tensor:
    """Huber_1 of the difference of two batches' angle cosines, mean over all ordered triples of three different images.

    A triple in which an image coincides with the vertex (see `COINCIDENT`), in either batch, has no angle and adds nothing.

    Args:
        student: (B, B) squared distances, in units of their own mean; takes the gradient.
        teacher: (B, B) squared distances, in units of their own mean, of the same type; takes none.
        chunk_size: vertices taken at a time; None picks it from B and the device.
        vertices: the images at which angles are taken; None takes all.

    Returns:
        Scalar of the same type, the sum at these vertices over the number of all triples; 0 for fewer than three images.

    Raises:
        ValueError: the chunk size is not positive.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be a positive number of vertices or None, got {chunk_size}")
    taken = range(len(student))[vertices or slice(None)]
    if chunk_size is None:
        chunk_size = max(1, _chunk_elements(student) // max(1, student.numel()))
    chunk_size = min(chunk_size, max(1, len(taken)))
    with torch.autocast(student.device.type, enabled=False):
        loss: Tensor = _AngleDifference.apply(student, teacher.detach(), taken, chunk_size)  # type: ignore[no-untyped-call]
    return loss


class _AngleDifference(torch.autograd.Function):
    """The mean and, in the same pass, its gradient with respect to the student's squared distances."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, vertices: range, chunk_size: int) -> Tensor:
        B = len(student)
        apart = (student > COINCIDENT) & (teacher > COINCIDENT)
        inverses = [torch.where(apart, s.rsqrt(), torch.zeros_like(s)) for s in (student, teacher)]
        # The total of a large batch's many pieces would lose its fifth digit in float32.
        total, gradient = student.new_zeros((), dtype=_widest(student)), torch.zeros_like(student)
        at_once = min(B, max(1, _chunk_elements(student) // max(1, chunk_size * B)))
        buffers = student.new_empty(3, chunk_size * at_once * B)
        for rows, arms in _pieces(vertices, chunk_size, B, at_once):
            ours, theirs = (
                Angles.at(s, inverse, rows, arms) for s, inverse in zip((student, teacher), inverses, strict=True)
            )
            loss, beside = piece(ours, theirs, gradient[arms], buffers[:, : ours.numel()])
            gradient[rows, arms] += beside
            total += loss
        triples = max(1, B * (B - 1) * (B - 2))
        ctx.save_for_backward(gradient.div_(triples))
        return (total / triples).to(student.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None


class Angles(NamedTuple):
    """What the angles at c vertices i are made of, between a first arms j and all B second arms k."""

    first: Tensor
    """(c, a, 1) S_ij."""
    second: Tensor
    """(c, 1, B) S_ik."""
    opposite: Tensor
    """(a, B) S_jk."""
    first_inverse: Tensor
    """(c, a, 1) 1 / D_ij, 0 where i and j coincide."""
    second_inverse: Tensor
    """(c, 1, B) 1 / D_ik, 0 where i and k coincide."""

    @classmethod
    def at(cls, squared: Tensor, inverse: Tensor, rows: slice, arms: slice) -> Self:
        """Those at the vertices `rows` with the first arms `arms`, of a batch's (B, B) squared distances and inverse distances."""
        near, scale = squared[rows], inverse[rows]
        return cls(near[:, arms, None], near[:, None], squared[arms], scale[:, arms, None], scale[:, None])

    def numel(self) -> int:
        """The number of angles."""
        return self.first.numel() * self.second.shape[-1]

    def cosines(self, out: Tensor) -> Tensor:
        """(c, a, B), in `out`; 0 where there is no angle. Element by element: products of such thin matrices take several times as long."""
        torch.sub(self.second, self.opposite, out=out)
        return out.add_(self.first).mul_(self.first_inverse / 2).mul_(self.second_inverse)


def piece(student: Angles, teacher: Angles, gradient: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
    """The Huber sum over the triples of one piece, and its share of dL/dS.

    With slope = Huber'(difference), dcos/dS_jk = -1 / (2 D_ij D_ik) and dcos/dS_ij = 1 / (2 D_ij D_ik) - cos / (2 S_ij). S_ij and S_ik
    change places with j and k, so that taking the one twice counts both.

    Args:
        student: its angles.
        teacher: its angles at the same triples.
        gradient: (a, B), to which sum_i dL/dS_jk is added, in place.
        buffers: (3, c a B), overwritten.

    Returns:
        The sum, a scalar, and (c, a) sum_k dL/dS_ij.
    """
    c, a, _ = student.first.shape
    cosine, difference, slope = buffers.view(3, c, a, -1)
    student.cosines(out=cosine)
    torch.sub(cosine, teacher.cosines(out=difference), out=difference)  # 0 at j = k, where both cosines are 1
    torch.clamp(difference, -1, 1, out=slope)
    loss = torch.dot(slope.flatten(), difference.flatten()) - torch.dot(slope.flatten(), slope.flatten()) / 2
    along = cosine.mul_(slope).sum(-1) * student.first_inverse[..., 0].square()
    flow = slope.mul_(student.first_inverse).mul_(student.second_inverse)
    gradient.view(-1).addmv_(flow.flatten(1).T, flow.new_full((c,), -0.5))
    return loss, flow.sum(-1) - along


def _pieces(vertices: range, chunk_size: int, size: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Vertices i and first arms j of every piece; with all of the arms, a vertex of a large batch would leave the cache."""
    for start in range(0, len(vertices), chunk_size):
        chunk = vertices[start : start + chunk_size]
        for first in range(0, size, at_once):
            yield slice(chunk.start, chunk.stop, chunk.step), slice(first, min(first + at_once, size))


def _chunk_elements(squared: Tensor) -> int:
    """Triples of a piece."""
    return CHUNK_ELEMENTS.get(squared.device.type, DEVICE_CHUNK_ELEMENTS)


def _widest(tensor: Tensor) -> torch.dtype:
    """The widest floating type of the tensor's device."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
