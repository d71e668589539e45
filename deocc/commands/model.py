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
    """Return what determines which faces are found: --all, --aligned, detector, checksum of its weights, --face.

    The default detector is None, also if it is named.
    """
    detector = None if chosen.detector == DEFAULT_DETECTOR else chosen.detector
    weights = None if chosen.detector_weights is None else checksum(expand_user(chosen.detector_weights))
    return (chosen.every, chosen.aligned, detector, weights, chosen.number)


def load_model(chosen: argparse.Namespace) -> Pipeline:
    """Load the model that the arguments choose: by default the packaged one, else that of the newest run.

    A message on stderr names it if no path was given.

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
    source: str | Path = NEWEST if chosen.checkpoint is None else chosen.checkpoint
    missing = None
    if chosen.checkpoint is None:
        try:
            source = pretrained_folder()
            say(f"using the pretrained model, {source}; --checkpoint takes another")
        except FileNotFoundError as error:  # a checkout in which `make pretrained` was not run
            missing = error
    if source == NEWEST:
        try:
            source = runs.newest_run("DistillationModule")
        except FileNotFoundError as error:
            raise missing or error from None
        say(f"using the newest stage-2 run, {source}")
    with telling_warnings():
        return load(source, device)


def model_hash(pipeline: Pipeline) -> str:
    """Return a hash of networks, weights and crop size, equal for a checkpoint and the model folder made from it."""
    described = {name: pipeline.config[name] for name in ("student", "bare_faces", "deoccluder", "face")}
    return checksum(json.dumps(described, sort_keys=True), weight_bytes(pipeline.network))[:32]


def to_pixels(crop: Tensor) -> NDArray[np.uint8]:
    """Convert a crop (3, S, S) in [-1, 1] to (S, S, 3) in 0 to 255."""
    return np.asarray(((crop.cpu().permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy())
