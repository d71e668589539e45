"""The model folder: write and read it, load a trained system, install a run as the pretrained model.

A model folder contains `config.json`, `model.safetensors` and the model card `README.md`. Nothing in it is executed.

python -m deocc.inference.model_folder RUN
"""

import argparse
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
import yaml

import deocc
from deocc import runs
from deocc.evaluation.thresholds import THRESHOLDS, Calibration, read_thresholds
from deocc.files import checksum, expand_user, write_file
from deocc.geometry import TEMPLATES
from deocc.inference.network import MOST_SIDE, FaceNetwork, network_of, network_of_checkpoint
from deocc.inference.pipeline import Pipeline
from deocc.messages import describe_error, telling_errors
from deocc.networks.weights import MODEL_CONFIG, MODEL_FORMAT, MODEL_WEIGHTS, read_model_folder

FOLDER: Final = "model"  # name of the model folder in a run folder
CONFIG, WEIGHTS, CARD = MODEL_CONFIG, MODEL_WEIGHTS, "README.md"
PRETRAINED: Final = Path(deocc.__file__).with_name("pretrained")  # model folder in this package
MOST_BYTES: Final = 16_000_000  # maximum size of the pretrained model, which is part of every wheel

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DEFAULT_SIZE: Final = 112  # of deocc.data.MaskedFaceDataModule


def face_contract(size: int) -> dict[str, Any]:
    """Describe the input of the networks: side of the canonical crop, its five points, colours and range."""
    return {
        "size": size,
        "template": [[round(float(x), 4), round(float(y), 4)] for x, y in TEMPLATES["canonical"].tensor(size)],
        "color_order": "RGB",
        "range": [-1.0, 1.0],
    }


def weight_bytes(network: FaceNetwork) -> bytes:
    """Return the weights as safetensors: matrices and filters in half precision, vectors and scalars in their own."""
    tensors = {}
    for name, value in network.own_state().items():
        large = value.ndim > 1 and value.is_floating_point()
        halved = large and bool((value.abs() <= torch.finfo(torch.float16).max).all())
        tensors[name] = (value.half() if halved else value).cpu().contiguous()
    return safetensors.torch.save(tensors)


def write_model(folder: Path, config: Mapping[str, Any], network: FaceNetwork, card: str) -> int:
    """Write a model folder and return its size in bytes.

    `config.json` is written last and contains the checksum of the weights, so that no two versions are mixed.
    """
    weights = weight_bytes(network)
    described = json.dumps({**MODEL_FORMAT, **config, "weights_sha256": checksum(weights)}, indent=2, allow_nan=False)
    contents = {WEIGHTS: weights, CARD: card.encode(), CONFIG: described.encode() + b"\n"}
    for name, content in contents.items():
        write_file(folder / name, content)
    return sum(map(len, contents.values()))


def read_model(folder: Path) -> tuple[dict[str, Any], FaceNetwork]:
    """Read configuration and network, in float32, of a model folder; errors as `read_model_folder` and `network_of`."""
    config, state = read_model_folder(folder)
    return config, network_of(config, state, str(folder))


def pretrained_folder() -> Path:
    """Return the folder of the pretrained model in this package, or raise FileNotFoundError if it has none."""
    if not (PRETRAINED / CONFIG).is_file():
        raise FileNotFoundError(
            f"this copy of deocc has no pretrained model (no {CONFIG} in {PRETRAINED}): "
            "name another one (a run, a checkpoint or a model folder), or train one, see `deocc fit --help`"
        )
    return PRETRAINED


def load(source: str | Path | None = None, device: str | torch.device = "cpu") -> Pipeline:
    """Load a trained system.

    Nothing in the files is executed, and only a repository on the Hugging Face hub needs a network connection.

    Args:
        source: a model folder; a run folder, of which `model/` is read unless a checkpoint is newer; a checkpoint of
            stage 2; or "owner/name" on the hub, of which only `config.json`, `model.safetensors` and `README.md` are
            fetched. Default: the pretrained model of this package.
        device: device of the networks.

    Raises:
        FileNotFoundError: there is no model at this place, or a file is missing.
        ValueError: a file is damaged, something else, or of another version.
        ImportError: huggingface_hub, or a package that the student needs, is not installed.
    """
    source = pretrained_folder() if source is None else source
    path = expand_user(source)
    model, checkpoints = path / FOLDER / CONFIG, (path / runs.CHECKPOINTS).glob("*.ckpt")
    mistyped = path.parent.is_dir() or path.suffix == ".ckpt"
    if path.is_file():
        pipeline = _load_checkpoint(path)
    elif (path / CONFIG).is_file() or (path / WEIGHTS).is_file():
        pipeline = _load_model(path)
    elif model.is_file() and all(model.stat().st_mtime_ns >= each.stat().st_mtime_ns for each in checkpoints):
        pipeline = _load_model(model.parent)
    elif path.is_dir():
        pipeline = _load_checkpoint(runs.find_checkpoint(path))
    elif isinstance(source, str) and _REPOSITORY.fullmatch(source) and not mistyped:
        pipeline = _load_model(_fetch(source))
    else:
        raise FileNotFoundError(
            f"no model at {path}: "
            "give a model folder, a run folder, a .ckpt file, or owner/name on the Hugging Face hub"
        )
    return pipeline.to(device)


def _load_model(folder: Path) -> Pipeline:
    config, network = read_model(folder)
    try:
        _check_size(config["face"]["size"], folder / CONFIG)
        entry = config[THRESHOLDS]
        return Pipeline(config, network, Calibration.from_plain(entry) if entry is not None else None)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = describe_error(error, 160)
        raise ValueError(f"{folder / CONFIG} is damaged ({reason}): get it again") from error


def _load_checkpoint(path: Path) -> Pipeline:
    config, network = network_of_checkpoint(path)
    calibration = read_thresholds(path)
    file = runs.run_folder_of(path) / runs.CONFIG
    size = _DEFAULT_SIZE
    if calibration is not None:
        size = calibration.size
    elif file.is_file():
        try:
            size = int(yaml.safe_load(file.read_text(encoding="utf-8"))["data"].get("size", size))
        except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{file} is damaged: get it again from the run that the checkpoint is of") from error
    else:
        warnings.warn(
            f"{path} was never tested and has no {runs.CONFIG} beside it: taking crops of {size} pixels", stacklevel=3
        )
    _check_size(size, path)
    config |= {"face": face_contract(size), THRESHOLDS: calibration.plain() if calibration is not None else None}
    return Pipeline(config, network, calibration)


def _check_size(size: object, path: Path) -> None:
    if not isinstance(size, int) or not 1 <= size <= MOST_SIDE:
        raise ValueError(f"{path} names crops of {str(size)[:20]} pixels: 1 to {MOST_SIDE} are allowed")


def _fetch(repository: str) -> Path:
    """Download the three files of a repository and return their folder."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(
            f"{repository} on the Hugging Face hub needs its package: pip install huggingface_hub"
        ) from error
    try:
        patterns = [CONFIG, WEIGHTS, CARD]
        folder = huggingface_hub.snapshot_download(repository, allow_patterns=patterns)  # nosec B615  # no code in them
        return Path(folder)
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"no folder {repository} here, "
            f"and it cannot be got from the Hugging Face hub ({describe_error(error, 160)})"
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Install the model folder of a tested run as the pretrained model; `argv` defaults to the command line.

    Raises:
        FileNotFoundError: there is no model folder, or a file is missing.
        ValueError: the model is damaged, lacks thresholds for a condition, or is larger than `MOST_BYTES`.
        OSError: the package cannot be written to.
    """
    description = "Install the model folder of a tested run as the pretrained model of the package."
    parser = argparse.ArgumentParser(prog="python -m deocc.inference.model_folder", description=description)
    parser.add_argument("run", type=Path, metavar="RUN", help="a stage-2 run that was tested on its own data")
    run: Path = parser.parse_args(argv).run
    folder = run / FOLDER if (run / FOLDER).is_dir() else run
    names = (WEIGHTS, CARD, CONFIG)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"no {missing[0]} in {folder}: write the model folder with `deocc test --checkpoint {run}`"
        )
    calibration = load(folder).thresholds
    lacking = [name for name, row in calibration.thresholds.items() if not row] if calibration else ["any condition"]
    if lacking:
        raise ValueError(f"{folder} has no thresholds for {', '.join(lacking)}: test the run on more validation people")
    sizes = {name: (folder / name).stat().st_size for name in names}
    total = f"{sum(sizes.values()) / 1e6:.1f} MB"
    most = f"{MOST_BYTES / 1e6:.0f}"
    if sum(sizes.values()) > MOST_BYTES:
        raise ValueError(f"{folder} has {total}, at most {most} MB are allowed: train smaller networks")
    for name in names:
        write_file(PRETRAINED / name, (folder / name).read_bytes())
    listed = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items())
    print(f"pretrained model: {PRETRAINED} ({listed}; {total} of {most})")


if __name__ == "__main__":
    with telling_errors():
        main()
