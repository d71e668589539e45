"""`IdentityLoss` for very many identities: each of W processes holds K / W rows of the classifier.

Every process gathers all W B embeddings and compares them with its own rows; the softmax runs over the rows of all
processes. With z the logits of `deocc.losses.identity`, z' those with margin, and Y the up to T identities mixed in a
face:

    L = -sum_{y in Y} share_y log( exp z'_y / (exp z'_y + sum_{k in Y, k != y} exp z_k + sum_{k not in Y} exp z_k) )

Only the last sum is large; it is computed once for all y. No term is subtracted from a sum, so nothing cancels.

With sampling, the last sum runs over a random subset of the identities, drawn at each step; the identities of the
global batch are always included. The excluded identities are ignored, as in the paper [1].

Every process returns the same L. The gradient of a row is that of one process with the whole batch and must not be
averaged over processes. The gradient of an embedding is multiplied by W, because `DistributedDataParallel` averages it.

[1] An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial FC",
    CVPR 2022; first "Partial FC: Training 10 Million Identities on a Single Machine", ICCV workshops 2021.
[2] github.com/deepinsight/insightface, `recognition/arcface_torch/partial_fc_v2.py`. Fills the positives of each
    process up to a fixed number of rows. Here each negative is included with probability `sample_share`, from random
    numbers equal on all processes, so that the sample does not depend on the number of processes; our choice.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deocc.losses.distances import check_positive, widen
from deocc.losses.distributed import all_gather, all_reduce, gather_embeddings, rows_of, sum_over_processes
from deocc.losses.identity import check_centers, check_margin, margin_cosine
from deocc.processes import rank_and_world_size


def sharded_identity_loss(
    embedding: Tensor,
    weight: Tensor,
    chosen: Tensor,
    identity: Tensor,
    share: Tensor,
    margin_type: str = "softmax",
    margin: float = 0.0,
    scale: float = 64.0,
) -> Tensor:
    """Cross-entropy over the chosen identities of all processes.

    Args:
        embedding: embeddings (N, D) of all processes, equal on every process.
        weight: classifier rows (n, D) of this process.
        chosen: identities (n,) int64 of these rows, ascending; n may be 0 and may differ between processes. Each
            element of `identity` is chosen by exactly one process.
        identity: (N, T) int64, the identities mixed in each face, equal on every process; repeated ones count as one.
        share: mixture weights (N, T).
        margin_type: see `IdentityLoss`, also for `margin` and `scale`.
        margin: size of the margin.
        scale: gamma > 0.

    Returns:
        Scalar loss, averaged over the N faces and equal on every process.

    Raises:
        ValueError: unknown margin type, or margin or scale out of range.
    """
    check_positive(scale=scale)
    weight = widen(weight)
    with torch.autocast(embedding.device.type, enabled=False):
        unit, directions = F.normalize(embedding.to(weight.dtype), dim=1), F.normalize(weight, dim=1)
        # Entries of `identity` whose row is on this process: sample, column and row.
        position = torch.searchsorted(chosen, identity.contiguous())
        sample, column = (F.pad(chosen, (0, 1), value=-1)[position] == identity).nonzero(as_tuple=True)
        row = position[sample, column]
        # Each true cosine is computed on one process; the others add 0.
        own_cosine = (unit[sample] * directions[row]).sum(1)
        cosine = sum_over_processes(unit.new_zeros(identity.shape).index_put((sample, column), own_cosine))
        # Log-sum-exp over all identities not in the face. The others get the lowest finite logit: -inf would give NaN
        # gradients where nothing else is left.
        logits = (scale * unit) @ directions.T
        lowest = logits.new_tensor(torch.finfo(logits.dtype).min)
        rest_logits = logits.index_put_((sample, row), lowest)
        own_rest: Tensor = _RowLogSumExp.apply(rest_logits)  # type: ignore[no-untyped-call]
        largest = all_reduce(own_rest, dist.ReduceOp.MAX)
        rest = largest + sum_over_processes((own_rest - largest).exp()).log()
        target, plain = scale * margin_cosine(cosine, margin_type, margin), scale * cosine
        # Log-sum-exp (N, T) over all identities, with the margin applied to one identity of the face at a time.
        same = identity[:, :, None] == identity[:, None, :]
        repeated = same.tril(-1).any(2)
        others = plain[:, None, :].masked_fill(same | repeated[:, None, :], -torch.inf)
        terms = [target[:, :, None], others, rest[:, None, None].expand(-1, identity.shape[1], 1)]
        losses = torch.cat(terms, 2).logsumexp(2) - target
        return (losses * share.to(losses.dtype)).sum(1).mean()


def choose_identities(identity: Tensor, num_identities: int, rows: range, sample_share: float, seed: int) -> Tensor:
    """Choose the identities of one process that take part in a step.

    Identities of the batch always take part, each other one with probability `sample_share`.

    Args:
        identity: int64 of any shape, the identities in the batches of all processes.
        num_identities: K.
        rows: identities held by the process.
        sample_share: in (0, 1]; 1 chooses all.
        seed: seed of the draw, equal on all processes.

    Returns:
        (n,) int64, ascending.
    """
    if sample_share == 1:
        return torch.arange(rows.start, rows.stop, device=identity.device)
    generator = torch.Generator(identity.device).manual_seed(seed)
    drawn = torch.rand(num_identities, generator=generator, device=identity.device) < sample_share
    drawn[identity.flatten()] = True
    return drawn[rows.start : rows.stop].nonzero()[:, 0] + rows.start


class ShardedIdentityLoss(nn.Module):
    """`sharded_identity_loss` with the classifier rows of this process; equal to `IdentityLoss` in a single process.

    The weight differs between processes, so `DistributedDataParallel` must ignore it (see
    `deocc.modules.identity_head`). Create it after the process group.

    Args:
        num_identities: K, the number of training identities over all processes.
        dim: D, the embedding dimension.
        margin_type: see `IdentityLoss`, also for `margin` and `scale`.
        margin: size of the margin.
        scale: gamma > 0.
        sample_share: fraction of the identities outside the batch that a step compares with; 1 takes all and is exact.

    Raises:
        ValueError: as `IdentityLoss`, fewer identities than processes, or `sample_share` outside (0, 1].
    """

    def __init__(
        self,
        num_identities: int,
        dim: int,
        margin_type: str = "softmax",
        margin: float = 0.0,
        scale: float = 64.0,
        sample_share: float = 1.0,
    ) -> None:
        super().__init__()
        rank, self.processes = rank_and_world_size()
        if num_identities < self.processes:
            raise ValueError(
                f"a sharded head needs an identity per process, got {num_identities} for {self.processes} processes"
            )
        if not 0 < sample_share <= 1:
            raise ValueError(f"sample_share must be in (0, 1], got {sample_share}")
        check_positive(dim=dim, scale=scale)
        check_margin(margin_type, margin)
        self.margin_type, self.margin, self.scale = margin_type, margin, scale
        self.num_identities, self.sample_share = num_identities, sample_share
        self.rows = rows_of(num_identities, rank, self.processes)
        generator = torch.Generator().manual_seed(rank)  # different rows on every process
        self.weight = nn.Parameter(torch.randn(len(self.rows), dim, generator=generator))

    @torch.no_grad()
    def initialise(self, centers: Tensor) -> None:
        """Copy the rows of this process from the identity centres (K, D).

        Raises:
            ValueError: the shape of `centers` is not (K, D).
        """
        check_centers(centers, (self.num_identities, self.weight.shape[1]))
        self.weight.copy_(centers[self.rows.start : self.rows.stop])

    def forward(self, embedding: Tensor, identity: Tensor, share: Tensor | None = None, seed: int = 0) -> Tensor:
        """Compute the loss of the global batch; every process must call it.

        Args:
            embedding: embeddings (B, D) of this process.
            identity: (B,) int64; with `share` (B, T), the identities mixed in each face.
            share: mixture weights (B, T); None for unmixed faces.
            seed: seed of the sampled identities, equal on all processes; for example the training step.

        Returns:
            Scalar loss, equal on every process.

        Raises:
            ValueError: shapes that do not match, an identity out of range, or batch sizes that differ between
                processes.
        """
        if share is None and identity.ndim == 1:
            identity = identity[:, None]
            share = torch.ones_like(identity, dtype=torch.float32)
        matches = embedding.ndim == identity.ndim == 2 and len(embedding) == len(identity)
        if share is None or not matches or share.shape != identity.shape:
            given = None if share is None else tuple(share.shape)
            raise ValueError(
                "expected embeddings (B, D) with identities (B,), or with identities and shares (B, T), got "
                f"{tuple(embedding.shape)}, {tuple(identity.shape)} and {given}"
            )
        joined = gather_embeddings(embedding)
        if joined.requires_grad and self.processes > 1:
            joined.register_hook(lambda gradient: self.processes * gradient)  # DistributedDataParallel averages it
        identity, share = all_gather(identity), all_gather(share)
        lowest, highest = int(identity.min()), int(identity.max())
        if lowest < 0 or highest >= self.num_identities:
            raise ValueError(
                f"identities must be in 0 to {self.num_identities - 1}, got {lowest} to {highest}: "
                "is this the training set of the head?"
            )
        chosen = choose_identities(identity, self.num_identities, self.rows, self.sample_share, seed)
        weight: Tensor = self.weight
        if self.sample_share < 1:
            weight = weight[chosen - self.rows.start]
        return sharded_identity_loss(joined, weight, chosen, identity, share, self.margin_type, self.margin, self.scale)


class _RowLogSumExp(torch.autograd.Function):
    """Log-sum-exp over dimension 1; the backward pass allocates one buffer of the logits' size, that of torch three."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        total = logits.logsumexp(1)
        ctx.save_for_backward(logits, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        logits, total = ctx.saved_tensors
        softmax: Tensor = (logits - total[:, None]).exp_()
        return softmax.mul_(upstream[:, None])
