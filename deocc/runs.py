"""Run folders, checkpoints and configuration files on disk.

A run is a folder with `config.yaml`, `metrics.csv`, `checkpoints/` and the files that `deocc test` writes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deocc.files import expand_user, is_stray
from deocc.messages import describe_error, say

ROOT = Path("runs")
"""Default folder of all runs, below the working directory."""
CONFIG, CHECKPOINTS, RESULTS, REPORT = "config.yaml", "checkpoints", "results.json", "report.html"
NEXT, LAST, PREVIOUS = "next.ckpt", "last.ckpt", "previous.ckpt"
"""The checkpoint that was just written and will become the last one, the last one, and the one before it."""
_CONFIGS = Path("configs")
_PATH_SETTINGS = (
    *("root", "pairs", "rec", "idx", "path", "names", "exclude"),
    *("detector_weights", "teacher_weights", "student_weights"),
)
_MAX_DEPTH = 4  # of a run below the root; `**` would be unbounded and does not follow links


def expand_paths(component: Any) -> None:
    """Make the existing paths of a face set or module absolute, since a run may be tested from any folder.

    The component is a dictionary or namespace of `class_path` and `init_args`, or None; it is changed in place.
    """
    component = component or {}
    settings: Any = component.get("init_args") or {}
    for key in _PATH_SETTINGS:
        value = settings.get(key)
        if key == "pairs" and str(component.get("class_path")).endswith("LfwFaces"):
            continue  # a name that is searched in several folders
        if isinstance(value, str) and (path := expand_user(value)).exists():
            settings[key] = str(path.absolute())


def find_config(name: str) -> Path:
    """Find a configuration file by path, or by a name such as `distill` or `trainer/gpu`, with or without `.yaml`.

    The first that exists: the path itself, `configs/NAME.yaml` in the working directory, the packaged NAME.yaml.

    Raises:
        FileNotFoundError: there is none; the message lists the packaged names beside it.
    """
    file_name = name if Path(name).suffix in {".yaml", ".yml"} else f"{name}.yaml"
    package = Path(__file__).parent  # of a wheel, which contains the configurations; in a clone they are beside it
    packaged = (package if (package / _CONFIGS).is_dir() else package.parent) / _CONFIGS
    for path in (Path(name), _CONFIGS / file_name, packaged / file_name):
        if path.is_file():
            return path
    folder = packaged / Path(name).parent
    if not folder.is_dir() or not folder.resolve().is_relative_to(packaged.resolve()):
        folder = packaged
    files = sorted(str(path.relative_to(packaged).with_suffix("")) for path in folder.glob("*.yaml"))
    folders = sorted(f"{path.relative_to(packaged)}/..." for path in folder.iterdir() if path.is_dir())
    known = ", ".join(files + folders)
    raise FileNotFoundError(f"no configuration {name} in {Path.cwd()}: give a file, or one of {known}")


def part_of_data(trainer: Any, *splits: str) -> dict[str, float]:
    """Return the settings of a trainer that leave out data of the given splits; nothing if all data are used.

    Args:
        trainer: a `Trainer`, or its part of a configuration.
        splits: of "train", "val", "test" and "predict".
    """
    found = {}
    for name in [f"limit_{split}_batches" for split in splits]:
        limit = getattr(trainer, name, None)
        if limit is not None and (isinstance(limit, int) or limit < 1):  # 1.0 is a share
            found[name] = limit
    if fast := getattr(trainer, "fast_dev_run", False):
        found["fast_dev_run"] = fast
    return found


def describe_part(part: Mapping[str, float]) -> str:
    """Return the settings found by `part_of_data` as text: `limit_test_batches 4`."""
    return ", ".join(f"{name} {value}" for name, value in part.items())


def series(wanted: Path) -> tuple[list[Path], Path]:
    """Return the runs at `wanted`, `wanted-2`, ..., and the first of these folders without a run."""
    found, folder = [], wanted
    while (folder / CONFIG).exists() or (folder / CHECKPOINTS).exists():
        found.append(folder)
        folder = wanted.with_name(f"{wanted.name}-{len(found) + 1}")
    return found, folder


def run_folder_of(checkpoint: Path) -> Path:
    """Return the run folder of a checkpoint file: the parent of `checkpoints/`, or else the file's own folder."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent


def face_set_of(run: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the class name and settings of the face set that a run is configured with; (None, {}) if unknown."""
    import yaml  # here, since the light commands do without

    file = run / CONFIG
    if not file.is_file():
        return None, {}
    entry = yaml.safe_load(file.read_text())["data"].get("face_set") or "OrlFaces"
    if isinstance(entry, str):
        return entry.rsplit(".", 1)[-1], {}
    expand_paths(entry)
    return str(entry["class_path"]).rsplit(".", 1)[-1], dict(entry.get("init_args") or {})


def find_checkpoint(where: str | Path, resume: bool = False) -> Path:
    """Find an intact checkpoint file; damaged ones are skipped with a message on stderr.

    Args:
        where: a checkpoint file, or a run folder, of which the best checkpoint is preferred, then the newest.
        resume: prefer the newest checkpoint over the best.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: all checkpoints are damaged.
    """
    path = expand_user(where)
    candidates = [path] if path.is_file() else _checkpoints(path, resume)
    if not candidates:
        raise FileNotFoundError(
            f"no checkpoint at {path}: looked for the file {path} and for {path / CHECKPOINTS}/*.ckpt; "
            "train one with `deocc fit --config ...` or give another path"
        )
    for number, file in enumerate(candidates, 1):
        problem = damage(file)
        if problem is None:
            return file
        if number < len(candidates):
            say(f"{file} is damaged ({problem}): taking {candidates[number].name}, the one before")
    beside = path.parent.glob("*.ckpt") if path.is_file() else ()
    intact = next((other.name for other in beside if other != path and damage(other) is None), None)
    remedy = "train the run again" + (f", or take {intact} beside it" if intact else "")
    raise ValueError(f"{candidates[-1]} is damaged ({problem}), and no other checkpoint is there: {remedy}")


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint file, or None. torch stores checksums of tensors but verifies none."""
    import zipfile  # here, since the light commands do without

    try:
        with zipfile.ZipFile(checkpoint) as archive:
            broken = archive.testzip()
    except Exception as error:  # zipfile raises almost anything for a file that is something else
        return describe_error(error)
    return None if broken is None else f"the checksum of {broken} is wrong"


def newest_run(monitored: str) -> Path:
    """Return the newest run whose configuration contains a text, such as a module's name.

    Runs are up to four levels below `ROOT`.

    Raises:
        FileNotFoundError: there is none.
    """
    files = []
    for depth in range(1, _MAX_DEPTH + 1):
        for path in ROOT.glob(f"{'*/' * depth}{CONFIG}"):
            stray = any(map(is_stray, path.relative_to(ROOT).parts))
            if not stray and _checkpoints(path.parent) and monitored in path.read_text():
                files.append(path)
    if not files:
        raise FileNotFoundError(
            f"no trained run of {monitored.rstrip('.')} below {ROOT.absolute()}: "
            "train one first with `deocc fit`, or give a checkpoint"
        )
    return max(files, key=lambda path: path.stat().st_mtime).parent


def _checkpoints(run: Path, resume: bool = False) -> list[Path]:
    """Return a run's checkpoints: the best unless resuming, then the newest by name, since clocks jump, then others."""
    patterns = [NEXT, LAST, "last*.ckpt", PREVIOUS, "*.ckpt"]
    found: dict[Path, None] = {}
    for pattern in patterns if resume else ["best*.ckpt", *patterns]:
        files = (path for path in (run / CHECKPOINTS).glob(pattern) if not is_stray(path.name))
        found.update(dict.fromkeys(sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)))
    return list(found)
