"""Run a function in two processes of one gloo group."""

import gc
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

PROCESSES, LIMIT = 2, 120  # LIMIT in seconds, after which the processes count as hung
Outcome = dict[str, Any]


def run_processes(compute: Callable[[int], Outcome], folder: Path) -> list[Outcome]:
    """Return what `compute(rank)` returns in each process; fails where they do not end in time."""
    deadline = time.monotonic() + LIMIT
    context = spawn(_one_process, (compute, str(folder)), nprocs=PROCESSES, join=False)
    try:
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                pytest.fail(f"the processes did not end within {LIMIT} s")
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def _one_process(rank: int, compute: Callable[[int], Outcome], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=LIMIT / 2),
    )
    torch.save(compute(rank), f"{folder}/{rank}.pt")
    dist.barrier()  # neither process leaves while the other still needs it
    gc.collect()  # DDP modules are in reference cycles that hold the process group
    dist.destroy_process_group()
    os._exit(0)  # remaining gloo threads may abort while an interpreter shuts down
