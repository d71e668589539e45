"""Two processes of one training make the file of the teacher's embeddings together, on one file system or on one each."""

# First, also in the processes that are started: Lightning must not meet a torchvision that does not fit before deocc's guard stands.
import deocc  # isort: skip  # noqa: F401

import gc
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch.multiprocessing.spawn import spawn

from deocc.modules import DistillationModule
from deocc.networks import create_teacher
from tests.modules.test_teacher_cache import QUIET, Counting, Data, assert_close, computed

PROCESSES, LIMIT = 2, 120  # LIMIT in seconds, after which a hang is a failure


def one_process(rank: int, folder: str, port: int) -> None:
    """A training in two processes on one file system, and one in which each has its own."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "TORCHELASTIC_RUN_ID": "test",
    }
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "GROUP_RANK": "0",
    }
    for place in ("shared", str(rank)):
        os.environ["DEOCC_CACHE"] = f"{folder}/{place}"
        module, counting = DistillationModule(student_input="masked"), Counting()
        strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=LIMIT / 2))
        settings: Any = {
            "accelerator": "cpu",
            "devices": PROCESSES,
            "strategy": strategy,
            "use_distributed_sampler": False,
            **QUIET,
        }
        pl.Trainer(max_steps=1, limit_val_batches=0, callbacks=[counting], **settings).fit(module, datamodule=Data())
        outcome = {"before": counting.before, "faces": counting.faces, "centers": module.identity_centers}
        torch.save(outcome, f"{folder}/{place} {rank}.pt")
    dist.barrier()
    gc.collect()  # DDP's modules lie in cycles that hold the process group
    dist.destroy_process_group()
    os._exit(
        0
    )  # gloo's threads, where any are left, may abort while an interpreter is taken down: nothing that is tested here


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes left."""
    folder, deadline = tmp_path_factory.mktemp("processes"), time.monotonic() + LIMIT
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = spawn(one_process, (str(folder), port), nprocs=PROCESSES, join=False)
    try:
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                pytest.fail(f"the processes did not end within {LIMIT} s")
    finally:
        for process in context.processes:
            process.kill()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("places", [("shared", "shared"), ("0", "1")], ids=["one file system", "one each"])
def test_two_processes_share_the_work_and_each_finds_all_of_it(places: tuple[str, str], folder: Path) -> None:
    expected = [computed(create_teacher("dlib_resnet"), Data(), flipped) for flipped in (False, True)]
    outcomes = [torch.load(folder / f"{place} {rank}.pt", weights_only=True) for rank, place in enumerate(places)]
    for place, outcome in zip(places, outcomes, strict=True):
        assert outcome["before"] == outcome["faces"] == 12  # half of the faces, twice
        files = sorted((folder / place / "teacher").iterdir(), key=lambda path: "mirrored" in path.name)
        assert len(files) == 2
        for file, rows in zip(files, expected, strict=True):
            assert_close(np.load(file), rows)
    assert torch.equal(outcomes[0]["centers"], outcomes[1]["centers"])
