"""Relational losses over the global batch of W processes with B images each.

Let L be a loss of the joined embeddings (e_1, ..., e_W), and l_r the value that process r returns, with mean_r l_r = L.
The backward pass of `gather_embeddings` sums over processes, so that e_r receives sum_q dl_q/de_r = W dL/de_r.
`DistributedDataParallel` averages the parameters' gradients over processes,

    1/W sum_r (W dL/de_r) de_r/dtheta = dL/dtheta,

which equals the gradient of one process with the whole batch. The pair loss is cheap: every process computes all of it,
l_r = L. The triplet loss is split: a process compares the angles at its own images only and returns W times that part,
so l_r differs between processes and its mean is L.

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385. Whether the authors gather is not known; our choice.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from deocc.losses.relational import pair_relation_loss, triplet_relation_loss
from deocc.processes import rank_and_world_size


def rows_of(count: int, rank: int, processes: int) -> range:
    """Return the contiguous part of `count` rows that belongs to `rank`; parts differ in length by at most one."""
    return range(rank * count // processes, (rank + 1) * count // processes)


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum tensors of equal shape over processes; the gradient reaches the tensor of this process only."""
    total: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return total


def gather_embeddings(embedding: Tensor) -> Tensor:
    """Concatenate the embeddings of all processes in rank order; every process must call it.

    Args:
        embedding: (B, D), of equal shape on every process.

    Returns:
        (W B, D); its gradient is summed over processes and flows to the embeddings of every process. The argument
        itself in a single process.

    Raises:
        ValueError: batch sizes differ; raised on every process, so that none waits for another.
    """
    if rank_and_world_size()[1] == 1:
        return embedding
    sizes = all_gather(torch.tensor([len(embedding)], device=embedding.device)).tolist()
    if len(set(sizes)) > 1:
        listed = ", ".join(map(str, sizes))
        raise ValueError(f"relations across processes need equal batch sizes, got {listed}: pad or drop the last batch")
    joined: Tensor = _Gather.apply(embedding)  # type: ignore[no-untyped-call]
    return joined


def gathered_pair_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute `pair_relation_loss` over the images of all processes.

    Args:
        student: embeddings (B, D) of this process.
        teacher: embeddings (B, D') of the same images.

    Returns:
        Scalar loss, equal on every process.

    Raises:
        ValueError: batch sizes differ between student and teacher or between processes.
    """
    return pair_relation_loss(gather_embeddings(student), gather_embeddings(teacher.detach()))


def gathered_triplet_relation_loss(
    student: Tensor, teacher: Tensor, max_anchors: int | None = None, step: int = 0
) -> Tensor:
    """Compute `triplet_relation_loss` over the images of all processes; each handles the angles at its own images.

    Args:
        student: embeddings (B, D) of this process.
        teacher: embeddings (B, D') of the same images.
        max_anchors: largest number of images of this process at which angles are compared; None uses all.
        step: index of the subset of anchors, see `triplet_relation_loss`; may differ between processes.

    Returns:
        Scalar: W times the part of this process. The mean over processes is the loss, or its estimate.

    Raises:
        ValueError: batch sizes differ, or `max_anchors` is not positive.
    """
    rank, processes = rank_and_world_size()
    batch_size = len(student)
    own = slice(rank * batch_size, (rank + 1) * batch_size)
    joined_student, joined_teacher = gather_embeddings(student), gather_embeddings(teacher.detach())
    return processes * triplet_relation_loss(joined_student, joined_teacher, own, max_anchors, step)


class _Gather(torch.autograd.Function):
    """Differentiable all-gather; the one of `torch.distributed.nn` is deprecated."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor) -> Tensor:
        return all_gather(embedding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        rank, processes = rank_and_world_size()
        # Unlike reduce-scatter, all-reduce is supported by every backend.
        return all_reduce(upstream, dist.ReduceOp.SUM).chunk(processes)[rank]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return all_reduce(value, dist.ReduceOp.SUM)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream


def all_reduce(value: Tensor, operation: Any) -> Tensor:
    """Return a copy of `value` reduced over processes, without gradient."""
    reduced = value.detach().clone(memory_format=torch.contiguous_format)
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(reduced, operation)
    return reduced


def all_gather(value: Tensor) -> Tensor:
    """Concatenate tensors (B, ...) of equal shape over processes to (W B, ...), in rank order and without gradient."""
    own = value.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(rank_and_world_size()[1])]
    if len(parts) == 1:
        return own
    dist.all_gather(parts, own)
    return torch.cat(parts)
