"""The words that name the model and its device, the same for every command that uses a trained system."""

import argparse
import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch

from deocc import runs
from deocc.apps.notices import say, telling_warnings
from deocc.apps.pipeline import Pipeline, load

_AUTO = "auto"
_STAGE_2 = "DistillationModule"


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Give the parser --checkpoint and --device, which `load_model` reads."""
    what = "a run, its checkpoint, a model folder, or owner/name on the Hugging Face hub (default: the newest stage-2 run below runs/)"
    parser.add_argument("--checkpoint", metavar="MODEL", help=what)
    parser.add_argument("--device", default=_AUTO, help="cpu, cuda, cuda:1, mps, ...; default: a GPU where there is one")


def load_model(chosen: argparse.Namespace) -> Pipeline:
    """The model that the parsed words name; a line on the error stream says which was taken where none was named.

    Raises:
        FileNotFoundError: it is not there, or no stage-2 run is.
        ValueError: it is damaged or something else, or there is no such device.
        ImportError: a package that it needs is not installed.
    """
    device = _device(chosen.device)
    source = str(chosen.checkpoint) if chosen.checkpoint is not None else _newest()
    with telling_warnings():
        return load(source, device)


def model_hash(pipeline: Pipeline) -> str:
    """What tells whether two models embed alike, from wherever they were loaded: of networks, weights and the size of the crops."""
    described = {name: pipeline.config[name] for name in ("student", "deoccluder", "face")}
    weights = {name: value.cpu().contiguous() for name, value in pipeline.network.state_dict().items()}
    content = json.dumps(described, sort_keys=True).encode() + safetensors.torch.save(weights)
    return hashlib.sha256(content).hexdigest()[:32]


def _newest() -> Path:
    run = runs.newest_run(_STAGE_2)
    say(f"taking the newest stage-2 run, {run}; --checkpoint takes another")
    return run


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
