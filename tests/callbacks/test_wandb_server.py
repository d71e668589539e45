"""W&B whose server or process is lost: with wandb's own processes, and a server on this machine."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.wandb_file import read_run
from tests.callbacks.wandb_server import WandbServer
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

STEP = "trainer/global_step"
_SECONDS = {
    "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",
    "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "1",
    "WANDB_FINISH_TIMEOUT": "4",
}
_CHILD = """
import sys
from deocc.callbacks.loggers import WandbRunLogger
logger = WandbRunLogger(save_dir=sys.argv[1], id="r0123abcd", name="run")
print("begun", logger.experiment.id, flush=True)
for line in sys.stdin:
    logger.log_metrics({"train/loss": 1 / (1 + int(line))}, int(line))
    print("logged", line.strip(), flush=True)
"""


class Training:
    """A process that logs the steps that it reads."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        bare = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        environment = {**bare, "HOME": str(folder), "OMP_NUM_THREADS": "1", **_SECONDS, **settings}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        command = [sys.executable, "-c", _CHILD, str(folder)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
        self.output = ""

    def log(self, steps: Iterable[int]) -> None:
        for step in steps:
            assert self.process.stdin is not None
            self.process.stdin.write(f"{step}\n")
            self.process.stdin.flush()
            self.wait_for(f"logged {step}")

    def end(self) -> str:
        """Stop logging and return the output."""
        rest: str = self.process.communicate(timeout=60)[0]
        assert self.process.returncode == 0, self.output + rest
        return self.output + rest

    def wait_for(self, word: str) -> None:
        assert self.process.stdout is not None
        while word not in (line := self.process.stdout.readline()):
            assert line, f"ended before {word}: {self.output}"
            self.output += line
        self.output += line


Start = Callable[[dict[str, str]], Training]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a training that ends with the test."""
    with contextlib.ExitStack() as running:

        def begin(settings: dict[str, str]) -> Training:
            training = Training(tmp_path, settings)
            running.callback(training.process.kill)
            training.wait_for("begun")
            return training

        yield begin


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(300):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("not within half a minute")


def steps(rows: list[dict[str, Any]]) -> list[int]:
    assert all(row["train/loss"] == 1 / (1 + row[STEP]) for row in rows)
    return [row[STEP] for row in rows]


def test_lost_server_stops_nothing(start: Start, tmp_path: Path) -> None:
    server = WandbServer()
    with server.reachable():
        training = start(server.environment)
        training.log(range(5))
        wait_until(lambda: len(server.history()) == 5)
    training.log(range(5, 10))
    assert "Traceback" not in training.end()
    (file,) = tmp_path.glob("wandb/*run-*/*.wandb")
    assert steps(read_run(file).history) == list(range(10)) and steps(server.history()) == list(range(5))


def test_returning_server_gets_all_steps(start: Start) -> None:
    server = WandbServer()
    with server.reachable():
        training = start(server.environment)
        training.log(range(3))
        wait_until(lambda: len(server.history()) == 3)
    training.log(range(3, 6))
    with server.reachable():
        training.log(range(6, 9))
        wait_until(lambda: len(server.history()) == 9)
        training.end()
    assert steps(server.history()) == list(range(9))


def test_lost_wandb_process_stops_nothing(start: Start) -> None:
    training = start({"WANDB_MODE": "offline"})
    training.log(range(3))
    tasks = Path(f"/proc/{training.process.pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    (core,) = [pid for pid in children if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(core, signal.SIGKILL)
    time.sleep(0.5)
    training.log(range(3, 6))
    assert "cannot log to W&B" in training.end()
