"""The model and the face finder that the arguments of a photo command choose, and the pixels of crops."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc import runs
from deocc.commands.arguments import AUTO, DEFAULT_DETECTOR, NEWEST
from deocc.files import checksum, expand_user
from deocc.inference.faces import FaceFinder
from deocc.inference.model_folder import load, pretrained_folder, weight_bytes
from deocc.inference.pipeline import Pipeline
from deocc.messages import describe_error, say, telling_warnings


def finder_of(chosen: argparse.Namespace, size: int) -> FaceFinder:
    """Create the finder that the arguments describe, with crops of `size` pixels; raises what `FaceFinder` raises."""
    return FaceFinder(size, chosen.detector, chosen.detector_weights, chosen.aligned, chosen.every, chosen.number)


def detection_of(chosen: argparse.Namespace) -> tuple[object, ...]:
    """Return the arguments that determine which faces are found: --all, --aligned, the detector, its weights, --face.

    The default detector is None, also if it is named, and weights are the checksum of the file.
    """
    detector = None if chosen.detector == DEFAULT_DETECTOR else chosen.detector
    weights = None if chosen.detector_weights is None else checksum(expand_user(chosen.detector_weights))
    return (chosen.every, chosen.aligned, detector, weights, chosen.number)


def load_model(chosen: argparse.Namespace) -> Pipeline:
    """Load the model that the arguments choose; a message on stderr names it if no path was given.

    Raises:
        FileNotFoundError: there is no such model, no stage-2 run, or no pretrained model.
        ValueError: the model is damaged or something else, or there is no such device.
        ImportError: a package that it needs is not installed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if chosen.device != AUTO:
        try:
            device = torch.device(chosen.device)
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"--device {chosen.device} cannot be used ({describe_error(error)}): choose cpu, or leave it out"
            ) from error
    with telling_warnings():
        return load(_source(chosen.checkpoint), device)


def model_hash(pipeline: Pipeline) -> str:
    """Return a hash of networks, weights and crop size, equal for a checkpoint and the model folder made from it."""
    described = {name: pipeline.config[name] for name in ("student", "bare_faces", "deoccluder", "face")}
    return checksum(json.dumps(described, sort_keys=True), weight_bytes(pipeline.network))[:32]


def to_pixels(crop: Tensor) -> NDArray[np.uint8]:
    """Convert a crop (3, S, S) in [-1, 1] to (S, S, 3) in 0 to 255."""
    return np.asarray(((crop.cpu().permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy())


def _source(checkpoint: str | None) -> str | Path:
    """Resolve --checkpoint: the packaged model by default, else the newest run."""
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
        run = runs.newest_run("DistillationModule")
        say(f"using the newest stage-2 run, {run}")
        return run
    return checkpoint
