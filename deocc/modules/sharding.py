"""Stage 2 with weights, gradients, moments and running average shared out among processes (FSDP), by configs/trainer/fsdp.yaml.

A student takes 16 bytes a parameter for AdamW in float32 and 4 to 8 for its average: 1.5 GiB for the 65 million of the largest embedder
here, which every GPU has to spare, while gathering weights anew for each pass sends half as much again as DDP. So it pays for backbones of
hundreds of millions of parameters (a ViT-H of 632 million: 14 GiB), and for no smaller one.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


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
        raise ValueError("configs/trainer/fsdp.yaml shares out the student alone: give model.init_args.identity_weight 0, or train by DDP")


def check_loadable(checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError where a strategy has taken the weights out of `checkpoint`, which then cannot be completed by what it leaves out."""
    if "state_dict" not in checkpoint:
        raise ValueError("a training by configs/trainer/fsdp.yaml cannot be resumed by it: go on by configs/trainer/ddp.yaml, or anew")
