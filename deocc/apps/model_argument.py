"""The options that choose the model and its device, shared by every command that uses a trained system."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Final

import torch

from deocc import runs
from deocc.apps.notices import say, telling_warnings
from deocc.apps.pipeline import Pipeline, load, pretrained_folder
from deocc.apps.pipeline.folder import weight_bytes

NEWEST: Final = "newest"
"""Value of --checkpoint for the newest stage-2 run."""

_AUTO = "auto"
_STAGE_2 = "DistillationModule"


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint and --device, which `load_model` reads."""
    places = (
        f"a run, a checkpoint, a model folder, owner/name on the Hugging Face hub, or {NEWEST!r} for the newest stage-2 run below runs/"
    )
    parser.add_argument("--checkpoint", metavar="MODEL", help=f"{places} (default: the packaged model, else the newest run)")
    parser.add_argument("--device", default=_AUTO, help="cpu, cuda, cuda:1, mps, ...; default: a GPU where there is one")


def load_model(chosen: argparse.Namespace) -> Pipeline:
    """Load the model that the parsed options choose; a line on the error stream names it if no path was given.

    Raises:
        FileNotFoundError: there is no such model, no stage-2 run, or no pretrained model.
        ValueError: it is damaged or something else, or there is no such device.
        ImportError: a package that it needs is not installed.
    """
    device = _device(chosen.device)
    with telling_warnings():
        return load(_source(chosen.checkpoint), device)


def model_hash(pipeline: Pipeline) -> str:
    """A hash of networks, weights and crop size; equal for a checkpoint and the model folder written from it."""
    described = {name: pipeline.config[name] for name in ("student", "deoccluder", "face")}
    content = json.dumps(described, sort_keys=True).encode() + weight_bytes(pipeline.network)
    return hashlib.sha256(content).hexdigest()[:32]


def _source(checkpoint: str | None) -> str | Path:
    if checkpoint is None:
        try:
            folder = pretrained_folder()
        except FileNotFoundError as missing:  # a checkout in which `make pretrained` was not run
            try:
                return _source(NEWEST)
            except FileNotFoundError:
                raise missing from None
        say(f"using the pretrained model, {folder}; --checkpoint takes another")
        return folder
    if checkpoint == NEWEST:
        run = runs.newest_run(_STAGE_2)
        say(f"using the newest stage-2 run, {run}")
        return run
    return str(checkpoint)


def _device(name: str) -> torch.device:
    try:
        if name == _AUTO:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"--device {name} cannot be used ({reason}): choose cpu, or leave it out") from error
    return device
