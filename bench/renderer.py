"""The mask renderer on one thread, kind by kind. No public one can be installed beside it, so there is no reference."""

import statistics

import torch

from bench.measuring import Row, in_own_process, peak_mebibytes, seconds
from deocc.masking import list_kinds, render

BATCH = 64
PIXELS = (
    2**21
)  # of a batch at most, 24 MiB: glibc gives blocks above 32 MiB back at once, and every call would fetch them anew
KEPT = (
    31 * 2**20
)  # bytes, almost the largest block whose release teaches glibc to keep blocks of its size, and twice that in all


def faces_per_second(size: int, repeats: int = 5) -> list[Row]:
    """A row for each kind, and one for all kinds in equal shares, at a crop of so many pixels a side.

    All kinds together are faces over seconds; the mean of the kinds' rates, which favours the fast ones, goes to the file.
    """
    taken, memory = in_own_process(times, size, repeats)
    rates = {kind: batch_size(size) / median for kind, median in taken.items()}
    rows: list[Row] = [
        {"what": f"renderer, {size} px, {kind}", "unit": "faces/s", "ours": rate} for kind, rate in rates.items()
    ]
    together: Row = {
        "what": f"renderer, {size} px, all kinds",
        "unit": "faces/s",
        "ours": statistics.harmonic_mean(rates.values()),
        "ours_mib": memory,
        "details": {"mean of the kinds' rates": statistics.mean(rates.values())},
    }
    return [*rows, together]


def batch_size(size: int) -> int:
    """Faces rendered together at a crop of so many pixels a side."""
    return min(BATCH, PIXELS // size**2)


def times(size: int, repeats: int) -> tuple[dict[str, float], float]:
    """Median seconds of a batch by kind, the kinds in turn after a warm-up, and the MiB that they take at most.

    In a fresh process chance decides whether glibc gives the memory back after every call, at 80 page faults a face and more than half as
    long again. A training process has long released larger blocks, and keeps it; here one is released first.
    """
    torch.set_num_threads(1)
    torch.empty(KEPT, dtype=torch.uint8)  # never written to, so that it takes no memory
    batch = batch_size(size)
    faces, seeds = torch.rand(batch, 3, size, size).mul_(2).sub_(1), torch.arange(batch)
    taken: dict[str, list[float]] = {kind: [] for kind in list_kinds()}

    def render_all() -> None:
        for turn in range(repeats + 1):
            for kind, values in taken.items():
                value = seconds(lambda kind=kind: render(faces, None, kind, seeds))  # type: ignore[misc]
                values += [value] if turn else []

    render(faces[:1], None, "box", seeds[:1])
    memory = peak_mebibytes(render_all)
    return {kind: statistics.median(values) for kind, values in taken.items()}, memory
