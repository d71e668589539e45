"""Identity classifier of stage 2, held by every rank ("full") or with its rows split over the ranks ("sharded").

A sharded classifier is excluded from `DistributedDataParallel`, clipped by the gradient norm over all ranks, and saved
under the names of a full one, so that any number of ranks can resume with either head. Its weight must be the last
parameter of the optimiser.

In float16, a classifier's gradient is computed in float32 and is non-finite only if the embeddings' gradient is, which
all ranks see after averaging: either all of them skip the step or none does.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from deocc.batch import MaskedFaceBatch
from deocc.losses import IdentityLoss, ShardedIdentityLoss
from deocc.losses.distributed import rows_of
from deocc.processes import rank_and_world_size

HeadType = Literal["full", "sharded"]
IdentityHead = IdentityLoss | ShardedIdentityLoss
_PIECE = 2**16  # rows sent at a time: 128 MiB at D = 512


def check_head(head: HeadType, sample_share: float) -> None:
    """Raise ValueError for an unknown head, a share outside (0, 1], or sampling with a full head."""
    if head not in ("full", "sharded"):
        raise ValueError(f"unknown identity_head {head!r}: choose one of full, sharded")
    if not 0 < sample_share <= 1:
        raise ValueError(f"identity_sample_share must be in (0, 1], got {sample_share}")
    if head == "full" and sample_share < 1:
        raise ValueError(
            f"identity_sample_share {sample_share} needs identity_head sharded, also in one process; or give 1.0"
        )


def blended_targets(batch: MaskedFaceBatch) -> tuple[Tensor, Tensor]:
    """Return the identities (B, 3) that each face is blended from, and their weights (B, 3), which sum to 1."""
    others = batch["mixup_weight"]
    identity = torch.cat([batch["identity"][:, None], batch["mixup_identity"]], 1)
    return identity, torch.cat([1 - others.sum(1, keepdim=True), others], 1)


def own_centers(identity_centers: Tensor, batch: MaskedFaceBatch) -> Tensor:
    """Return the centre of each sample's identities as unit vectors (B, D), given the identity centres (K, D)."""
    identity, weight = blended_targets(batch)
    return F.normalize((identity_centers[identity] * weight[:, :, None]).sum(1), dim=1)


def blended_identity_loss(classifier: IdentityHead, embedding: Tensor, batch: MaskedFaceBatch, step: int = 0) -> Tensor:
    """Cross-entropy of unit embeddings (B, D); a blended face belongs to its identities by their weights.

    The training step `step` seeds the sampling of a sharded classifier.
    """
    seed = (step,) if isinstance(classifier, ShardedIdentityLoss) else ()
    loss: Tensor = classifier(embedding, *blended_targets(batch), *seed)
    return loss


def exclude_from_ddp(module: nn.Module, *names: str) -> None:
    """Exclude submodules, parameters and buffers from the broadcast and averaging of DDP; replaces an earlier call."""
    tensors = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    chosen = [tensor for tensor in tensors if any(f"{tensor}.".startswith(f"{name}.") for name in names)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, chosen)


@torch.no_grad()
def clip_gradients(
    head: ShardedIdentityLoss, optimizer: Optimizer, limit: float | None, algorithm: str | None = None
) -> None:
    """Clip like Lightning in a single process with the whole classifier: all ranks scale by the same norm.

    The gradients of `head` are split over the ranks, those of the optimiser's other parameters already averaged.
    `limit` is a maximum norm or, with the algorithm "value", an absolute value; None or 0 disables clipping.
    """
    if not limit:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if algorithm == "value":
        nn.utils.clip_grad_value_(parameters, limit)
        return
    sharded = {id(parameter) for parameter in head.parameters()}
    own = get_total_norm([p.grad for p in parameters if id(p) in sharded]).to(head.weight.device).square()
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(own)
    shared = get_total_norm([p.grad for p in parameters if id(p) not in sharded]).to(own.device).square()
    nn.utils.clip_grads_with_norm_(parameters, limit, (own + shared).sqrt())


def gather_head(checkpoint: dict[str, Any], name: str, head: ShardedIdentityLoss) -> None:
    """Put the whole classifier and its optimiser state into rank 0's checkpoint; other ranks' checkpoints lose theirs.

    Call it on every rank, in `on_save_checkpoint`.
    """
    if rank_and_world_size()[1] > 1:
        shape = head.weight.shape
        _replace(checkpoint, name, lambda own: _gather_rows(own, head.num_identities) if own.shape == shape else own)


def split_head(checkpoint: dict[str, Any], name: str, head: ShardedIdentityLoss) -> None:
    """Reduce a checkpoint's classifier and its optimiser state to the rows of this rank, in `on_load_checkpoint`."""
    whole, rows = (head.num_identities, head.weight.shape[1]), slice(head.rows.start, head.rows.stop)
    _replace(checkpoint, name, lambda tensor: tensor[rows].clone() if tensor.shape == whole else tensor)


def _replace(checkpoint: dict[str, Any], name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Replace the classifier's weight and the tensors of its optimiser state without changing the live tensors."""
    key = f"{name}.weight"
    checkpoint["state_dict"] = {**checkpoint["state_dict"], key: change(checkpoint["state_dict"][key])}
    for number, optimizer in enumerate(checkpoint.get("optimizer_states", [])):
        last = optimizer["param_groups"][-1]["params"][-1]
        if last in optimizer["state"]:
            # In a fixed order, since every change is a collective operation.
            changed = {entry: change(value) for entry, value in sorted(optimizer["state"][last].items())}
            checkpoint["optimizer_states"][number] = {**optimizer, "state": {**optimizer["state"], last: changed}}


def _gather_rows(own: Tensor, count: int) -> Tensor:
    """Return all rows (count, D) on the CPU of rank 0; an empty (0, D) on the other ranks, which send theirs."""
    rank, world_size = rank_and_world_size()
    own = own.detach().contiguous()
    if rank > 0:
        for piece in own.split(_PIECE):
            dist.send(piece, 0)
        return own.new_empty(0, own.shape[1])
    whole = torch.empty(count, own.shape[1], dtype=own.dtype)
    whole[: len(own)].copy_(own)
    for source in range(1, world_size):
        rows = rows_of(count, source, world_size)
        for piece in whole[rows.start : rows.stop].split(_PIECE):
            received = own.new_empty(piece.shape)
            dist.recv(received, source)
            piece.copy_(received)
    return whole
