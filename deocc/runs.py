"""Where runs and caches lie on disk.

A run is a folder: `config.yaml`, `metrics.csv`, `checkpoints/`, and what `deocc test` writes beside them.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path("runs")
"""Where runs are looked for and written unless told otherwise, under the working directory."""
CONFIG, CHECKPOINTS, RESULTS, REPORT = "config.yaml", "checkpoints", "results.json", "report.html"
_DEPTH = 4  # how far below the root a run may lie; `**` would be unbounded, but does not enter folders that are links


def cache_folder() -> Path:
    """Where what takes long to find is kept: the environment's DEOCC_CACHE or `~/.cache/deocc`."""
    return Path(os.environ.get("DEOCC_CACHE") or "~/.cache/deocc").expanduser()


def free_folder(wanted: Path) -> Path:
    """`wanted` if no run lies there yet, else the first of `wanted-2`, `wanted-3`, ... that is free: a run is never overwritten."""
    candidates = [wanted, *(wanted.with_name(f"{wanted.name}-{number}") for number in range(2, 10_000))]
    return next(folder for folder in candidates if not (folder / CONFIG).exists() and not (folder / CHECKPOINTS).exists())


def run_folder_of(checkpoint: Path) -> Path:
    """The run that a checkpoint file belongs to: the folder above `checkpoints/`, or the file's own folder where it lies elsewhere."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent


def face_set_of(run: Path) -> tuple[str | None, dict[str, Any]]:
    """The class name and the settings of the face set in a run's configuration; None and nothing where it has no configuration."""
    import yaml  # here, since the light commands do without

    file = run / CONFIG
    entry = yaml.safe_load(file.read_text())["data"].get("face_set") if file.is_file() else None
    if entry is None:
        return ("OrlFaces" if file.is_file() else None), {}
    settings = {} if isinstance(entry, str) else dict(entry.get("init_args") or {})
    return str(entry if isinstance(entry, str) else entry["class_path"]).rsplit(".", 1)[-1], settings


def find_checkpoint(where: str | Path) -> Path:
    """The checkpoint file at `where`, or the one to use of the run folder at `where`: the best, else the last.

    Raises:
        FileNotFoundError: neither is there.
    """
    path = Path(where)
    if path.is_file():
        return path
    found = _checkpoints(path)
    if not found:
        looked = f"looked for the file {path} and for {path / CHECKPOINTS}/*.ckpt"
        raise FileNotFoundError(f"no checkpoint at {path}: {looked}; train one with `deocc fit --config configs/...` or give another path")
    return found[0]


def newest_run(monitored: str, root: Path = ROOT) -> Path:
    """The newest run folder below `root` (four levels, links included) whose configuration mentions `monitored`, such as a module's name.

    Raises:
        FileNotFoundError: there is none.
    """
    files = [path for depth in range(1, _DEPTH + 1) for path in root.glob(f"{'*/' * depth}{CONFIG}")]
    runs = [path.parent for path in files if _checkpoints(path.parent) and monitored in path.read_text()]
    if not runs:
        raise FileNotFoundError(f"no trained {monitored} below {root.absolute()}: train one first with `deocc fit`, or give a checkpoint")
    return max(runs, key=lambda run: (run / CONFIG).stat().st_mtime)


def _checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, best first: `best*.ckpt` by age, then `last.ckpt`, then any other."""

    def order() -> Iterator[Path]:
        folder = run / CHECKPOINTS
        for pattern in ("best*.ckpt", "last*.ckpt", "*.ckpt"):
            yield from sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)

    return list(dict.fromkeys(order()))
