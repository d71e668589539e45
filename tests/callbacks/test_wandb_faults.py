"""W&B whose server is lost, whose process is killed, whose run is resumed: with wandb's own processes, and a server on this machine."""

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

RUN_ID = "r0123abcd"
STEP = "trainer/global_step"
_SOON = {
    "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",
    "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "1",
    "WANDB_FINISH_TIMEOUT": "4",
}  # seconds


class Training:
    """A process that logs the steps that it is told."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        command = [sys.executable, "-m", "tests.callbacks.wandb_child", str(folder), RUN_ID]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment(folder, settings), text=True, **pipes)
        self.said = ""

    def log(self, steps: Iterable[int]) -> None:
        for step in steps:
            assert self.process.stdin is not None
            self.process.stdin.write(f"{step}\n")
            self.process.stdin.flush()
            self.wait_for(f"logged {step}")

    def kill(self) -> None:
        """As the machine does where memory runs out."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def end(self) -> str:
        """Train no further; all that was printed."""
        rest: str = self.process.communicate(timeout=60)[0]
        assert self.process.returncode == 0, self.said + rest
        return self.said + rest

    def wait_for(self, word: str) -> None:
        """Read on until the word is printed."""
        assert self.process.stdout is not None
        while word not in (line := self.process.stdout.readline()):
            assert line, f"ended before {word}: {self.said}"
            self.said += line
        self.said += line


Start = Callable[[Path, dict[str, str]], Training]


@pytest.fixture
def start() -> Iterator[Start]:
    """What starts a training; none outlives the test."""
    with contextlib.ExitStack() as running:

        def begin(folder: Path, settings: dict[str, str]) -> Training:
            training = Training(folder, settings)
            running.callback(training.kill)
            training.wait_for("begun")
            return training

        yield begin


def environment(folder: Path, settings: dict[str, str]) -> dict[str, str]:
    """A home without a key, and of W&B what is given."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**bare, "HOME": str(folder), "OMP_NUM_THREADS": "1", **_SOON, **settings}


def until(true: Callable[[], bool]) -> None:
    for _ in range(300):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("not within half a minute")


def steps(rows: list[dict[str, Any]]) -> list[int]:
    """The training's steps of the rows, each of which has the value of its step."""
    assert all(row["train/loss"] == 1 / (1 + row[STEP]) for row in rows)
    return [row[STEP] for row in rows]


def files(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("wandb/*run-*/*.wandb")), key=lambda path: path.stat().st_mtime)


def sync(folder: Path, server: WandbServer, *words: str) -> None:
    command = [str(Path(sys.executable).with_name("wandb")), "sync", *words]
    subprocess.run(
        command, cwd=folder, env=environment(folder, server.environment), check=True, timeout=60, capture_output=True
    )


def test_a_connection_lost_for_good_stops_nothing_and_loses_nothing(start: Start, tmp_path: Path) -> None:
    server = WandbServer()
    with server.reachable():
        training = start(tmp_path, server.environment)
        training.log(range(5))
        until(lambda: len(server.history()) == 5)
    training.log(range(5, 10))
    said = training.end()
    (file,) = files(tmp_path)
    command = f"wandb sync --include-online {file.parent}"
    assert f"it lies in {file.parent}, and `{command}` uploads it\n" in said and "Traceback" not in said
    assert steps(read_run(file).history) == list(range(10))
    assert steps(server.history()) == list(range(5))
    with server.reachable():
        sync(tmp_path, server, *command.split()[2:])
    assert steps(server.history())[-10:] == list(range(10))


def test_a_connection_that_comes_back_is_taken_up_again(start: Start, tmp_path: Path) -> None:
    server = WandbServer()
    with server.reachable():
        training = start(tmp_path, server.environment)
        training.log(range(3))
        until(lambda: len(server.history()) == 3)
    training.log(range(3, 6))
    with server.reachable():
        training.log(range(6, 9))
        until(lambda: len(server.history()) == 9)
        assert "did not take" not in training.end()
    assert steps(server.history()) == list(range(9))


@pytest.mark.parametrize("online", [True, False])
def test_a_killed_and_resumed_run_goes_on_in_its_w_and_b_run_and_repeats_steps_at_their_place(
    online: bool, start: Start, tmp_path: Path
) -> None:
    """W&B drops none of the repeated steps, since it counts rows by itself: at each of them the curve has its value twice."""
    server = WandbServer()
    with server.reachable():
        settings = server.environment if online else {"WANDB_MODE": "offline"}
        training = start(tmp_path, settings)
        training.log(range(6))
        until(lambda: len(server.history()) == 6 if online else len(read_run(files(tmp_path)[0]).history) == 6)
        training.kill()
        time.sleep(1.1)  # wandb names a folder by the second
        training = start(tmp_path, settings)
        training.log(range(4, 8))
        training.end()
        if not online:
            sync(tmp_path, server, *[str(file.parent) for file in files(tmp_path)])
    assert steps(server.history()) == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert [row["_step"] for row in server.history()] == list(range(10))
    assert {read_run(file).run.run_id for file in files(tmp_path)} == {RUN_ID}


def test_wandbs_own_process_may_die(start: Start, tmp_path: Path) -> None:
    training = start(tmp_path, {"WANDB_MODE": "offline"})
    training.log(range(3))
    (own,) = [pid for pid in children(training.process.pid) if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(own, signal.SIGKILL)
    time.sleep(0.5)
    training.log(range(3, 6))
    said = training.end()
    assert said.count("training goes on") == 1 and f"cannot write {tmp_path / 'wandb'}" in said


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
