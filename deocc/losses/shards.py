"""Sums over identities that lie in pieces on W processes, each of which goes on with the same loss of the sum.

Every process computes the same loss L from the sums, and each sends the same slope dL/dsum back to what it alone put in: so an addend's
gradient is that of one process holding all pieces, and nothing is exchanged in the backward pass.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


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
