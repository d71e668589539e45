"""Pair and triplet relations over the images of all processes: W processes with B images each act as one with W B.

Let L(e_1, ..., e_W) be a loss of the joined embeddings, e_r = f(theta; x_r) those of process r, and l_r what process r returns, such that
mean_r l_r = L. Gathering adds up, in its backward pass, what every process's loss sends to e_r: sum_q dl_q/de_r = W dL/de_r.
`DistributedDataParallel` then averages the parameters' gradients over processes,

    1/W sum_r (W dL/de_r) de_r/dtheta = dL/dtheta,

which is the gradient of one process on the joined batch. The pair loss is cheap, and every process returns it whole: l_r = L. The triplet
loss takes B W vertices of (B W)^2 angles each; a process takes the vertices that are its own images only: l_r = W times its share of L, so
that no angle is taken twice, and L is the mean of the values over processes, which is what to log.

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385: the relations. Whether the authors gather is not known; this is OURS.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from deocc.losses.relational import pair_relation_loss, triplet_relation_loss


def process_place() -> tuple[int, int]:
    """This process's rank and the number of processes of the default group; (0, 1) without a group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def rows_of(count: int, rank: int, processes: int) -> range:
    """Which of `count` rows a process holds: contiguous, in rank order, at most one more than another's, so that nothing is padded."""
    return range(rank * count // processes, (rank + 1) * count // processes)


def join_targets(targets: Tensor) -> Tensor:
    """The (B, ...) tensors of all processes, (W B, ...) in rank order, without a gradient; of one shape in all processes."""
    processes = process_place()[1]
    if processes == 1:
        return targets
    own = targets.contiguous()
    parts = [torch.empty_like(own) for _ in range(processes)]
    dist.all_gather(parts, own)
    return torch.cat(parts)


def sum_over_processes(addend: Tensor) -> Tensor:
    """The sum of all processes' tensors, of one shape; see the file's docstring for its gradient."""
    total: Tensor = _Sum.apply(addend)  # type: ignore[no-untyped-call]
    return total


def logsumexp_over_processes(logits: Tensor) -> Tensor:
    """log sum exp over the columns of all processes; see the file's docstring for its gradient.

    Args:
        logits: (N, n); N is the same in all processes, n need not be and may be 0. -inf counts for nothing.

    Returns:
        (N,); -inf for a row that holds nothing else.
    """
    total: Tensor = _LogSumExp.apply(logits)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, addend: Tensor) -> Tensor:
        return _reduced(addend.clone(memory_format=torch.contiguous_format), dist.ReduceOp.SUM)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        own = logits.logsumexp(1)
        largest = _finite(_reduced(own.clone(), dist.ReduceOp.MAX))
        total = largest + _reduced((own - largest).exp(), dist.ReduceOp.SUM).log()
        ctx.save_for_backward(logits, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        logits, total = ctx.saved_tensors
        softmax: Tensor = (logits - _finite(total)[:, None]).exp_()  # one buffer of the logits' size
        return softmax.mul_(upstream[:, None])


def _finite(value: Tensor) -> Tensor:
    """-inf becomes 0, so that what is subtracted from -inf leaves it -inf."""
    return torch.where(value == -torch.inf, torch.zeros_like(value), value)


def _reduced(value: Tensor, operation: Any) -> Tensor:
    """`value`, reduced in place over processes."""
    if process_place()[1] > 1:
        dist.all_reduce(value, operation)
    return value


def gather_embeddings(embedding: Tensor) -> Tensor:
    """The embeddings of all processes of the default group, in rank order; every process must call it.

    Args:
        embedding: (B, D), of the same shape in every process.

    Returns:
        (W B, D). Its gradient reaches the embeddings of every process, summed over processes. Without a process group, or in a group of
        one, the argument itself.

    Raises:
        ValueError: the batch sizes differ; raised in every process, so that none waits for another.
    """
    _, processes = process_place()
    if processes == 1:
        return embedding
    _check_sizes(embedding, processes)
    joined: Tensor = _Gather.apply(embedding)  # type: ignore[no-untyped-call]
    return joined


def gathered_pair_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`pair_relation_loss` over the images of all processes, the same value in each.

    Args:
        student: (B, D), this process's.
        teacher: (B, D'), of the same images.

    Returns:
        Scalar.

    Raises:
        ValueError: student and teacher, or the processes, differ in batch size.
    """
    return pair_relation_loss(gather_embeddings(student), gather_embeddings(teacher.detach()))


def gathered_triplet_relation_loss(
    student: Tensor, teacher: Tensor, chunk_size: int | None = None, max_vertices: int | None = None, turn: int = 0
) -> Tensor:
    """`triplet_relation_loss` over the images of all processes, each taking the angles at its own images.

    Args:
        student: (B, D), this process's.
        teacher: (B, D'), of the same images.
        chunk_size: see `triplet_relation_loss`.
        max_vertices: estimate from so many of this process's images at most, W times as many in all; None takes them all.
        turn: which share of them to take, see `triplet_relation_loss`; processes may differ in it.

    Returns:
        Scalar, W times this process's share; its mean over processes is the loss, or its estimate.

    Raises:
        ValueError: student and teacher, or the processes, differ in batch size, or the chunk size or the number of vertices is not
            positive.
    """
    rank, processes = process_place()
    B = len(student)
    own = slice(rank * B, (rank + 1) * B)
    joined = gather_embeddings(student), gather_embeddings(teacher.detach())
    return processes * triplet_relation_loss(*joined, chunk_size, own, max_vertices, turn)


class _Gather(torch.autograd.Function):
    """Concatenation over processes; `torch.distributed.nn` has it, but deprecated in favour of a private function."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor) -> Tensor:
        own = embedding.contiguous()
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        # An all-reduce and no reduce-scatter: every backend has it, and the tensor is small.
        summed = upstream.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed.chunk(dist.get_world_size())[dist.get_rank()]


def _check_sizes(embedding: Tensor, processes: int) -> None:
    """Raise ValueError in every process unless all have one batch size."""
    own = torch.tensor([len(embedding)], device=embedding.device)
    sizes = [torch.empty_like(own) for _ in range(processes)]
    dist.all_gather(sizes, own)
    counts = torch.cat(sizes).tolist()
    if len(set(counts)) > 1:
        listed = ", ".join(map(str, counts))
        raise ValueError(
            f"relations across processes need one batch size in all of them, got {listed}: pad or drop the last batch"
        )
