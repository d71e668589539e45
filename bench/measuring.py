"""Measurement of time and memory on the CPU."""

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
    """A row of the table; memory in MiB."""

    what: str
    unit: str
    ours: float
    reference: NotRequired[float]
    ratio: NotRequired[float]
    """How many times ours is better, median over pairs: reference / ours for times, ours / reference for rates."""
    ours_mib: NotRequired[float]
    reference_mib: NotRequired[float]
    details: NotRequired[dict[str, float]]
    """Figures that are only written to the file."""


def in_own_process(
    function: Callable[_Arguments, _Result], *arguments: _Arguments.args, **options: _Arguments.kwargs
) -> _Result:
    """Call a function in a new interpreter, without the memory, threads and caches of other measurements."""
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn")
    ) as pool:  # a `Pool` process cannot start loader workers
        return pool.submit(function, *arguments, **options).result()


def paired_seconds(ours: Call, reference: Call, pairs: int) -> tuple[list[float], list[float]]:
    """Time two calls alternately after a warm-up, so that a change of the machine's speed affects both."""
    ours()
    reference()
    taken = [(seconds(ours), seconds(reference)) for _ in range(pairs)]
    return [pair[0] for pair in taken], [pair[1] for pair in taken]


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
