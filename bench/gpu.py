"""Speed on one GPU: `python -m bench.gpu` measures renderer, triplet relation and training steps.

It prints a table and writes `bench/gpu.json`. `--device cpu --small` runs everything at tiny sizes in seconds, which
only shows that the script works.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from bench.bench import machine, table_of
from bench.gpu_kernels import device_name, renderer_rows, triplet_rows
from bench.gpu_training import at_paper_size, step_rows
from bench.measuring import Row
from bench.training import Setting, Stage, read_setting

RESULTS = Path(__file__).with_name("gpu.json")
STAGES: tuple[Stage, ...] = ("inpaint", "distill")
DETAILS = ("model-FLOP utilisation", "first loss deviation")


class Extent(NamedTuple):
    """Sizes of the measurement.

    Attributes:
        crops: crop sizes of the renderer.
        faces: batch sizes of the renderer.
        embeddings: batch sizes of the triplet relation.
        settings: configurations of the training steps.
        repeats: timed calls of renderer and relation.
        steps: timed training steps.
        backend: backend of `torch.compile`.
    """

    crops: tuple[int, ...]
    faces: tuple[int, ...]
    embeddings: tuple[int, ...]
    settings: tuple[Setting, ...]
    repeats: int
    steps: int
    backend: str


def full() -> Extent:
    """Return the sizes for a GPU: both stages as in `configs/` and at the paper's size."""
    settings = tuple(read(stage) for read in (read_setting, at_paper_size) for stage in STAGES)
    return Extent(
        (112, 256), (256, 1024), (256, 512, 1024, 2048, 4096), settings, repeats=7, steps=20, backend="inductor"
    )


def small() -> Extent:
    """Return tiny sizes for a test; the compiler traces the networks but generates no code."""
    settings = []
    for setting in map(read_setting, STAGES):
        widths = {"width": 8, "discriminator_width": 8, "segmenter_width": 8} if setting.stage == "inpaint" else {}
        data = setting.data | {"size": 64, "batch_size": 4}
        settings.append(setting._replace(model=setting.model | widths, data=data))
    return Extent((32,), (8,), (8,), tuple(settings), repeats=1, steps=1, backend="eager")


def parts(device: torch.device, extent: Extent) -> dict[str, Callable[[], Iterator[Row]]]:
    return {
        "renderer": lambda: renderer_rows(device, extent.crops, extent.faces, extent.repeats),
        "losses": lambda: triplet_rows(device, extent.embeddings, extent.repeats, extent.backend),
        "steps": lambda: (
            row for setting in extent.settings for row in step_rows(device, setting, extent.steps, extent.backend)
        ),
    }


def measure(device: torch.device, extent: Extent, wanted: list[str], output: Path) -> dict[str, Any]:
    """Measure the wanted parts and write the file after every row; other parts of the same device are kept."""
    known = json.loads(output.read_text()) if output.is_file() else {}
    name = device_name(device)
    figures: dict[str, Any] = {**(known if known.get("device") == name else {}), "device": name, "machine": machine()}
    for part in wanted:
        figures[part] = []
        for row in parts(device, extent)[part]():
            figures[part].append(row)
            output.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def main(arguments: list[str] | None = None) -> None:
    names = list(parts(torch.device("cpu"), small()))
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="cuda, cuda:1 or cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to check that everything runs")
    parser.add_argument(
        "--parts", nargs="+", choices=names, default=names, help="measure only these; others in the file are kept"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU found: give --device cpu --small to check that everything runs")
    figures = measure(options.device, small() if options.small else full(), options.parts, options.output)
    console = Console(width=200)
    console.print(table_of([row for part in options.parts for row in figures[part]], DETAILS))
    console.print(f"{figures['device']}; torch {torch.__version__}")


if __name__ == "__main__":
    main()
