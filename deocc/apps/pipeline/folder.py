"""A model folder: `config.json`, `model.safetensors` and a model card, `README.md`. Nothing in it is ever executed."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
from torch import Tensor

from deocc.apps.pipeline.network import FaceNetwork, network_of
from deocc.geometry import TEMPLATES

FOLDER: Final = "model"
"""The folder's name in a run folder."""
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT_VERSION: Final = 1
"""Raised when a reader of an earlier version would misread the folder."""

_FORMAT: Final = "deocc model"
_MOST_CONFIG: Final = 2**24  # bytes. OURS: they are some kilobytes


def face_contract(size: int) -> dict[str, Any]:
    """What a face is to the networks: the canonical crop of this side, its five points, colours and range."""
    return {
        "size": size,
        "template": [[round(float(x), 4), round(float(y), 4)] for x, y in TEMPLATES["canonical"].tensor(size)],
        "color_order": "RGB",
        "range": [-1.0, 1.0],
    }


def write_model(folder: Path, config: Mapping[str, Any], network: FaceNetwork, card: str) -> None:
    """Write the three files, each whole or not at all, `config.json` last: it holds a hash of the weights, so that no two versions mix.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()})
    described = {"format": _FORMAT, "format_version": FORMAT_VERSION, **config, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    _write(folder / WEIGHTS, weights)
    _write(folder / CARD, card.encode())
    _write(folder / CONFIG, json.dumps(described, indent=2, allow_nan=False).encode() + b"\n")


def read_model(folder: Path) -> tuple[dict[str, Any], FaceNetwork]:
    """The configuration and the network of a model folder.

    Raises:
        FileNotFoundError: `config.json` or `model.safetensors` is not there.
        ValueError: one of them is damaged, something else or of another version, or they do not belong together.
        ImportError: the student needs a package that is not installed.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in the model folder {folder}: write it anew with `deocc test`, or get it again")
    config = _read_config(folder / CONFIG)
    content = (folder / WEIGHTS).read_bytes()
    state = _read_weights(content, folder / WEIGHTS)
    if hashlib.sha256(content).hexdigest() != config.get("weights_sha256"):
        raise ValueError(f"{folder / WEIGHTS} does not belong to its {CONFIG} (another hash): get both again")
    return config, network_of(config, state, str(folder))


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
        raise ValueError(f"{path} {versions}: install the deocc that wrote it, or write it anew with `deocc test`")
    return config


def _read_weights(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # a file that is something else makes the reader fail in several ways
        raise ValueError(f"{path} is no safetensors file ({' '.join(str(error).split())[:120]}): get it again") from error


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
