"""Ranks from the environment, lost processes, and requeueing by SLURM."""

import subprocess
import sys
from pathlib import Path

import pytest

from deocc import processes

NAMES = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")


@pytest.fixture(autouse=True)
def _single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # started by the first process within a SLURM job
    ],
)
def test_is_first(environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.is_first() == first


def test_rank_without_a_group() -> None:
    assert processes.rank_and_world_size() == (0, 1)


@pytest.mark.parametrize(
    "message",
    ["gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]", "NCCL communicator was aborted"],
)
def test_lost_peer_is_explained(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.explain_lost_peer(message) == message, "a single process has no peer"
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert "another process of this training has ended" in processes.explain_lost_peer(message)
    assert processes.explain_lost_peer("no space left") == "no space left"


@pytest.mark.parametrize(
    ("rank", "seconds", "message"),
    [("1", "60", "the first process of this training has ended"), ("0", "1", "")],
    ids=["second", "first"],
)
def test_child_ends_with_its_parent(rank: str, seconds: str, message: str) -> None:
    """The child reports itself and sleeps, the parent ends; stderr closes when the child has ended."""
    child = "import sys, time; from deocc import processes; processes._GRACE_SECONDS = 0"
    child += "; processes.end_with_parent(0.05); print('watching', flush=True); time.sleep(float(sys.argv[1]))"
    parent = "import subprocess, sys; command = [sys.executable, '-c', *sys.argv[1:]]"
    parent += "; subprocess.Popen(command, stdout=subprocess.PIPE).stdout.readline()"
    command = [sys.executable, "-c", parent, child, seconds]
    environment = {"LOCAL_RANK": rank, "PYTHONPATH": str(Path(processes.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=40, check=True)
    assert message in done.stderr if message else done.stderr == ""


def test_requeued_job_finds_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes.note_job(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    processes.note_job(tmp_path)
    assert not processes.was_requeued(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert processes.was_requeued(tmp_path)
    assert not processes.was_requeued(tmp_path / "other")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    assert not processes.was_requeued(tmp_path)
