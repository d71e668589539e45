"""Distances and angles within a batch, in memory that does not depend on the embedding dimension.

With S_ij = |e_i - e_j|^2 and the law of cosines (the Gram form of an inner product of differences), the angle at vertex i is

    cos(i; j, k) = (S_ij + S_ik - S_jk) / (2 sqrt(S_ij S_ik)),

so no tensor needs the dimension D beside B x B, and vertices are taken in chunks. Since the loss is a scalar, dL/dS is summed in the
forward pass, and B x B is all that is kept for the backward one. OURS: Park et al. [1] and their code [2] build B x B x D differences.

[1] Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 8 and 9.
[2] github.com/lenscloth/RKD.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

COINCIDENT = 1e-6
"""OURS: two images whose squared distance is at most this share of the batch's mean squared distance have no direction between them.

A direction between embeddings 1000 times closer than the batch's own extent is rounding, and its gradient grows as one over the distance.
"""

CHUNK_ELEMENTS = {"cpu": 2**18}  # 1 MiB in float32: a chunk's few buffers stay in a core's cache
DEVICE_CHUNK_ELEMENTS = 2**24  # elsewhere: enough work for one launch, 64 MiB a buffer


def squared_distances(embedding: Tensor) -> Tensor:
    """All squared distances of a batch, differentiably, exactly 0 between coincident embeddings.

    Args:
        embedding: (B, D), any floating type.

    Returns:
        (B, B), float64 (float32 on MPS, which has no float64), whatever the autocast state.
    """
    # In float32 the Gram matrix's rounding hides the distance of two unit vectors with cosine .9999.
    wide = embedding.to(torch.float32 if embedding.device.type == "mps" else torch.float64)
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


def angle_difference(student: Tensor, teacher: Tensor, chunk_size: int | None = None, vertices: slice | None = None) -> Tensor:
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
    if chunk_size is None:
        budget = CHUNK_ELEMENTS.get(student.device.type, DEVICE_CHUNK_ELEMENTS)
        chunk_size = max(1, budget // max(1, student.numel()))
    taken = range(len(student))[vertices or slice(None)]
    with torch.autocast(student.device.type, enabled=False):
        loss: Tensor = _AngleDifference.apply(student, teacher.detach(), taken, chunk_size)  # type: ignore[no-untyped-call]
    return loss


class _AngleDifference(torch.autograd.Function):
    """The mean and, in the same pass, its gradient with respect to the student's squared distances."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, vertices: range, chunk_size: int) -> Tensor:
        B = len(student)
        apart = (student > COINCIDENT) & (teacher > COINCIDENT)
        inverse_student, inverse_teacher = (torch.where(apart, s.rsqrt(), torch.zeros_like(s)) for s in (student, teacher))
        total, gradient = student.new_zeros(()), torch.zeros_like(student)
        for start in range(0, len(vertices), chunk_size):
            chunk = vertices[start : start + chunk_size]
            rows = slice(chunk.start, chunk.stop, chunk.step)
            difference, weight = _chunk(student, inverse_student, rows)
            difference -= _chunk(teacher, inverse_teacher, rows)[0]  # 0 at j = k, where both cosines are 1
            slope = difference.clamp(-1, 1)
            total += torch.dot(slope.flatten(), difference.flatten()) - torch.dot(slope.flatten(), slope.flatten()) / 2
            if ctx.needs_input_grad[0]:
                _accumulate(gradient, slope.mul_(weight), student, inverse_student, rows)
        triples = max(1, B * (B - 1) * (B - 2))
        ctx.save_for_backward(gradient.div_(triples))
        return total / triples

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None


def _chunk(squared: Tensor, inverse: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Cosines (c, j, k) at the vertices `rows`, and their denominators' inverses 1 / sqrt(S_ij S_ik)."""
    r = inverse[rows]
    d = squared[rows] * r
    weight = r[:, :, None] * r[:, None, :]
    # (S_ij + S_ik) / (D_ij D_ik) is a product of rank two: one pass over the chunk instead of three.
    cosine = torch.stack([d, r], -1) @ torch.stack([r, d], -2)
    return cosine.addcmul_(weight, squared, value=-1).mul_(0.5), weight


def _accumulate(gradient: Tensor, flow: Tensor, squared: Tensor, inverse: Tensor, rows: slice) -> None:
    """Add a chunk's share of dL/dS, where flow_ijk = Huber'(difference_ijk) / sqrt(S_ij S_ik), symmetric in j and k.

    dL/dS_jk = -1/2 sum_i flow_ijk, and dL/dS_ij = 1/2 sum_k flow_ijk (1 - (S_ik - S_jk) / S_ij), both S_ij and S_ik counted.
    """
    gradient.sub_(flow.sum(0), alpha=0.5)
    near = torch.stack([torch.ones_like(squared[rows]), squared[rows]], -1)
    sums, weighted = (flow @ near).unbind(-1)  # (c, j, k) x (c, k, 2)
    across = (flow.transpose(0, 1) @ squared[:, :, None]).squeeze(-1).T  # (j, c, k) x (j, k, 1)
    gradient[rows] += 0.5 * (sums - inverse[rows].square() * (weighted - across))
