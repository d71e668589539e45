"""Runs the jobs, several at a time; what ended well is not run again, and what broke off goes on where it was.

In a run's folder `ACTION.log` holds the job's output, `ACTION.started` and `ACTION.done` what `deocc.commands.ablate.runner` says. A run that
cannot go on is never deleted: its folder is kept as `NAME.replaced-N`.
"""

import fcntl
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch

from deocc import runs
from deocc.commands.ablate.plan import Job
from deocc.evaluation.scores import SCORES

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "MASTER_")
_RANKS = {f"{group}{what}" for group in ("", "LOCAL_", "GROUP_", "ROLE_") for what in ("RANK", "WORLD_SIZE")} | {
    "NODE_RANK",
    "ROLE_NAME",
}


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


_LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder, which is made where it is not there.

    The lock lies on the open file: children that inherit the descriptor hold it too, so those that outlive a killed parent still keep
    others out.

    Yields:
        The descriptor for children to keep open.

    Raises:
        RuntimeError: another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = f"process {file.read().strip() or 'unknown'}, or a run that it left behind"
            raise RuntimeError(
                f"{folder} is in use by another `deocc ablate` ({holder}): wait for it, end it, or give another --run"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


_READ = (runs.RESULTS, SCORES)


def is_done(job: Job) -> bool:
    """Whether the job, with all that it depends on as it is now, has ended well and its files are as it left them."""
    return _lines(job, "done")[:1] == [job.fingerprint] and not altered_files(job)


def altered_files(job: Job) -> list[str]:
    """Of a test that ended well, the files that are gone or were changed since; of any other job nothing."""
    fingerprint, *recorded = _lines(job, "done") or [""]
    if job.action != "test" or fingerprint != job.fingerprint:
        return []
    digests = {runs.RESULTS: None, **dict(line.split(" ", 1)[::-1] for line in recorded)}
    return [name for name, digest in digests.items() if not _is_as_left(job.folder / name, digest)]


def is_begun(job: Job) -> bool:
    """Whether the job was started as it is now."""
    return _lines(job, "started") == [job.fingerprint]


def mark_started(job: Job) -> None:
    """Write down that the job starts."""
    _mark(job, "done").unlink(missing_ok=True)
    _mark(job, "started").write_text(job.fingerprint)


def mark_done(job: Job) -> None:
    """Write down that the job ended well."""
    files = [job.folder / name for name in _READ if job.action == "test"]
    lines = [f"{_digest(file)} {file.name}" for file in files if file.is_file()]
    _mark(job, "done").write_text("\n".join([job.fingerprint, *lines]))


def _is_as_left(file: Path, digest: str | None) -> bool:
    return file.is_file() and digest in (None, _digest(file))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _lines(job: Job, state: str) -> list[str]:
    file = _mark(job, state)
    return file.read_text().splitlines() if file.is_file() else []


def _mark(job: Job, state: str) -> Path:
    return job.folder / f"{job.action}.{state}"


_POLL = 0.2  # seconds
_GRACE = 10.0  # seconds that a child has to end itself
_LINE = 300  # characters of a log line that a message shows

Process = subprocess.Popen[bytes]


class _Child(NamedTuple):
    """A job that runs."""

    process: Process
    begun: float
    """When, in seconds of `time.monotonic`."""
    device: str | None
    """The GPU that it was given, where they are shared out."""


def run_jobs(jobs: Sequence[Job], at_once: int, keep: Collection[int] = ()) -> dict[str, str]:
    """Run every job that is not done, `at_once` at a time, each after those it needs; a line a job on the terminal.

    A failing job does not stop the others. Where the machine has several GPUs, jobs that run side by side are spread over them.

    Args:
        jobs: those that others need first.
        at_once: how many run at a time.
        keep: file descriptors that the children keep open, such as a lock's.

    Returns:
        By the name of a job that did not end well: the reason, in one line.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once every child is ended.
    """
    waiting = [job for job in jobs if not is_done(job)]
    _tell_altered(waiting)
    print(f"deocc ablate: {len(jobs) - len(waiting)} of {len(jobs)} runs are done, {len(waiting)} to go", flush=True)
    failed: dict[str, str] = {}
    running: dict[Job, _Child] = {}
    devices = list_devices(at_once)
    begun, ended = time.monotonic(), len(jobs) - len(waiting)
    with _children(running) as check_interrupt:
        while waiting or running:
            check_interrupt()
            _give_up(waiting, running, failed)
            _start_ready(waiting, running, at_once, devices, keep)
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
        lost = [
            other.name for other in job.after if other.name in failed or not (other in unfinished or is_done(other))
        ]
        if lost:
            waiting.remove(job)
            failed[job.name] = f"needs {lost[0]}"


def _tell_altered(waiting: Sequence[Job]) -> None:
    for job in waiting:
        if names := altered_files(job):
            print(
                f"{job.name} is run again: {' and '.join(names)} in {job.folder} changed since it wrote them",
                flush=True,
            )


def _start_ready(
    waiting: list[Job], running: dict[Job, _Child], at_once: int, devices: Sequence[str], keep: Collection[int]
) -> None:
    for job in list(waiting):
        if len(running) < at_once and all(is_done(other) for other in job.after):
            waiting.remove(job)
            words = _prepare(job)
            device = choose_device(devices, [child.device for child in running.values()])
            process = _start(
                [*job.command, *words], job.folder / f"{job.action}.log", child_environment(at_once, device), keep
            )
            running[job] = _Child(process, time.monotonic(), device)


def _prepare(job: Job) -> list[str]:
    """Make the folder ready; the words that let a broken training go on."""
    words: list[str] = []
    if job.action == "fit" and job.folder.exists():
        last = job.folder / runs.CHECKPOINTS / "last.ckpt"
        if last.is_file() and is_begun(job):
            words = [f"--ckpt_path={last}"]
        else:
            _set_aside(job)
    job.folder.mkdir(parents=True, exist_ok=True)
    mark_started(job)
    return words


def _set_aside(job: Job) -> None:
    """Rename the folder; a rename leaves no moment at which a run is half gone."""
    names = (job.folder.with_name(f"{job.folder.name}.replaced-{number}") for number in count(1))
    kept = next(path for path in names if not path.exists())
    reason = (
        "it broke off before its first checkpoint"
        if is_begun(job)
        else "it is of another plan or other configuration files"
    )
    job.folder.rename(kept)
    print(f"{job.name} begins anew: what lay in {job.folder} is kept as {kept.name}, for {reason}", flush=True)


def _start(command: list[str], log: Path, environment: Mapping[str, str], keep: Collection[int]) -> Process:
    """Start the command apart from the terminal's Ctrl-C."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=keep,
        )


def _collect(running: dict[Job, _Child], failed: dict[str, str]) -> list[tuple[Job, float]]:
    """The jobs that have ended, with their seconds; waits a moment where none has."""
    ended = [(job, child) for job, child in running.items() if child.process.poll() is not None]
    if not ended:
        time.sleep(_POLL)
    for job, child in ended:
        del running[job]
        if child.process.returncode != 0:
            failed[job.name] = f"exit code {child.process.returncode}, {_last_line(job.folder / f'{job.action}.log')}"
            continue
        mark_done(job)
        if lost := altered_files(job):
            failed[job.name] = f"ended well, but left no {lost[0]} in {job.folder}"
    return [(job, time.monotonic() - child.begun) for job, child in ended]


@contextmanager
def _children(running: Mapping[Job, _Child]) -> Iterator[Callable[[], None]]:
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
        for child in running.values():
            child.process.terminate()
        for child in running.values():
            _reap(child.process)
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


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{log}: {lines[-1][:_LINE]}" if lines else f"{log} is empty"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
