"""What of the machine a training or test gets: its share of the cores and, where there are several, a GPU of its own."""

import os
from collections.abc import Sequence

import torch

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "MASTER_")
_RANKS = {f"{group}{what}" for group in ("", "LOCAL_", "GROUP_", "ROLE_") for what in ("RANK", "WORLD_SIZE")} | {"NODE_RANK", "ROLE_NAME"}


def list_devices(at_once: int) -> list[str]:
    """The GPUs to share out, as CUDA_VISIBLE_DEVICES names them.

    None where one job runs at a time, which may use all of them, where there are fewer than two, or where the variable is set already.
    """
    if at_once == 1 or _VISIBLE in os.environ:
        return []
    count = torch.cuda.device_count()
    return [str(number) for number in range(count)] if count > 1 else []


def choose_device(devices: Sequence[str], taken: Sequence[str | None]) -> str | None:
    """The device that the fewest jobs have; `taken` holds one entry a running job. None where there is nothing to share out."""
    return min(devices, key=taken.count, default=None)


def child_environment(at_once: int, device: str | None) -> dict[str, str]:
    """This process's environment for a child that shares the machine with `at_once` - 1 others.

    What a launcher such as srun or torchrun said of this process's place in a group is left out: Lightning would take it for the child's.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _RANKS and not name.startswith(_LAUNCHERS)}
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    return {**kept, "OMP_NUM_THREADS": threads, **({} if device is None else {_VISIBLE: device})}
