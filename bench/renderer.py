"""Speed of the mask renderer on one thread, by kind. There is no public renderer to compare it with."""

import statistics

import torch

from bench.measuring import Row, in_own_process, peak_mebibytes, seconds
from deocc.masking import list_kinds, render

_MAX_BATCH = 64
_MAX_PIXELS = 2**21
"""Of a batch, 24 MiB: glibc returns blocks above 32 MiB to the system, and every call would request them again."""

_LARGE_BLOCK = 31 * 2**20
"""Bytes; releasing a block of nearly 32 MiB makes glibc keep blocks of up to this size."""


def measure_renderer(size: int, repeats: int = 5) -> list[Row]:
    """Return one row per kind and one for all kinds in equal shares, at crops of `size` pixels.

    The rate of all kinds is total faces by total seconds; the mean of the rates, which favours fast kinds, is a detail.
    """
    taken, memory = in_own_process(times, size, repeats)
    rates = {kind: batch_size(size) / median for kind, median in taken.items()}
    rows: list[Row] = [
        {"what": f"renderer, {size} px, {kind}", "unit": "faces/s", "ours": rate} for kind, rate in rates.items()
    ]
    all_kinds: Row = {
        "what": f"renderer, {size} px, all kinds",
        "unit": "faces/s",
        "ours": statistics.harmonic_mean(rates.values()),
        "ours_mib": memory,
        "details": {"mean of the kinds' rates": statistics.mean(rates.values())},
    }
    return [*rows, all_kinds]


def batch_size(size: int) -> int:
    """Return the number of crops of `size` pixels that are rendered together."""
    return min(_MAX_BATCH, _MAX_PIXELS // size**2)


def times(size: int, repeats: int) -> tuple[dict[str, float], float]:
    """Return the median seconds of a batch by kind, and the peak MiB.

    A fresh process may return memory to the system after every call, which costs half as much again as the rendering;
    a training process has long stopped doing so. Releasing one large block first has the same effect.
    """
    torch.set_num_threads(1)
    torch.empty(_LARGE_BLOCK, dtype=torch.uint8)  # never written, so it uses no memory
    batch = batch_size(size)
    faces, seeds = torch.rand(batch, 3, size, size).mul_(2).sub_(1), torch.arange(batch)
    taken: dict[str, list[float]] = {kind: [] for kind in list_kinds()}

    def render_all() -> None:
        for repeat in range(repeats + 1):
            for kind, values in taken.items():
                value = seconds(lambda kind=kind: render(faces, None, kind, seeds))  # type: ignore[misc]
                if repeat > 0:  # after a warm-up
                    values.append(value)

    render(faces[:1], None, "box", seeds[:1])
    memory = peak_mebibytes(render_all)
    return {kind: statistics.median(values) for kind, values in taken.items()}, memory
