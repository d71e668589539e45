"""Speed and memory compared with reference implementations: `make bench`.

Prints a table and writes `bench/results.json`. Times are medians. Ours and the reference run alternately; the ratio is
the median over the pairs. "Loaded" is measured with two single-threaded busy processes beside. Every row is measured in
separate processes; peak memory is the increase during the call.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.kernels import measure_against_textbook, measure_alone, measure_embedder, measure_renderer
from bench.loading import compare_loading
from bench.measuring import Row
from bench.testing import measure_test_cost
from bench.training import against_bare_loop, against_fair_share, measure_teacher_cache

RESULTS = Path(__file__).with_name("results.json")
FIGURES = {
    "ours": "idle",
    "loaded": "loaded",
    "reference": "reference",
    "ratio": "ratio",
    "loaded_ratio": "loaded ratio",
    "ours_mib": "MiB",
    "reference_mib": "reference, MiB",
}
"""Key in a row and title of its column."""


def measure() -> Iterator[Row]:
    yield from measure_start()
    yield measure_against_textbook("pair relation", 256, pairs=40)
    yield measure_against_textbook("triplet relation", 256)
    yield measure_alone(4096, max_anchors=64)
    yield from measure_embedder()
    for size in (112, 256):
        yield from measure_renderer(size)
    yield (inpaint := against_bare_loop("inpaint", loading=False))
    yield (step := against_bare_loop("distill", loading=False))
    yield against_fair_share("inpaint", inpaint["ours"])
    yield against_fair_share("distill", step["ours"])
    yield against_bare_loop("inpaint", loading=True)
    yield against_bare_loop("distill", loading=True)
    yield measure_teacher_cache()
    yield from compare_loading(step["ours"])
    yield measure_test_cost()


def measure_start(pairs: int = 5) -> Iterator[Row]:
    """Measure CPU time: help beside the bare interpreter, the imports of `verify` beside `import torch`."""
    deocc, interpreter = str(Path(sys.executable).with_name("deocc")), [sys.executable, "-c"]
    compared = {
        "deocc --help": ([deocc, "--help"], [*interpreter, "pass"]),
        "deocc fit --help": ([deocc, "fit", "--help"], [*interpreter, "pass"]),
        "deocc mask --help": ([deocc, "mask", "--help"], [*interpreter, "pass"]),
        "imports of deocc verify": ([*interpreter, "import deocc.commands.verify"], [*interpreter, "import torch"]),
    }
    for what, commands in compared.items():
        taken = [[_cpu_seconds(command) for command in commands] for _ in range(pairs + 1)][1:]  # after a warm-up
        ours, reference = (statistics.median(times) for times in zip(*taken, strict=True))
        yield {"what": f"{what}, CPU time", "unit": "s", "ours": ours, "reference": reference}


def _cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def table_of(rows: Iterable[Row], details: Sequence[str] = ()) -> Table:
    table = Table("", "unit", *FIGURES.values(), *details, box=box.MARKDOWN)
    for row in rows:
        figures = [row.get(name) for name in FIGURES] + [row.get("details", {}).get(name) for name in details]
        table.add_row(row["what"], row["unit"], *map(format_figure, figures))
    return table


def format_figure(value: object) -> str:
    """Format a number with three significant digits; empty for anything else."""
    if not isinstance(value, float):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description="Compare speed and memory with reference implementations.").parse_args(argv)
    start, console = time.perf_counter(), Console(width=160)
    with console.status("measuring"):
        rows = list(measure())
    minutes = (time.perf_counter() - start) / 60
    RESULTS.write_text(json.dumps({"machine": machine(), "minutes": minutes, "rows": rows}, indent=2) + "\n")
    console.print(table_of(rows))
    console.print(", ".join(f"{name} {value}" for name, value in machine().items()), f"{minutes:.1f} minutes", sep="; ")


if __name__ == "__main__":
    main()
