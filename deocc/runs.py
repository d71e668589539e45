"""Where runs and caches lie on disk.

A run is a folder: `config.yaml`, `metrics.csv`, `checkpoints/`, and what `deocc test` writes beside them.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deocc.files import cache_folder as cache_folder  # until every room imports it from there
from deocc.messages import describe_error

ROOT = Path("runs")
"""Where runs are looked for and written unless told otherwise, under the working directory."""
CONFIG, CHECKPOINTS, RESULTS, REPORT = "config.yaml", "checkpoints", "results.json", "report.html"
NEXT, LAST, PREVIOUS = "next.ckpt", "last.ckpt", "previous.ckpt"
"""The checkpoint that has just arrived and is about to become the last one, the last one, and the one before."""
_DEPTH = 4  # how far below the root a run may lie; `**` would be unbounded, but does not enter folders that are links


def free_folder(wanted: Path) -> Path:
    """`wanted` if no run lies there yet, else the first of `wanted-2`, `wanted-3`, ... that is free: a run is never overwritten."""
    return next(folder for folder in _numbered(wanted) if not _is_taken(folder))


def series(wanted: Path) -> list[Path]:
    """The runs at `wanted`, `wanted-2`, ... up to the first that is free."""
    return list(itertools.takewhile(_is_taken, _numbered(wanted)))


def check_writable(folder: Path) -> None:
    """Make the folder, and see that files can be made in it.

    Raises:
        OSError: they cannot.
    """
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}): give another folder as --run") from error


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


def find_checkpoint(where: str | Path, resume: bool = False) -> Path:
    """The checkpoint file at `where`, or the one to use of the run folder at `where`: the best, else the last that is intact.

    A damaged one is passed over, with a line on stderr.

    Args:
        where: a checkpoint file or a run folder.
        resume: whether training is to go on from it: then the last one is meant, whichever is the best.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: all that is there is damaged.
    """
    path = Path(where)
    found = [path] if path.is_file() else _checkpoints(path, resume)
    if not found:
        looked = f"looked for the file {path} and for {path / CHECKPOINTS}/*.ckpt"
        raise FileNotFoundError(
            f"no checkpoint at {path}: {looked}; train one with `deocc fit --config configs/...` or give another path"
        )
    for number, file in enumerate(found):
        problem = damage(file)
        if problem is None:
            return file
        if number + 1 < len(found):
            print(
                f"deocc: {file} is damaged ({problem}): taking {found[number + 1].name}, the one before",
                file=sys.stderr,
                flush=True,
            )
    raise ValueError(
        f"{found[-1]} is damaged ({problem}), and no other checkpoint is there: train the run again" + _beside(path)
    )


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint file, None where nothing is. torch writes a checksum beside each tensor, but compares none."""
    import zipfile  # here, since the light commands do without

    try:
        with zipfile.ZipFile(checkpoint) as archive:
            broken = archive.testzip()
    except Exception as error:  # whatever the bytes make of zipfile, the file is no checkpoint
        return describe_error(error)
    return None if broken is None else f"the checksum of {broken} is wrong"


def newest_run(monitored: str, root: Path = ROOT) -> Path:
    """The newest run folder below `root` (four levels, links included) whose configuration mentions `monitored`, such as a module's name.

    Raises:
        FileNotFoundError: there is none.
    """
    files = [path for depth in range(1, _DEPTH + 1) for path in root.glob(f"{'*/' * depth}{CONFIG}")]
    runs = [path.parent for path in files if _checkpoints(path.parent) and monitored in path.read_text()]
    if not runs:
        raise FileNotFoundError(
            f"no trained {monitored} below {root.absolute()}: train one first with `deocc fit`, or give a checkpoint"
        )
    return max(runs, key=lambda run: (run / CONFIG).stat().st_mtime)


def _numbered(wanted: Path) -> Iterator[Path]:
    return (wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(1))


def _is_taken(folder: Path) -> bool:
    return (folder / CONFIG).exists() or (folder / CHECKPOINTS).exists()


def _checkpoints(run: Path, resume: bool = False) -> list[Path]:
    """The run's checkpoints: the best, unless to resume; then the newest by name, since clocks jump; then any other."""

    def order() -> Iterator[Path]:
        folder = run / CHECKPOINTS
        for pattern in (*(() if resume else ("best*.ckpt",)), NEXT, LAST, "last*.ckpt", PREVIOUS, "*.ckpt"):
            yield from sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)

    return list(dict.fromkeys(order()))


def _beside(file: Path) -> str:
    """The advice to take another checkpoint of the folder that a damaged file lies in."""
    others = (
        [path.name for path in file.parent.glob("*.ckpt") if path != file and damage(path) is None]
        if file.is_file()
        else []
    )
    return f", or take {others[0]} beside it" if others else ""
