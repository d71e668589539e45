"""The task loss of `deocc.losses.identity` for very many identities: every one of W processes holds K / W of the classifier's rows.

All processes see all W B embeddings and compare them with their own rows; the softmax is over the rows of all. With y a sample's own
identity, z its logits (see `deocc.losses.identity`), z'_y the one with the margin, and Y the up to T people of a blended face,

    L = -sum_{y in Y} share_y log( exp z'_y / (exp z'_y + sum_{k in Y, k != y} exp z_k + sum_{k not in Y} exp z_k) ),

whose last sum is the only one with many terms and is taken once for all y. Nothing is subtracted from a sum, so nothing cancels.

Sampling: the last sum runs over a random share of the identities, drawn anew every step; the identities of the global batch are always
there. No term stands in for those left out, as in the paper [1].

Gradients: every process returns the same L. A row's gradient is that of one process with the whole batch and must not be averaged over
processes. An embedding's is W times that, since `DistributedDataParallel` averages what follows from it (see `deocc.losses.gathering`).

[1] An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial FC", CVPR 2022; first
    "Partial FC: Training 10 Million Identities on a Single Machine", ICCV workshops 2021.
[2] github.com/deepinsight/insightface, `recognition/arcface_torch/partial_fc_v2.py`: fills every process's positives up to a fixed number
    of rows. OURS takes each negative with the probability `sample_share`, by numbers that all processes draw alike, so that the sample does
    not depend on how many processes there are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.losses.distances import widen
from deocc.losses.distributed import (
    gather_embeddings,
    join_targets,
    logsumexp_over_processes,
    process_place,
    rows_of,
    sum_over_processes,
)
from deocc.losses.identity import check_margin, check_scale, margin_cosine


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
    """Cross-entropy over the chosen identities of all processes, the same value in each.

    Args:
        embedding: (N, D), those of all processes, alike in each.
        weight: (n, D), this process's rows.
        chosen: (n,) int64, which identities they are, rising; n may differ between processes and be 0. Each of `identity` is among
            the chosen of exactly one process.
        identity: (N, T) int64, the people that a face is made of, alike in every process; repeated ones count as one person.
        share: (N, T), by which shares.
        margin_type: softmax, cosface or arcface.
        margin: see `deocc.losses.margin_logits`.
        scale: gamma > 0.

    Returns:
        Scalar, mean over the N samples.

    Raises:
        ValueError: unknown margin type, or margin or scale out of range.
    """
    check_margin(margin_type, margin)
    check_scale(scale)
    weight = widen(weight)
    with torch.autocast(embedding.device.type, enabled=False):
        unit, directions = F.normalize(embedding.to(weight.dtype), dim=1), F.normalize(weight, dim=1)
        position = torch.searchsorted(chosen, identity.contiguous())
        image, place = (F.pad(chosen, (0, 1), value=-1)[position] == identity).nonzero(as_tuple=True)
        row = position[image, place]
        cosine = (unit[image] * directions[row]).sum(1)
        target = sum_over_processes(unit.new_zeros(identity.shape).index_put((image, place), cosine))
        logits = (scale * unit) @ directions.T
        rest = logsumexp_over_processes(logits.index_put_((image, row), logits.new_tensor(-torch.inf)))
        own = scale * margin_cosine(target, margin_type, margin)
        losses = _logsumexp_of_all(own, scale * target, rest, identity) - own
        return (losses * share.to(losses.dtype)).sum(1).mean()


def choose_identities(identity: Tensor, num_identities: int, rows: range, sample_share: float, seed: int) -> Tensor:
    """Which of a process's identities take part in a step: those of the batch, and each other one with the probability `sample_share`.

    Args:
        identity: int64 of any shape, the identities of the batch of all processes.
        num_identities: K.
        rows: which identities the process holds.
        sample_share: in (0, 1]; 1 takes all.
        seed: of the draw; the same in all processes.

    Returns:
        (n,) int64, rising.
    """
    if sample_share == 1:
        return torch.arange(rows.start, rows.stop, device=identity.device)
    generator = torch.Generator(identity.device).manual_seed(seed)
    drawn = torch.rand(num_identities, generator=generator, device=identity.device) < sample_share
    drawn[identity.flatten()] = True
    return drawn[rows.start : rows.stop].nonzero()[:, 0] + rows.start


class ShardedIdentityLoss(nn.Module):
    """`sharded_identity_loss` with this process's rows of the classifier; in one process with all identities, `IdentityLoss`.

    Its weight differs from process to process: `deocc.modules.identity_head` keeps `DistributedDataParallel` from it. With sampling, its
    gradient is sparse: the rows that took part. Build it after the process group.

    Args:
        num_identities: K, people in the training set, of all processes together.
        dim: D, the embedding's dimension.
        margin_type: softmax, cosface or arcface.
        margin: see `deocc.losses.margin_logits`.
        scale: gamma > 0.
        sample_share: the share of the other identities that a step compares with; 1 takes all and is exact.

    Raises:
        ValueError: as `IdentityLoss`, fewer identities than processes, or a share out of (0, 1].
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
        rank, self.processes = process_place()
        if num_identities < self.processes or dim < 1:
            raise ValueError(
                f"a sharded head needs an identity a process and a positive dim, got num_identities {num_identities}, "
                f"{self.processes} processes and dim {dim}"
            )
        if not 0 < sample_share <= 1:
            raise ValueError(f"sample_share must lie in (0, 1], got {sample_share}")
        check_margin(margin_type, margin)
        check_scale(scale)
        self.margin_type, self.margin, self.scale = margin_type, margin, scale
        self.num_identities, self.sample_share = num_identities, sample_share
        self.rows = rows_of(num_identities, rank, self.processes)
        generator = torch.Generator().manual_seed(rank)  # directions only, others in every process
        self.weight = nn.Parameter(torch.randn(len(self.rows), dim, generator=generator))

    def initialise(self, centers: Tensor) -> None:
        """Start this process's rows from its slice of the (K, D) identity centres. OURS.

        Raises:
            ValueError: the centres' shape is not (K, D).
        """
        expected = (self.num_identities, self.weight.shape[1])
        if centers.shape != expected:
            raise ValueError(f"expected identity centres of shape {expected}, got {tuple(centers.shape)}")
        with torch.no_grad():
            self.weight.copy_(centers[self.rows.start : self.rows.stop])

    def forward(self, embedding: Tensor, identity: Tensor, share: Tensor | None = None, seed: int = 0) -> Tensor:
        """The loss of the batch of all processes; every process must call it.

        Args:
            embedding: (B, D), this process's.
            identity: (B,) int64 or, for faces made of several people's, (B, T).
            share: (B, T), by which shares; None for (B,) identities.
            seed: of the sampled identities, the same in all processes; for instance the number of the training step.

        Returns:
            Scalar, the same in every process.

        Raises:
            ValueError: shapes that do not fit, an identity out of range, or batch sizes that differ between processes.
        """
        people, shares = _check_targets(embedding, identity, share)
        joined = gather_embeddings(embedding)
        if joined.requires_grad and self.processes > 1:
            joined.register_hook(lambda gradient: self.processes * gradient)  # the mean over processes follows
        people, shares = join_targets(people), join_targets(shares)
        if people.min() < 0 or people.max() >= self.num_identities:
            found = f"{int(people.min())} to {int(people.max())}"
            raise ValueError(
                f"identities must lie in 0 to {self.num_identities - 1}, got {found}: is this the training set of the head?"
            )
        chosen = choose_identities(people, self.num_identities, self.rows, self.sample_share, seed)
        weight = (
            self.weight if self.sample_share == 1 else F.embedding(chosen - self.rows.start, self.weight, sparse=True)
        )
        return sharded_identity_loss(joined, weight, chosen, people, shares, self.margin_type, self.margin, self.scale)


def _logsumexp_of_all(own: Tensor, plain: Tensor, rest: Tensor, identity: Tensor) -> Tensor:
    """(N, T) log sum exp over all identities, as each of a face's people in turn pays the margin.

    Args:
        own: (N, T), the people's logits with the margin.
        plain: (N, T), those without.
        rest: (N,), log sum exp over everybody else.
        identity: (N, T), who they are.
    """
    same = identity[:, :, None] == identity[:, None, :]
    repeated = same.tril(-1).any(2)
    others = plain[:, None, :].masked_fill(same | repeated[:, None, :], -torch.inf)
    everybody = [own[:, :, None], others, rest[:, None, None].expand(-1, own.shape[1], 1)]
    return torch.cat(everybody, 2).logsumexp(2)


def _check_targets(embedding: Tensor, identity: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
    """Identities and shares as (B, T); raise ValueError where shapes do not fit."""
    if share is None and identity.ndim == 1:
        identity = identity[:, None]
        share = torch.ones_like(identity, dtype=torch.float32)
    if (
        share is None
        or embedding.ndim != 2
        or identity.ndim != 2
        or share.shape != identity.shape
        or len(embedding) != len(identity)
    ):
        given = None if share is None else tuple(share.shape)
        raise ValueError(
            "expected embeddings (B, D) with identities (B,), or with identities and shares (B, T), got "
            f"{tuple(embedding.shape)}, {tuple(identity.shape)} and {given}"
        )
    return identity, share
