"""One GPU: `python -m bench.gpu` prints renderer, triplet relation and the steps of both stages, and writes them to `bench/gpu.json`.

`--device cpu --small` runs all of it at tiny sizes and in seconds: its figures mean nothing, but the script is known to work.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.bench import FIGURES, machine, shown
from bench.devices import device_name
from bench.gpu_kernels import renderer_rows, triplet_rows
from bench.gpu_training import at_paper_size, step_rows
from bench.measuring import Row
from bench.training import Setting, Stage, read_setting

RESULTS = Path(__file__).with_name("gpu.json")
STAGES: tuple[Stage, ...] = ("inpaint", "distill")
DETAILS = ("model-FLOP utilisation", "first loss deviation")


class Extent(NamedTuple):
    """How much is measured."""

    crops: tuple[int, ...]
    faces: tuple[int, ...]
    """Batches that are rendered."""
    embeddings: tuple[int, ...]
    """Batches of the triplet relation."""
    settings: tuple[Setting, ...]
    repeats: int
    steps: int
    backend: str
    """Of torch.compile."""


def full() -> Extent:
    """For a GPU: both stages as `configs/` says, and at the paper's size."""
    settings = tuple(read(stage) for read in (read_setting, at_paper_size) for stage in STAGES)
    return Extent(
        (112, 256), (256, 1024), (256, 512, 1024, 2048, 4096), settings, repeats=7, steps=20, backend="inductor"
    )


def small() -> Extent:
    """For a test: the compiler reads the networks and generates no code."""
    return Extent(
        (32,), (8,), (8,), tuple(_smaller(read_setting(stage)) for stage in STAGES), repeats=1, steps=1, backend="eager"
    )


def _smaller(setting: Setting) -> Setting:
    widths = {"width": 8, "discriminator_width": 8, "segmenter_width": 8} if setting.stage == "inpaint" else {}
    return setting._replace(model=setting.model | widths, data=setting.data | {"size": 64, "batch_size": 4})


def parts(device: torch.device, extent: Extent) -> dict[str, Callable[[], Iterator[Row]]]:
    """What can be measured, by name."""
    return {
        "renderer": lambda: renderer_rows(device, extent.crops, extent.faces, extent.repeats),
        "losses": lambda: triplet_rows(device, extent.embeddings, extent.repeats, extent.backend),
        "steps": lambda: (
            row for setting in extent.settings for row in step_rows(device, setting, extent.steps, extent.backend)
        ),
    }


def measure(device: torch.device, extent: Extent, wanted: list[str], output: Path) -> dict[str, Any]:
    """Measure the wanted parts, of which an earlier run's figures of the same device are replaced; written after every line."""
    known = json.loads(output.read_text()) if output.is_file() else {}
    name = device_name(device)
    figures: dict[str, Any] = {**(known if known.get("device") == name else {}), "device": name, "machine": machine()}
    for part in wanted:
        figures[part] = []
        for row in parts(device, extent)[part]():
            figures[part].append(row)
            output.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def table_of(rows: list[Row]) -> Table:
    """The lines of a terminal."""
    table = Table("", "unit", "ours", "reference", "ratio", "ours, MiB", "reference, MiB", *DETAILS, box=box.MARKDOWN)
    for row in rows:
        details = row.get("details", {})
        table.add_row(
            row["what"],
            row["unit"],
            *[shown(row.get(name)) for name in FIGURES],
            *[shown(details.get(name)) for name in DETAILS],
        )
    return table


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table."""
    names = list(parts(torch.device("cpu"), small()))
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="cuda, cuda:1 or cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument(
        "--parts", nargs="+", choices=names, default=names, help="measure these only; the file's others stay"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is there: give --device cpu --small to see that everything runs")
    figures = measure(options.device, small() if options.small else full(), options.parts, options.output)
    console = Console(width=200)
    console.print(table_of([row for part in options.parts for row in figures[part]]))
    console.print(f"{figures['device']}; torch {torch.__version__}")


if __name__ == "__main__":
    main()
