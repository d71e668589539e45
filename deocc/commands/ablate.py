"""`deocc ablate`: run the trainings and tests of a plan in parallel, and write tables of what is known.

Finished jobs are not repeated, and interrupted trainings are resumed. A run folder contains `ACTION.log`, the output of
the job, and `ACTION.started` and `ACTION.done`, which hold its fingerprint; the latter also the checksums of its
results. A run that cannot be resumed is never deleted: its folder is renamed to `NAME.replaced-N`.
"""

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from deocc import runs
from deocc.commands.ablate_plan import Job, list_jobs, read_plan, write_overlays
from deocc.commands.ablate_report import write_outcome
from deocc.commands.ablate_summary import read_tests, summarise
from deocc.evaluation.verification import CLEAN_SCORES, SCORES
from deocc.files import checksum

_POLL_SECONDS = 0.2
_TERMINATE_SECONDS = 10.0
_MAX_LOG_LINE = 300
_GPUS = "CUDA_VISIBLE_DEVICES"
_LAUNCHER_VARIABLES = re.compile(
    r"(SLURM_|TORCHELASTIC_|MASTER_).*|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|NODE_RANK|ROLE_NAME"
)

Process = subprocess.Popen[bytes]
_Child = tuple[Process, float, str | None]  # with its start in seconds of `time.monotonic` and its GPU


def main(argv: Sequence[str]) -> int:
    """Train and test what is missing, then write the tables of what is known; return 0.

    Raises:
        RuntimeError: some runs failed, after all others have ended and the results are written; or another
            `deocc ablate` uses the folder.
    """
    plan = read_plan(argv)
    with hold_folder(plan.run) as lock:
        write_overlays(plan)
        shared = [plan.shared_folder(fold) for fold in plan.folds or [None]] if plan.share_outputs else []
        for folder in shared:
            folder.mkdir(exist_ok=True)
        jobs = list_jobs(plan)
        failed = run_jobs(jobs, plan.jobs, keep_open=[lock])
        if not failed:
            for folder in shared:
                shutil.rmtree(folder)
        write_outcome(plan, summarise(plan, read_tests(plan, [job for job in jobs if _is_done(job)])))
    if failed:
        name, reason = next(iter(failed.items()))
        others = f"; missing too: {', '.join(list(failed)[1:])}" if len(failed) > 1 else ""
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} runs are missing, first {name} ({reason}){others}; "
            "the same command runs what is missing"
        )
    return 0


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[int]:
    """Create the folder and lock it; yield the lock's file descriptor for child processes.

    Unlike `deocc.files.hold_lock`, the lock also belongs to children that inherit the descriptor: those that outlive a
    killed parent still protect the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RuntimeError(
                f"{folder} is in use by another `deocc ablate` (process {file.read().strip() or 'unknown'}, or a run "
                "that it left behind): wait for it, end it, or give another --run"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def run_jobs(jobs: Sequence[Job], parallel: int, keep_open: Collection[int] = ()) -> dict[str, str]:
    """Run all jobs that are not done, each after those it needs, which precede it in the list.

    A failing job does not stop the others. On a machine with several GPUs, parallel jobs are spread over them. Children
    inherit the file descriptors `keep_open`, such as a lock's.

    Returns:
        The reason of each failure in one line, by job name.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once all child processes have ended.
    """
    waiting = [job for job in jobs if not _is_done(job)]
    for job in waiting:
        if changed := _changed_files(job):
            names = " and ".join(changed)
            print(f"{job.name} is run again: {names} in {job.folder} changed since it wrote them", flush=True)
    ended = len(jobs) - len(waiting)
    print(f"deocc ablate: {ended} of {len(jobs)} runs are done, {len(waiting)} to go", flush=True)
    gpus = torch.cuda.device_count() if parallel > 1 and _GPUS not in os.environ else 0
    devices = [str(number) for number in range(gpus)] if gpus > 1 else []
    begun = time.monotonic()
    failed: dict[str, str] = {}
    running: dict[Job, _Child] = {}
    with _terminating(running) as signals:
        while waiting or running:
            if signals:
                raise KeyboardInterrupt
            unfinished = {*waiting, *running}
            for job in list(waiting):
                # Another job may have failed, or its folder may have disappeared.
                lost = [other for other in job.after if not (other in unfinished or _is_done(other))]
                if lost:
                    waiting.remove(job)
                    failed[job.name] = f"needs {lost[0].name}"
                elif len(running) < parallel and all(_is_done(other) for other in job.after):
                    waiting.remove(job)
                    in_use = [device for _, _, device in running.values()]
                    device = min(devices, key=in_use.count, default=None)
                    running[job] = (_start_job(job, parallel, device, keep_open), time.monotonic(), device)
            finished = [job for job, (process, _, _) in running.items() if process.poll() is not None]
            if not finished:
                time.sleep(_POLL_SECONDS)
            for job in finished:
                process, start, _ = running.pop(job)
                ended += 1
                if reason := _finish(job, process.returncode):
                    failed[job.name] = reason
                outcome = f"FAILED ({reason})" if reason else "done"
                now = time.monotonic()
                times = f"after {_format_time(now - start)}, {_format_time(now - begun)} in all"
                print(f"[{ended}/{len(jobs)}] {job.name} {outcome} {times}", flush=True)
    return failed


def _start_job(job: Job, parallel: int, device: str | None, keep_open: Collection[int]) -> Process:
    """Start a job, resuming a training from its newest intact checkpoint if its fingerprint is the same."""
    command = list(job.command)
    if job.action == "fit" and job.folder.exists():
        reason = "its plan or files changed"
        started = job.file("started")
        if started.is_file() and started.read_text() == job.fingerprint:
            try:
                command.append(f"--ckpt_path={runs.find_checkpoint(job.folder, resume=True)}")
                reason = ""
            except FileNotFoundError:
                reason = "it was interrupted before its first checkpoint"
            except ValueError:
                reason = "all of its checkpoints are damaged"
        if reason:
            names = (job.folder.with_name(f"{job.folder.name}.replaced-{number}") for number in itertools.count(1))
            kept = next(path for path in names if not path.exists())
            job.folder.rename(kept)
            print(f"{job.name} starts again, because {reason}; the earlier run is kept as {kept}", flush=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    job.file("done").unlink(missing_ok=True)
    job.file("started").write_text(job.fingerprint)
    # Lightning would take the rank of a launcher, such as srun or torchrun, for the child's.
    environment = {name: value for name, value in os.environ.items() if not _LAUNCHER_VARIABLES.fullmatch(name)}
    environment.setdefault("DEOCC_BFLOAT16", "0")  # rows that were run on different processors can be compared
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // parallel))
    if device is not None:
        environment[_GPUS] = device
    return _start_process(command, job.file("log"), environment, keep_open)


def _start_process(argv: list[str], log: Path, environment: Mapping[str, str], keep_open: Collection[int]) -> Process:
    """Start a command in a session of its own, so that the terminal's Ctrl-C does not reach it."""
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=keep_open,
        )


def _finish(job: Job, exit_code: int) -> str:
    """Mark a job as done, or return the reason of its failure."""
    if exit_code != 0:
        log = job.file("log")
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = f"{log}: {lines[-1].strip()[:_MAX_LOG_LINE]}" if lines else f"{log} is empty"
        return f"exit code {exit_code}, {last}"
    recorded = [job.fingerprint]
    if job.action == "test":
        if not (job.folder / runs.RESULTS).is_file():
            return f"succeeded, but left no {runs.RESULTS} in {job.folder}"
        files = [job.folder / name for name in (runs.RESULTS, SCORES, CLEAN_SCORES)]
        recorded += [f"{checksum(file)} {file.name}" for file in files if file.is_file()]
    job.file("done").write_text("\n".join(recorded))
    return ""


@contextlib.contextmanager
def _terminating(running: Mapping[Job, _Child]) -> Iterator[list[int]]:
    """Collect the signals of Ctrl-C and SIGTERM in the yielded list, and terminate the children at the end.

    They are only recorded: an exception between the start of a child and its entry in `running` would leave the child
    running.
    """
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            try:
                process.wait(_TERMINATE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _is_done(job: Job) -> bool:
    """Return whether the job has succeeded with its current fingerprint and its result files are unchanged."""
    return _changed_files(job) == []  # None if it did not succeed


def _changed_files(job: Job) -> list[str] | None:
    """Return the result files that are missing or changed since the job wrote them; None if it did not succeed."""
    done = job.file("done")
    lines = done.read_text().splitlines() if done.is_file() else []
    if lines[:1] != [job.fingerprint]:
        return None
    changed = []
    for line in lines[1:]:
        digest, name = line.split(" ", 1)
        if not (job.folder / name).is_file() or checksum(job.folder / name) != digest:
            changed.append(name)
    return changed


def _format_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
