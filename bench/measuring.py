"""Measurement of time and memory on the CPU."""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NotRequired, ParamSpec, TypedDict, TypeVar

BUSY = 2
"""Busy processes beside a measurement under load."""
_BUSY_LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
Call = Callable[[], object]
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Row(TypedDict):
    """A row of the table; memory in MiB."""

    what: str
    unit: str
    ours: float
    loaded: NotRequired[float]
    """As `ours`, with `BUSY` processes beside it."""
    reference: NotRequired[float]
    ratio: NotRequired[float]
    """Factor by which ours is better, median over pairs: reference / ours for times, ours / reference for rates."""
    loaded_ratio: NotRequired[float]
    """As `ratio`, both measured under load."""
    ours_mib: NotRequired[float]
    reference_mib: NotRequired[float]
    details: NotRequired[dict[str, float]]
    """Figures that are only written to the file."""


class Pairs(NamedTuple):
    """Seconds of ours and of the reference, measured alternately."""

    ours: list[float]
    reference: list[float]

    def ratio(self) -> float:
        """Return how many times ours is faster."""
        return median_ratio(self.reference, self.ours)


def compared(what: str, unit: str, idle: Pairs, loaded: Pairs | None = None, count: int = 1) -> Row:
    """Return the row of a comparison, in "ms" per call or in a rate of `count` items per call."""

    def figure(taken: list[float]) -> float:
        return 1000 * statistics.median(taken) if unit == "ms" else count / statistics.median(taken)

    row: Row = {
        "what": what,
        "unit": unit,
        "ours": figure(idle.ours),
        "reference": figure(idle.reference),
        "ratio": idle.ratio(),
    }
    if loaded is not None:
        row["loaded"], row["loaded_ratio"] = figure(loaded.ours), loaded.ratio()
    return row


@contextmanager
def load(processes: int = BUSY) -> Iterator[None]:
    """Run single-threaded busy processes during the block; they end with this process."""
    started = [subprocess.Popen([sys.executable, "-c", _BUSY_LOOP, str(os.getpid())]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def in_own_process(
    function: Callable[_Arguments, _Result], *arguments: _Arguments.args, **options: _Arguments.kwargs
) -> _Result:
    """Call a function in a new interpreter, without the memory, threads and caches of other measurements."""
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn")
    ) as pool:  # a `Pool` process cannot start loader workers
        return pool.submit(function, *arguments, **options).result()


def paired_seconds(ours: Call, reference: Call, pairs: int) -> Pairs:
    """Time two calls alternately after a warm-up, so that a change of the machine's speed affects both."""
    ours()
    reference()
    taken = [(seconds(ours), seconds(reference)) for _ in range(pairs)]
    return Pairs([pair[0] for pair in taken], [pair[1] for pair in taken])


def idle_and_loaded(ours: Call, reference: Call, pairs: int) -> tuple[Pairs, Pairs]:
    """Time two calls alternately, first alone and then under load."""
    idle = paired_seconds(ours, reference, pairs)
    with load():
        return idle, paired_seconds(ours, reference, pairs)


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Return the median ratio of the pairs, which a slow change of the machine's speed does not affect."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def peak_mebibytes(call: Call) -> float:
    """Return by how much a call raises this process's peak memory; 0 if an earlier peak was higher."""
    before = _peak_kibibytes()
    call()
    return (_peak_kibibytes() - before) / 1024


def _peak_kibibytes() -> int:
    """Return this process's peak (Linux); that of getrusage includes the parent process."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
