"""Pairwise distances and angles of a batch in O(B^2) memory, independent of the embedding dimension.

With S_ij = |e_i - e_j|^2 and D_ij = sqrt(S_ij), the law of cosines gives the cosine of the angle at anchor i,

    cos(i; j, k) = (S_ij + S_ik - S_jk) / (2 D_ij D_ik).

Park et al. [1] and their code [2] build B x B x D differences instead. Here all B^3 angles follow from the B x B matrix
S and are processed in pieces that fit into the cache and reuse the same buffers. Because the loss is a scalar, its
gradient with respect to S is accumulated during the forward pass, and only that B x B matrix is kept for the backward
pass.

[1] Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 8 and 9.
[2] github.com/lenscloth/RKD.
"""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Largest squared distance of coincident images, as a fraction of the batch mean; no angle is defined between them.
# Their direction is dominated by rounding, and its gradient grows as 1 / distance. The value is our choice.
COINCIDENT = 1e-6
CHUNK_ELEMENTS = {"cpu": 2**19}  # triples per piece on a device type; 2 MiB per float32 buffer, the measured optimum
DEVICE_CHUNK_ELEMENTS = 2**24  # triples per piece on all other devices; 64 MiB per float32 buffer


def loss_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which losses of `tensor` are computed: float64 for float64, otherwise float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def widen(tensor: Tensor) -> Tensor:
    """Cast half-precision tensors to float32, so that no loss is summed in half precision; differentiable."""
    return tensor.to(loss_dtype(tensor))


def check_positive(**values: float) -> None:
    """Raise ValueError unless all values are positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def squared_distances(embedding: Tensor) -> Tensor:
    """Compute the squared distances (B, B) of embeddings (B, D); differentiable once.

    They are exactly 0 between coincident embeddings, and in float64 (float32 on MPS) regardless of autocast: in float32
    the rounding error of the Gram matrix hides the distance of two unit vectors with cosine 0.9999. The gradient has
    the dtype of the losses, since its error is that of rounding the embeddings.
    """
    squared: Tensor = _SquaredDistances.apply(embedding)  # type: ignore[no-untyped-call]
    return squared


class _SquaredDistances(torch.autograd.Function):
    """Squared distances with a gradient that takes one matrix product, where autograd takes two."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor) -> Tensor:
        wide = embedding.to(_widest_dtype(embedding))
        centred = wide - wide.mean(0)  # smaller norms, hence smaller rounding errors; distances do not change
        # gram = centred @ centred.T, whose lower left quarter is copied: this saves a quarter of the products.
        half = len(centred) // 2
        gram = centred.new_empty(len(centred), len(centred))
        with torch.autocast(embedding.device.type, enabled=False):
            torch.mm(centred[:half], centred.T, out=gram[:half])
            torch.mm(centred[half:], centred[half:].T, out=gram[half:, half:])
        gram[half:, :half] = gram[:half, half:].T
        size = gram.trace().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        norms = gram.diagonal()[:, None] + gram.diagonal()
        squared = torch.sub(norms, gram, alpha=2, out=gram)
        rounding = norms.mul_(64 * torch.finfo(gram.dtype).eps)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(centred.to(loss_dtype(embedding)), size)
            ctx.dtype = embedding.dtype
        return squared.masked_fill_(squared <= rounding, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        """Return dL/de_i = 2 sum_j w_ij (e_i - e_j) with w_ij = dL/dS_ij + dL/dS_ji."""
        centred, size = ctx.saved_tensors
        # The weights of tiny embeddings, which grow as 1 / size^2, would exceed the range of float32.
        weight = (upstream + upstream.T).mul_(size * size).to(centred.dtype)
        weight.diagonal().sub_(weight.sum(1))
        with torch.autocast(centred.device.type, enabled=False):
            gradient: Tensor = (weight @ centred).mul_(-2)
        return gradient.div_(size).div_(size).to(ctx.dtype)


class DistanceDifference(torch.autograd.Function):
    """Huber loss between the relative distances of two batches, with its gradient computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        """Average over pairs of different images, given squared distances (B, B) of one dtype; 0 for a batch of one.

        Distances are divided by their mean over these pairs. Only the student receives a gradient, 0 at distance 0.
        """
        pairs, tiny = max(1, len(student) * (len(student) - 1)), torch.finfo(student.dtype).tiny
        ours, theirs = student.sqrt(), teacher.sqrt()
        our_mean, their_mean = ((each.sum() / pairs).clamp_min(tiny) for each in (ours, theirs))
        relative = ours / our_mean
        difference = torch.sub(relative, theirs.div_(their_mean), out=theirs)
        slope = torch.clamp(difference, -1, 1)  # h = Huber'(x) = clamp(x, -1, 1)
        # Huber(x) = h x - h^2 / 2
        loss = torch.dot(slope.flatten(), difference.flatten()) - torch.dot(slope.flatten(), slope.flatten()) / 2
        # dL/dS_ij = (h_ij - sum h D / (pairs mean)) / (2 D_ij pairs mean), where the sum is due to the mean
        through_mean = torch.dot(slope.flatten(), relative.flatten()) / pairs
        gradient = slope.sub_(through_mean).div_(ours).masked_fill_(student == 0, 0)
        ctx.save_for_backward(gradient.mul_(0.5 / (pairs * our_mean)))
        return loss / pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """Scale the gradient."""
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None


class Angles(NamedTuple):
    """Inputs of the angles at c anchors i between a first arms j and all B second arms k."""

    first: Tensor  # S_ij (c, a, 1)
    second: Tensor  # S_ik (c, 1, B)
    opposite: Tensor  # S_jk (a, B)
    first_inverse: Tensor  # 1 / D_ij (c, a, 1), 0 where i and j coincide
    second_inverse: Tensor  # 1 / D_ik (c, 1, B), 0 where i and k coincide

    @classmethod
    def at(cls, squared: Tensor, inverse: Tensor, rows: slice, arms: slice) -> Self:
        """Select anchors `rows` and first arms `arms` from squared and inverse distances (B, B)."""
        near, scale = squared[rows], inverse[rows]
        return cls(near[:, arms, None], near[:, None], squared[arms], scale[:, arms, None], scale[:, None])

    def cosines(self, out: Tensor) -> Tensor:
        """Write the cosines (c, a, B) to `out`; 0 where no angle is defined."""
        # (S_ik - S_jk + S_ij) / (2 D_ij) / D_ik, elementwise: products of such thin matrices take several times as long
        torch.sub(self.second, self.opposite, out=out)
        return out.add_(self.first).mul_(self.first_inverse / 2).mul_(self.second_inverse)


def piece(student: Angles, teacher: Angles, gradient: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the Huber sum over the triples of one piece and its gradient (c, a) by S_ij, summed over k.

    The gradient (a, B) by S_jk, summed over i, is added to `gradient`; `buffers` (3, c a B) are overwritten.

    With h = Huber'(cos^s - cos^t), both follow from dcos/dS_jk = -1 / (2 D_ij D_ik) and
    dcos/dS_ij = 1 / (2 D_ij D_ik) - cos / (2 S_ij). The derivative by S_ik is the same with j and k exchanged, so
    doubling the derivative by S_ij accounts for both.
    """
    c, a, _ = student.first.shape
    cosine, difference, slope = buffers.view(3, c, a, -1)
    student.cosines(out=cosine)
    torch.sub(cosine, teacher.cosines(out=difference), out=difference)  # 0 at j = k, where both cosines are 1
    torch.clamp(difference, -1, 1, out=slope)  # h = Huber'(x) = clamp(x, -1, 1)
    # Huber(x) = h x - h^2 / 2
    loss = torch.dot(slope.flatten(), difference.flatten()) - torch.dot(slope.flatten(), slope.flatten()) / 2
    # sum_k h cos / S_ij
    along = cosine.mul_(slope).sum(-1) * student.first_inverse[..., 0].square()
    # h / (D_ij D_ik)
    flow = slope.mul_(student.first_inverse).mul_(student.second_inverse)
    # dL/dS_jk += sum_i -h / (2 D_ij D_ik), as a matrix-vector product
    gradient.view(-1).addmv_(flow.flatten(1).T, flow.new_full((c,), -0.5))
    return loss, flow.sum(-1) - along


class AngleDifference(torch.autograd.Function):
    """Huber loss between the angle cosines of two batches, with its gradient computed in the forward pass.

    Triples in which an image coincides with the anchor in either batch (see `COINCIDENT`) contribute 0.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, anchors: range) -> Tensor:
        """Sum over triples of different images with these anchors, divided by the number of all triples of the batch.

        `student` and `teacher` are squared distances (B, B) of one dtype, divided by their mean; only the student
        receives a gradient. The sum is 0 for fewer than three images.
        """
        size = len(student)
        apart = (student > COINCIDENT) & (teacher > COINCIDENT)
        student_inverse, teacher_inverse = (s.rsqrt().masked_fill(~apart, 0) for s in (student, teacher))
        gradient = torch.zeros_like(student)
        total = student.new_zeros((), dtype=_widest_dtype(student))  # float32 loses the fifth digit over many pieces
        elements = CHUNK_ELEMENTS.get(student.device.type, DEVICE_CHUNK_ELEMENTS)
        anchors_at_once = max(1, min(len(anchors), elements // max(1, size * size)))
        # With all arms at once, even a single anchor of a large batch would not fit into the cache.
        arms_at_once = max(1, min(size, elements // max(1, anchors_at_once * size)))
        buffers = student.new_empty(3, anchors_at_once * arms_at_once * size)
        for start in range(0, len(anchors), anchors_at_once):
            chunk = anchors[start : start + anchors_at_once]
            rows = slice(chunk.start, chunk.stop, chunk.step)
            for first in range(0, size, arms_at_once):
                arms = slice(first, min(first + arms_at_once, size))
                ours = Angles.at(student, student_inverse, rows, arms)
                theirs = Angles.at(teacher, teacher_inverse, rows, arms)
                used = buffers[:, : ours.first.numel() * size]
                loss, anchor_gradient = piece(ours, theirs, gradient[arms], used)
                gradient[rows, arms] += anchor_gradient
                total += loss
        triples = max(1, size * (size - 1) * (size - 2))
        ctx.save_for_backward(gradient.div_(triples))
        return (total / triples).to(student.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient."""
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None


def _widest_dtype(tensor: Tensor) -> torch.dtype:
    """Return float64, or float32 on MPS, which lacks it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
