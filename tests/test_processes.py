"""Who is the first of several processes, however they were started, and what an error of a lost one is made into."""

import subprocess
import sys

import pytest

from deocc import processes

NAMES = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # started by a first process within a SLURM job
    ],
)
def test_who_is_first(environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.is_first() == first


@pytest.mark.parametrize(
    "message",
    ["gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]", "NCCL communicator was aborted"],
)
def test_a_lost_process_is_told_where_there_are_several(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert processes.explain_lost_peer(message) == message
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert "another process of this training has ended" in processes.explain_lost_peer(message)
    assert processes.explain_lost_peer("no space left") == "no space left"


def test_a_child_ends_with_its_parent_and_a_first_process_does_not() -> None:
    """A parent starts a child that says so and sleeps; then the parent ends."""
    child = "import sys, time; from deocc import processes; processes._GRACE_SECONDS = 0; processes.end_with_parent(0.05)"
    child += "; print('watching', flush=True); time.sleep(float(sys.argv[1]))"
    parent = "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]], stdout=subprocess.PIPE)"
    parent += "; child.stdout.readline()"
    for rank, seconds, said in (("1", "60", "the first process of this training has ended"), ("0", "1", "")):
        command = [sys.executable, "-c", parent, child, seconds]
        ended = subprocess.run(
            command, env={"LOCAL_RANK": rank}, capture_output=True, text=True, timeout=40, check=True
        )
        assert said in ended.stderr if said else ended.stderr == ""  # which only the child's end closes


def test_lightning_s_word_on_a_lost_child_is_heard() -> None:
    code = "import logging; from deocc import processes; processes.log_lost_children(); processes.log_lost_children()"
    code += f"; logging.getLogger('{processes._LAUNCHER}').info('Child process with PID 7 terminated with code -9')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert said.count("terminated with code -9") == 1
