"""The processes of one training: which is the first, that none outlives the others, and SLURM's way to begin again."""

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

_RANKS = (
    "RANK",
    "SLURM_PROCID",
    "NODE_RANK",
    "LOCAL_RANK",
)  # as torchrun, srun and Lightning number processes; children inherit some
_GRACE = 20.0  # seconds in which a process that ends together with its parent has ended
_LOST = re.compile(r"(closed|reset) by peer|connection (closed|reset|refused)|gloo|NCCL|ProcessGroup", re.IGNORECASE)
_LAUNCHER = "lightning_fabric.strategies.launchers.subprocess_script"
_JOB_FILE = "slurm_job"


def is_first() -> bool:
    """Whether this is the process that writes files and speaks; true where there is only one."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes in torch's default group; (0, 1) without a group."""
    import torch.distributed as dist  # here, since the command line starts without torch

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def end_with_parent(poll: float = 2.0) -> None:
    """End this process soon after the one that started it, where that is the first process of its machine or torchrun.

    A killed first process cannot stop the others, and those wait in a collective for as long as its time limit allows. A machine's first
    process may outlive its parent, as one does that was sent to the background.

    Args:
        poll: seconds between looks.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        threading.Thread(target=_watch, args=(os.getppid(), poll), daemon=True, name="end-with-parent").start()


def tell_of_children() -> None:
    """Let Lightning say aloud that a process which it started has ended, for it then kills this one."""
    logger = logging.getLogger(_LAUNCHER)
    if not logger.handlers:
        logger.setLevel(logging.INFO)
        logger.addHandler(logging.StreamHandler())


def explain_loss(message: str) -> str:
    """An error's message, or where it tells of another process that is gone, what that means."""
    if not _LOST.search(message) or not any(name in os.environ for name in _RANKS):
        return message
    cause = " ".join(message.split())[:200]
    return f"another process of this training has ended, so this one does ({cause}): see its own message, then `deocc fit --resume RUN`"


def note_job(run: Path) -> None:
    """Remember in the run folder which SLURM job trains it, so that the job finds it when it is requeued."""
    if "SLURM_JOB_ID" in os.environ and is_first():
        run.mkdir(parents=True, exist_ok=True)
        (run / _JOB_FILE).write_text(_job())


def was_requeued(run: Path) -> bool:
    """Whether this is a requeued SLURM job, and the run folder is the one that it trained before."""
    file = run / _JOB_FILE
    restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    return restarted and file.is_file() and file.read_text() == _job()


def requeue() -> None:
    """Ask SLURM to begin this job again; only the first process does, and nothing happens outside SLURM. SLURM then ends all of them."""
    if "SLURM_JOB_ID" in os.environ and is_first():
        scontrol = shutil.which("scontrol") or "scontrol"
        print(f"deocc: requeueing job {_job()}", file=sys.stderr, flush=True)
        try:
            subprocess.run([scontrol, "requeue", _job()], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(
                f"deocc: scontrol cannot requeue job {_job()} ({error}): submit it again", file=sys.stderr, flush=True
            )


def _job() -> str:
    """As `scontrol` names it: an array's task is a job by itself."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def _watch(parent: int, poll: float) -> None:
    while os.getppid() == parent:
        time.sleep(poll)
    time.sleep(_GRACE)
    os.write(2, b"\ndeocc: the first process of this training has ended, so this one does\n")
    os._exit(2)
