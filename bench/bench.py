"""Speed and memory, side by side in one run: `make bench` prints the table and writes `bench/results.json`.

Times are medians of several calls; ours and the reference take turns, so that a machine whose speed drifts slows both. Peak memory is
that of a process of its own, above what it held before the call.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deocc.losses import triplet_relation_loss
from deocc.masking import list_kinds, render

DIMENSION = 512
RENDER_BATCH = 64
REPEATS = 5


def textbook_triplet_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """The triplet relation as it is usually written: B x B x D differences, then B x B x B angles."""

    def cosines(embedding: Tensor) -> Tensor:
        directions = F.normalize(embedding[None] - embedding[:, None], dim=2)
        return torch.bmm(directions, directions.transpose(1, 2))

    with torch.no_grad():
        target = cosines(teacher)
    size = len(student)
    return F.huber_loss(cosines(student), target, reduction="sum") / (size * (size - 1) * (size - 2))


LOSSES = {"ours": triplet_relation_loss, "textbook": textbook_triplet_relation}


def embeddings(size: int) -> tuple[Tensor, Tensor]:
    """Student and teacher embeddings of unit length, (size, 512)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (F.normalize(torch.randn(size, DIMENSION, generator=generator), dim=1) for _ in range(2))
    return student.requires_grad_(), teacher


def gradient(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    """Value and gradient of one call."""
    value = loss(student, teacher)
    return float(value.detach()), torch.autograd.grad(value, student)[0]


def seconds(calls: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """The median of each call, taken in turn after one warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def peak_mebibytes(loss: str, size: int) -> float:
    """Peak memory of one forward and backward pass, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--memory", loss, str(size)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(loss: str, size: int) -> None:
    """What `peak_mebibytes` starts."""
    gradient(LOSSES[loss], *embeddings(8))
    student, teacher = embeddings(size)
    before = _peak_kibibytes()
    gradient(LOSSES[loss], student, teacher)
    print((_peak_kibibytes() - before) / 1024)


def _peak_kibibytes() -> int:
    """This process's own peak so far, of Linux; getrusage's would start from the peak of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def bench_triplet(size: int) -> dict[str, object]:
    """Forward and backward pass of the triplet relation, ours against the textbook."""
    student, teacher = embeddings(size)
    values = {name: gradient(loss, student, teacher) for name, loss in LOSSES.items()}
    times = seconds({name: lambda loss=loss: gradient(loss, student, teacher) for name, loss in LOSSES.items()})  # type: ignore[misc]
    difference = (values["ours"][1] - values["textbook"][1]).norm() / values["textbook"][1].norm()
    memory = {name: peak_mebibytes(name, size) for name in LOSSES}
    return {
        "what": f"triplet relation, B = {size}, D = {DIMENSION}, forward and backward",
        "unit": "ms",
        "ours": 1000 * times["ours"],
        "reference": 1000 * times["textbook"],
        "speed-up": times["textbook"] / times["ours"],
        "ours MiB": memory["ours"],
        "reference MiB": memory["textbook"],
        "value, relative difference": abs(values["ours"][0] / values["textbook"][0] - 1),
        "gradient, relative difference": float(difference),
    }


def bench_renderer(size: int) -> dict[str, object]:
    """Masked faces a second on one thread, averaged over the kinds. Nothing to compare with is installable: see README."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    faces, seeds = torch.rand(RENDER_BATCH, 3, size, size) * 2 - 1, torch.arange(RENDER_BATCH)
    times = seconds({kind: lambda kind=kind: render(faces, None, kind, seeds) for kind in list_kinds()})  # type: ignore[misc]
    torch.set_num_threads(threads)
    rates = {kind: RENDER_BATCH / taken for kind, taken in times.items()}
    return {
        "what": f"renderer, {size} px, one thread, mean over kinds",
        "unit": "faces/s",
        "ours": statistics.mean(rates.values()),
        "kinds": rates,
    }


def main() -> None:
    """Measure everything, print the table, write the figures."""
    rows = [bench_triplet(128), bench_triplet(256), bench_triplet(512), bench_renderer(112), bench_renderer(256)]
    table = Table("", "unit", "ours", "reference", "speed-up", "ours MiB", "reference MiB")
    for row in rows:
        figures = [row.get(name) for name in ("ours", "reference", "speed-up", "ours MiB", "reference MiB")]
        table.add_row(str(row["what"]), str(row["unit"]), *[f"{figure:,.1f}" if isinstance(figure, float) else "" for figure in figures])
    Console(width=140).print(table)
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    Path(__file__).with_name("results.json").write_text(json.dumps({**machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print_peak(sys.argv[2], int(sys.argv[3]))
    else:
        main()
