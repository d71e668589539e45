"""Load a `Pipeline`: the package's own, or from a path or a repository on the Hugging Face hub."""

import re
import warnings
from pathlib import Path
from typing import Final

import torch
import yaml

from deocc import runs
from deocc.apps.pipeline.folder import CARD, CONFIG, FOLDER, WEIGHTS, face_contract, pretrained_folder, read_model
from deocc.apps.pipeline.network import MOST_SIDE, network_of_checkpoint
from deocc.apps.pipeline.pipeline import Pipeline
from deocc.callbacks.calibration import THRESHOLDS, read_thresholds
from deocc.evaluation.calibration import Calibration
from deocc.networks.weights import read_checkpoint

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_USUAL_SIZE: Final = 112  # of deocc.data.MaskedFaceDataModule


def load(source: str | Path | None = None, device: str | torch.device = "cpu") -> Pipeline:
    """Load a trained system.

    Nothing that a file holds is executed, and only a repository on the hub needs a network.

    Args:
        source: a model folder; a run folder (its `model/`, unless its checkpoint is newer); a stage-2 checkpoint; or
            "owner/name" on the Hugging Face hub, of which only `config.json`, `model.safetensors` and `README.md` are
            fetched. Default: the pretrained model of this package.
        device: where to put the networks.

    Raises:
        FileNotFoundError: there is nothing at this place, or a file is missing.
        ValueError: a file is damaged, something else, or of another version.
        ImportError: "owner/name" without the package huggingface_hub, or a package that the student needs is not installed.
    """
    return _load(pretrained_folder() if source is None else source).to(device)


def _load(source: str | Path) -> Pipeline:
    path = Path(source).expanduser()
    if path.is_file():
        return _of_checkpoint(path)
    if path.is_dir():
        return _of_folder(path)
    if isinstance(source, str) and _is_repository(source):
        return _of_model(_fetch(source))
    looked = "a model folder, a run folder, a .ckpt file, or owner/name on the Hugging Face hub"
    raise FileNotFoundError(f"no model at {path}: give {looked}")


def _of_folder(path: Path) -> Pipeline:
    """A model folder, or a run folder."""
    if (path / CONFIG).is_file() or (path / WEIGHTS).is_file():
        return _of_model(path)
    model, checkpoints = path / FOLDER / CONFIG, sorted((path / runs.CHECKPOINTS).glob("*.ckpt"))
    if model.is_file() and all(model.stat().st_mtime_ns >= each.stat().st_mtime_ns for each in checkpoints):
        return _of_model(path / FOLDER)
    return _of_checkpoint(runs.find_checkpoint(path))


def _of_model(folder: Path) -> Pipeline:
    config, network = read_model(folder)
    try:
        _check_size(config["face"]["size"], folder / CONFIG)
        entry = config["thresholds"]
        return Pipeline(config, network, Calibration.from_plain(entry) if entry is not None else None)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({' '.join(str(error).split())[:160]}): get it again") from error


def _of_checkpoint(path: Path) -> Pipeline:
    checkpoint = read_checkpoint(path)
    config, network = network_of_checkpoint(checkpoint, str(path))
    calibration = read_thresholds(path)
    size = calibration.size if calibration is not None else _size_of_run(path)
    _check_size(size, path)
    return Pipeline({**config, "face": face_contract(size), THRESHOLDS: calibration and calibration.plain()}, network, calibration)


def _check_size(size: object, path: Path) -> None:
    if not isinstance(size, int) or not 1 <= size <= MOST_SIDE:
        raise ValueError(f"{path} names crops of {str(size)[:20]} pixels: 1 to {MOST_SIDE} are allowed")


def _size_of_run(checkpoint: Path) -> int:
    """The side of the crops that the run's configuration names."""
    file = runs.run_folder_of(checkpoint) / runs.CONFIG
    if file.is_file():
        try:
            return int(yaml.safe_load(file.read_text(encoding="utf-8"))["data"].get("size", _USUAL_SIZE))
        except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{file} is damaged: get it again from the run that the checkpoint is of") from error
    warnings.warn(f"{checkpoint} was never tested and has no {runs.CONFIG} beside it: taking crops of {_USUAL_SIZE} pixels", stacklevel=4)
    return _USUAL_SIZE


def _is_repository(source: str) -> bool:
    """Whether it reads as owner/name, and not as a path that was mistyped."""
    return _REPOSITORY.fullmatch(source) is not None and not Path(source).parent.is_dir() and Path(source).suffix != ".ckpt"


def _fetch(repository: str) -> Path:
    """Download the three files of a repository; the folder that they are in."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(f"{repository} on the Hugging Face hub needs its package: pip install huggingface_hub") from error
    failures: tuple[type[Exception], ...] = (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError)
    try:
        wanted = [CONFIG, WEIGHTS, CARD]
        fetched = huggingface_hub.snapshot_download(repository, allow_patterns=wanted)  # nosec B615  # text and numbers, nothing to run
    except failures as error:
        reason = " ".join(str(error).split())[:160]
        raise FileNotFoundError(f"no folder {repository} here, and it cannot be got from the Hugging Face hub ({reason})") from error
    return Path(fetched)
