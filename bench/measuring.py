"""How everything is measured: times in turn, memory as the peak above what a process held before."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NotRequired, ParamSpec, TypedDict, TypeVar

Call = Callable[[], object]
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Row(TypedDict):
    """A line of the table; memory in MiB."""

    what: str
    unit: str
    ours: float
    reference: NotRequired[float]
    ratio: NotRequired[float]
    """How many times better ours is, median over pairs: reference / ours of times, ours / reference of rates."""
    ours_mib: NotRequired[float]
    reference_mib: NotRequired[float]
    details: NotRequired[dict[str, float]]
    """What goes to the file only."""


def in_own_process(
    function: Callable[_Arguments, _Result], *arguments: _Arguments.args, **options: _Arguments.kwargs
) -> _Result:
    """The function's result, from a fresh interpreter: no other measurement's memory, threads or caches are in it."""
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn")
    ) as pool:  # a Pool's process may not start loader workers
        return pool.submit(function, *arguments, **options).result()


def paired_seconds(ours: Call, reference: Call, pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of every call, in turn after a warm-up of both, so that a machine whose speed drifts slows both alike."""
    ours()
    reference()
    taken = [(seconds(ours), seconds(reference)) for _ in range(pairs)]
    return [pair[0] for pair in taken], [pair[1] for pair in taken]


def seconds(call: Call) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median of the pairs' ratios, which a drift of the machine leaves alone."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def peak_mebibytes(call: Call) -> float:
    """How far a call raises this process's peak memory; 0 where something before it took more."""
    before = _peak_kibibytes()
    call()
    return (_peak_kibibytes() - before) / 1024


def _peak_kibibytes() -> int:
    """This process's own peak so far, of Linux; getrusage's would start from the peak of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
