"""The mask renderer on one thread, kind by kind. No public one can be installed beside it, so there is no reference."""

import statistics

import torch

from bench.measuring import Row, in_own_process, peak_mebibytes, seconds
from deocc.masking import list_kinds, render

BATCH = 64


def faces_per_second(size: int, repeats: int = 5) -> list[Row]:
    """A row for each kind, and one for all kinds in equal shares, at a crop of so many pixels a side."""
    taken, memory = in_own_process(times, size, repeats)
    rates = {kind: BATCH / median for kind, median in taken.items()}
    rows: list[Row] = [{"what": f"renderer, {size} px, {kind}", "unit": "faces/s", "ours": rate} for kind, rate in rates.items()]
    together = BATCH * len(taken) / sum(taken.values())
    return [*rows, {"what": f"renderer, {size} px, all kinds", "unit": "faces/s", "ours": together, "ours_mib": memory}]


def times(size: int, repeats: int) -> tuple[dict[str, float], float]:
    """Median seconds of a batch by kind, the kinds in turn after a warm-up, and the MiB that they take at most."""
    torch.set_num_threads(1)
    faces, seeds = torch.rand(BATCH, 3, size, size) * 2 - 1, torch.arange(BATCH)
    taken: dict[str, list[float]] = {kind: [] for kind in list_kinds()}

    def render_all() -> None:
        for turn in range(repeats + 1):
            for kind, values in taken.items():
                value = seconds(lambda kind=kind: render(faces, None, kind, seeds))  # type: ignore[misc]
                values += [value] if turn else []

    render(faces[:1], None, "box", seeds[:1])
    memory = peak_mebibytes(render_all)
    return {kind: statistics.median(values) for kind, values in taken.items()}, memory
