"""A model folder: `config.json`, `model.safetensors` in half precision and a model card, `README.md`."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

import deocc
from deocc.apps.pipeline.network import FaceNetwork, network_of
from deocc.geometry import TEMPLATES

FOLDER: Final = "model"
"""Name of the model folder in a run folder."""
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
PRETRAINED: Final = Path(deocc.__file__).with_name("pretrained")
"""The model folder that the package ships."""
FORMAT_VERSION: Final = 1
"""Raised when a reader of an earlier version would misread the folder."""

_FORMAT: Final = "deocc model"
_MOST_CONFIG: Final = 2**24  # bytes; ordinary files have some kilobytes


def face_contract(size: int) -> dict[str, Any]:
    """The networks' input: side of the canonical crop, its five points, order of colours and range."""
    return {
        "size": size,
        "template": [[round(float(x), 4), round(float(y), 4)] for x, y in TEMPLATES["canonical"].tensor(size)],
        "color_order": "RGB",
        "range": [-1.0, 1.0],
    }


def pretrained_folder() -> Path:
    """The folder of the pretrained model that the package ships.

    Raises:
        FileNotFoundError: this copy of the package has none.
    """
    if not (PRETRAINED / CONFIG).is_file():
        train = "name another one (a run, a checkpoint or a model folder), or train one, see `deocc fit --help`"
        raise FileNotFoundError(f"this copy of deocc has no pretrained model (no {CONFIG} in {PRETRAINED}): {train}")
    return PRETRAINED


def weight_bytes(network: FaceNetwork) -> bytes:
    """Weights as safetensors: matrices and filters in half precision, vectors and scalars, which are few, as they are."""
    return safetensors.torch.save({name: _halved(value.detach().cpu()).contiguous() for name, value in network.state_dict().items()})


def write_model(folder: Path, config: Mapping[str, Any], network: FaceNetwork, card: str) -> int:
    """Write the three files and return their size in bytes.

    Each file is written completely or not at all. `config.json` comes last and holds a hash of the weights, so that
    files of two versions are never mixed. `read_model` gives back a float32 network.

    Raises:
        OSError: the folder cannot be written to.
    """
    weights = weight_bytes(network)
    described = {"format": _FORMAT, "format_version": FORMAT_VERSION, **config, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    contents = {WEIGHTS: weights, CARD: card.encode(), CONFIG: json.dumps(described, indent=2, allow_nan=False).encode() + b"\n"}
    write_files(folder, contents)
    return sum(map(len, contents.values()))


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files by name into a folder, in this order, each completely or not at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        draft = folder / f".{name}.{os.getpid()}"
        try:
            draft.write_bytes(content)
            draft.replace(folder / name)
        finally:
            draft.unlink(missing_ok=True)


def read_model(folder: Path) -> tuple[dict[str, Any], FaceNetwork]:
    """The configuration and the network of a model folder.

    Raises:
        FileNotFoundError: `config.json` or `model.safetensors` is missing.
        ValueError: one of them is damaged, something else or of another version, or they do not belong together.
        ImportError: the student needs a package that is not installed.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in the model folder {folder}: write it again with `deocc test`, or get it again")
    config = _read_config(folder / CONFIG)
    content = (folder / WEIGHTS).read_bytes()
    state = _read_weights(content, folder / WEIGHTS)
    if hashlib.sha256(content).hexdigest() != config.get("weights_sha256"):
        raise ValueError(f"{folder / WEIGHTS} does not belong to its {CONFIG} (another hash): get both again")
    return config, network_of(config, state, str(folder))


def _halved(value: Tensor) -> Tensor:
    fits = value.is_floating_point() and bool((value.abs() <= torch.finfo(torch.float16).max).all())
    return value.half() if fits and value.ndim > 1 else value


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_CONFIG:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, at most {_MOST_CONFIG:,} are allowed: get it again")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): get it again") from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise ValueError(f"{path} describes no deocc model: give a model folder that `deocc test` wrote")
    if config.get("format_version") != FORMAT_VERSION:
        versions = f"has format version {config.get('format_version')}, this deocc reads {FORMAT_VERSION}"
        raise ValueError(f"{path} {versions}: install the deocc that wrote it, or write it again with `deocc test`")
    return config


def _read_weights(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # a file that is something else makes the reader fail in several ways
        raise ValueError(f"{path} is no safetensors file ({' '.join(str(error).split())[:120]}): get it again") from error
