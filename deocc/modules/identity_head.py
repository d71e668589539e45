"""A classifier whose rows lie on several processes, within a LightningModule: who averages, clips, saves and loads them.

A checkpoint holds the whole (K, D) classifier and its moments under the names of a classifier that is not split, so that it can be resumed
by any number of processes, split or not. The classifier's weight is the last parameter of the optimiser.

Mixed precision in float16: a classifier's gradient is computed in float32 and is not finite only where the embeddings' is not, which all
processes see after their gradients are averaged; so either all take a step or none.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from deocc.batch import MaskedFaceBatch
from deocc.losses import IdentityLoss
from deocc.losses.distributed import process_place, rows_of
from deocc.losses.sharded_identity import ShardedIdentityLoss


def share_out(mesh: DeviceMesh | None, trained: nn.Module, *likewise: nn.Module | None) -> None:
    """Leave each process its part of the networks; from `configure_model`, before the optimiser is built.

    Args:
        mesh: the strategy's, with a dimension "data_parallel"; None changes nothing.
        trained: the network that is trained.
        likewise: networks that follow its weights, which must lie in the same parts.
    """
    if mesh is None:
        return
    for network in (trained, *likewise):
        if network is not None and not isinstance(network, FSDPModule):  # Lightning asks again for every fit and test
            fully_shard(network, mesh=mesh["data_parallel"])


def check_shareable(mesh: DeviceMesh | None, classifier: nn.Module | None) -> None:
    """Raise ValueError where a classifier would be trained beside a shared-out student: nobody would average its gradient."""
    if mesh is not None and classifier is not None:
        raise ValueError(
            "configs/trainer/fsdp.yaml shares out the student alone: give model.init_args.identity_weight 0, or train by DDP"
        )


def check_loadable(checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError where a strategy has taken the weights out of `checkpoint`, which then cannot be completed by what it leaves out."""
    if "state_dict" not in checkpoint:
        raise ValueError(
            "a training by configs/trainer/fsdp.yaml cannot be resumed by it: go on by configs/trainer/ddp.yaml, or anew"
        )


def people(batch: MaskedFaceBatch) -> Tensor:
    """(B, 3), whose faces a face is made of."""
    return torch.cat([batch["identity"][:, None], batch["other_identity"]], 1)


def shares(batch: MaskedFaceBatch) -> Tensor:
    """(B, 3), by which shares; they sum to 1."""
    return torch.cat([1 - batch["other_share"].sum(1, keepdim=True), batch["other_share"]], 1)


def own_centers(identity_centers: Tensor, batch: MaskedFaceBatch) -> Tensor:
    """(B, D) unit vectors, each sample's centre of (K, D) identity centres, between its people's where faces are blended."""
    return F.normalize((identity_centers[people(batch)] * shares(batch)[:, :, None]).sum(1), dim=1)


def blended_identity_loss(
    classifier: IdentityLoss | ShardedIdentityLoss, embedding: Tensor, batch: MaskedFaceBatch, turn: int = 0
) -> Tensor:
    """Cross-entropy over the training identities, a scalar; a blended face belongs to all of its people by their shares.

    Args:
        classifier: holds the identities' weights, the margin and the scale.
        embedding: (B, D) unit vectors.
        batch: whose faces they are.
        turn: decides which identities a sharded classifier samples; the number of the training step.
    """
    if isinstance(classifier, ShardedIdentityLoss):
        loss: Tensor = classifier(embedding, people(batch), shares(batch), turn)
    else:
        loss = classifier(embedding, people(batch), shares(batch))
    return loss


HeadType = Literal["full", "sharded"]
IdentityHead = IdentityLoss | ShardedIdentityLoss
_PIECE = 2**16  # rows sent at a time: 128 MiB at D = 512


def build_identity_head(
    head: HeadType, sample_share: float, num_identities: int, dim: int, margin_type: str, margin: float, scale: float
) -> IdentityHead:
    """A classifier in every process, or one whose rows are shared out among them.

    Raises:
        ValueError: sampling with a full classifier, or as the classifiers.
    """
    check_head(head, sample_share)
    if head == "full":
        return IdentityLoss(num_identities, dim, margin_type, margin, scale)
    return ShardedIdentityLoss(num_identities, dim, margin_type, margin, scale, sample_share)


def check_head(head: HeadType, sample_share: float) -> None:
    """Raise ValueError for an unknown head, a share out of (0, 1], or sampling with a full head."""
    if head not in ("full", "sharded"):
        raise ValueError(f"unknown identity_head {head!r}: choose one of full, sharded")
    if not 0 < sample_share <= 1:
        raise ValueError(f"identity_sample_share must lie in (0, 1], got {sample_share}")
    if head == "full" and sample_share < 1:
        raise ValueError(
            f"identity_sample_share {sample_share} needs identity_head sharded, which one process can have too; or give 1.0"
        )


def leave_to_processes(module: nn.Module, *names: str) -> None:
    """Let `DistributedDataParallel` neither broadcast nor average what is named, once it wraps `module`.

    Args:
        module: what will be wrapped; an earlier call's names no longer count.
        names: of submodules, parameters and buffers. A buffer that is not named is sent from process 0 to all others in every step.
    """
    tensors = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    chosen = [tensor for tensor in tensors if any(f"{tensor}.".startswith(f"{name}.") for name in names)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, chosen)


@torch.no_grad()
def clip_gradients(
    head: ShardedIdentityLoss, optimizer: Optimizer, limit: float | None, algorithm: str | None = None
) -> None:
    """Clip as Lightning does, by the norm of one process with all rows: the others' rows count, so all processes shrink alike.

    Args:
        head: whose gradients lie on several processes, and may be sparse.
        optimizer: of all parameters; the gradients of the others are averaged already.
        limit: largest norm, or largest absolute value; None or 0 leaves all as it is.
        algorithm: "norm", which None means too, or "value".
    """
    if not limit:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    split = {id(parameter) for parameter in head.parameters()}
    own = [_values(p) for p in parameters if id(p) in split]
    gradients = own + [_values(p) for p in parameters if id(p) not in split]
    if algorithm == "value":
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)
        return
    squared = get_total_norm(own).to(head.weight.device).square()
    if process_place()[1] > 1:
        dist.all_reduce(squared)
    norm = (squared + get_total_norm(gradients[len(own) :]).to(squared.device).square()).sqrt()
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp_max(1.0))  # 1e-6 as in torch.nn.utils.clip_grad_norm_


def gather_head(checkpoint: dict[str, Any], name: str, head: ShardedIdentityLoss) -> None:
    """Put the whole classifier and its moments into the checkpoint of process 0; the others' are not written, and lose theirs.

    Every process must call it, from `on_save_checkpoint`.
    """
    if process_place()[1] == 1:
        return
    _replace(
        checkpoint, name, lambda own: _gathered(own, head.num_identities) if own.shape == head.weight.shape else own
    )


def split_head(checkpoint: dict[str, Any], name: str, head: ShardedIdentityLoss) -> None:
    """Keep of the checkpoint's classifier and moments this process's rows; from `on_load_checkpoint`."""
    whole = (head.num_identities, head.weight.shape[1])
    rows = slice(head.rows.start, head.rows.stop)
    _replace(checkpoint, name, lambda tensor: tensor[rows].clone() if tensor.shape == whole else tensor)


def _replace(checkpoint: dict[str, Any], name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change the classifier's weight and the tensors of its optimiser's state; the live state that the checkpoint points to stays."""
    key = f"{name}.weight"
    checkpoint["state_dict"] = {**checkpoint["state_dict"], key: change(checkpoint["state_dict"][key])}
    for number, optimizer in enumerate(checkpoint.get("optimizer_states", [])):
        last = optimizer["param_groups"][-1]["params"][-1]
        if last in optimizer["state"]:
            changed = {entry: change(value) for entry, value in sorted(optimizer["state"][last].items())}
            checkpoint["optimizer_states"][number] = {**optimizer, "state": {**optimizer["state"], last: changed}}


def _gathered(own: Tensor, count: int) -> Tensor:
    """(count, D) on the CPU of process 0, to which the others send their (n, D) in pieces; an empty (0, D) in those."""
    rank, processes = process_place()
    own = own.detach().contiguous()
    if rank > 0:
        for piece in own.split(_PIECE):
            dist.send(piece, 0)
        return own.new_empty(0, own.shape[1])
    whole = torch.empty(count, own.shape[1], dtype=own.dtype)
    whole[: len(own)].copy_(own)
    for source in range(1, processes):
        rows = rows_of(count, source, processes)
        for place in whole[rows.start : rows.stop].split(_PIECE):
            piece = own.new_empty(place.shape)
            dist.recv(piece, source)
            place.copy_(piece)
    return whole


def _values(parameter: Tensor) -> Tensor:
    """The numbers of a parameter's gradient, to be changed in place: of a sparse one, those of its rows."""
    gradient: Any = parameter.grad
    if gradient.is_sparse:
        gradient = parameter.grad = gradient.coalesce()
        gradient = gradient.values()
    numbers: Tensor = gradient
    return numbers
