"""Runs the jobs, several at a time; what ended well is not run again, and what broke off goes on where it was.

In a run's folder `ACTION.started` holds the job's fingerprint from its start and `ACTION.done` from its good end; `ACTION.log` its output.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from deocc import runs
from deocc.apps.ablation.jobs import Job

_POLL = 0.2  # seconds
_GRACE = 10.0  # seconds that a child has to end itself
_LINE = 300  # characters of a log line that a message shows

Process = subprocess.Popen[bytes]


def is_done(job: Job) -> bool:
    """Whether the job, with all that it depends on as it is now, has ended well."""
    return _holds(_mark(job, "done"), job.fingerprint)


def run_jobs(jobs: Sequence[Job], at_once: int) -> dict[str, str]:
    """Run every job that is not done, `at_once` at a time, each after those it needs; a line a job on the terminal.

    A failing job does not stop the others.

    Returns:
        By the name of a job that did not end well: the reason, in one line.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once every child is ended.
    """
    waiting = [job for job in jobs if not is_done(job)]
    print(f"deocc ablate: {len(jobs) - len(waiting)} of {len(jobs)} runs are done, {len(waiting)} to go", flush=True)
    failed: dict[str, str] = {}
    running: dict[Job, tuple[Process, float]] = {}
    begun, ended = time.monotonic(), len(jobs) - len(waiting)
    with _children(running) as check_interrupt:
        while waiting or running:
            check_interrupt()
            _give_up(waiting, running, failed)
            _start_ready(waiting, running, at_once)
            for job, seconds in _collect(running, failed):
                ended += 1
                print(
                    f"[{ended}/{len(jobs)}] {_outcome(job, failed)} after {_clock(seconds)}, {_clock(time.monotonic() - begun)} in all",
                    flush=True,
                )
    return failed


def _give_up(waiting: list[Job], running: Collection[Job], failed: dict[str, str]) -> None:
    """Drop what waits for a job that failed, or whose folder is gone; jobs stand after those they need, so one pass is enough."""
    unfinished = {*waiting, *running}
    for job in list(waiting):
        lost = [other.name for other in job.after if other.name in failed or not (other in unfinished or is_done(other))]
        if lost:
            waiting.remove(job)
            failed[job.name] = f"needs {lost[0]}"


def _start_ready(waiting: list[Job], running: dict[Job, tuple[Process, float]], at_once: int) -> None:
    for job in list(waiting):
        if len(running) < at_once and all(is_done(other) for other in job.after):
            waiting.remove(job)
            words = _prepare(job)
            running[job] = (_start([*job.command, *words], job.folder / f"{job.action}.log", at_once), time.monotonic())


def _prepare(job: Job) -> list[str]:
    """Make the folder ready; the words that let a broken training go on."""
    if job.action == "fit":
        last = job.folder / runs.CHECKPOINTS / "last.ckpt"
        if last.is_file() and _holds(_mark(job, "started"), job.fingerprint):
            return [f"--ckpt_path={last}"]
        if job.folder.exists():
            shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    _mark(job, "started").write_text(job.fingerprint)
    return []


def _start(command: list[str], log: Path, at_once: int) -> Process:
    """Start the command apart from the terminal's Ctrl-C, with its share of the cores."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def _collect(running: dict[Job, tuple[Process, float]], failed: dict[str, str]) -> list[tuple[Job, float]]:
    """The jobs that have ended, with their seconds; waits a moment where none has."""
    ended = [(job, begun) for job, (process, begun) in running.items() if process.poll() is not None]
    if not ended:
        time.sleep(_POLL)
    for job, _ in ended:
        process, _ = running.pop(job)
        if process.returncode == 0:
            _mark(job, "done").write_text(job.fingerprint)
        else:
            failed[job.name] = f"exit code {process.returncode}, {_last_line(job.folder / f'{job.action}.log')}"
    return [(job, time.monotonic() - begun) for job, begun in ended]


@contextmanager
def _children(running: Mapping[Job, tuple[Process, float]]) -> Iterator[Callable[[], None]]:
    """Gives what raises KeyboardInterrupt once Ctrl-C or SIGTERM came, and ends the children at the end.

    They have sessions of their own and would go on. A signal is only noted when it comes, lest it fall between a child's start and its
    entry in `running`.
    """
    caught: list[int] = []

    def check() -> None:
        if caught:
            raise KeyboardInterrupt

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            _reap(process)
        for number, handler in before.items():
            signal.signal(number, handler)


def _reap(process: Process) -> None:
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _outcome(job: Job, failed: dict[str, str]) -> str:
    return f"{job.name} FAILED ({failed[job.name]})" if job.name in failed else f"{job.name} done"


def _mark(job: Job, state: str) -> Path:
    return job.folder / f"{job.action}.{state}"


def _holds(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text() == text


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{log}: {lines[-1][:_LINE]}" if lines else f"{log} is empty"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
