"""Several processes of one training: ranks, ending together, and requeueing by SLURM."""

import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

from deocc.messages import one_line, say

# Set by torchrun, srun and Lightning; a child process inherits some of them.
_RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
_GRACE_SECONDS = 20.0  # for a process that is ending together with its parent
_LOST_PEER = re.compile(r"(closed|reset) by peer|connection (closed|reset|refused)|gloo|NCCL|ProcessGroup", re.I)
_JOB_FILE = "slurm_job"


def is_first() -> bool:
    """Return whether this process has rank 0 according to its environment; works before a process group exists."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes in torch's default group; (0, 1) without a group."""
    import torch.distributed as dist  # here, since the command line starts without torch

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def end_with_parent(poll: float = 2.0) -> None:
    """End this process soon after its parent, if it has a local rank above 0; check every `poll` seconds.

    If the first process is killed, the others would wait in a collective operation until its timeout. A process of
    local rank 0 may outlive its parent, as a command in the background does.
    """

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(poll)
        time.sleep(_GRACE_SECONDS)
        os.write(2, b"\ndeocc: the first process of this training has ended, so this one does\n")
        os._exit(2)

    if os.environ.get("LOCAL_RANK", "0") != "0":
        threading.Thread(target=watch, args=(os.getppid(),), daemon=True, name="end-with-parent").start()


def explain_lost_peer(message: str) -> str:
    """Return the message, or an explanation if it comes from a lost connection to another process."""
    if not _LOST_PEER.search(message) or not any(name in os.environ for name in _RANKS):
        return message
    return (
        f"another process of this training has ended, so this one does ({one_line(message)[:200]}): "
        "see its own message, then `deocc fit --resume RUN`"
    )


def note_job(run: Path) -> None:
    """Record in the run folder which SLURM job trains it, so that the requeued job finds it."""
    if "SLURM_JOB_ID" in os.environ and is_first():
        run.mkdir(parents=True, exist_ok=True)
        (run / _JOB_FILE).write_text(_job())


def was_requeued(run: Path) -> bool:
    """Return whether this is a requeued SLURM job that trained this run folder before."""
    file = run / _JOB_FILE
    restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    return restarted and file.is_file() and file.read_text() == _job()


def requeue() -> None:
    """Ask SLURM to start this job again, which ends all its processes. Only rank 0 of a SLURM job does something."""
    if "SLURM_JOB_ID" not in os.environ or not is_first():
        return
    scontrol = shutil.which("scontrol") or "scontrol"
    say(f"requeueing job {_job()}")
    try:
        subprocess.run([scontrol, "requeue", _job()], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"scontrol cannot requeue job {_job()} ({error}): submit it again")


def _job() -> str:
    """Return the job's name for `scontrol`; a task of an array is a job."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
