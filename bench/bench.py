"""Speed and memory, side by side in one run: `make bench` prints the table and writes `bench/results.json`.

Times are medians; ours and the reference take turns, and the ratio is the median over the pairs. Every line is measured in processes of
its own; peak memory is that of a process above what it held before the call.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.loading import loading_against_step
from bench.measuring import Row
from bench.relations import against_textbook, alone
from bench.renderer import faces_per_second
from bench.start import help_text
from bench.teacher_cache import teacher_cache_gain
from bench.training import against_bare_loop

RESULTS = Path(__file__).with_name("results.json")
FIGURES = ("ours", "reference", "ratio", "ours_mib", "reference_mib")


def measure() -> Iterator[Row]:
    """All lines, as they come."""
    yield help_text()
    for size in (128, 256, 512):
        yield against_textbook(size)
    yield alone(1024, max_vertices=None)
    yield alone(4096, max_vertices=64)
    for size in (112, 256):
        yield from faces_per_second(size)
    yield against_bare_loop("inpaint", loading=False)
    yield (step := against_bare_loop("distill", loading=False))
    yield against_bare_loop("inpaint", loading=True)
    yield against_bare_loop("distill", loading=True)
    yield teacher_cache_gain()
    yield from loading_against_step(step["ours"])


def shown(value: object) -> str:
    """A figure with as many digits as it needs; empty where there is none."""
    if not isinstance(value, float):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> dict[str, object]:
    """What the figures belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        **versions,
    }


def main() -> None:
    """Measure everything, print the table, write the figures."""
    start, rows, console = time.perf_counter(), [], Console(width=140)
    table = Table("", "unit", "ours", "reference", "ratio", "ours, MiB", "reference, MiB", box=box.MARKDOWN)
    with console.status("measuring"):
        for row in measure():
            rows.append(row)
            table.add_row(row["what"], row["unit"], *[shown(row.get(name)) for name in FIGURES])
    figures = {"machine": machine(), "minutes": (time.perf_counter() - start) / 60, "rows": rows}
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(table)
    console.print(
        ", ".join(f"{name} {value}" for name, value in machine().items()), f"{figures['minutes']:.1f} minutes", sep="; "
    )


if __name__ == "__main__":
    main()
