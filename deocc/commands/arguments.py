"""Arguments that several commands share: the model and its device, photos and the face detector."""

import argparse
import json
from pathlib import Path
from typing import Final

import torch

from deocc import runs
from deocc.detection import list_detectors
from deocc.files import checksum
from deocc.inference.faces import DEFAULT_DETECTOR, FaceFinder, list_alignments
from deocc.inference.model_folder import load, pretrained_folder, weight_bytes
from deocc.inference.pipeline import Pipeline
from deocc.messages import ArgumentParser, describe_error, say, telling_warnings

NEWEST: Final = "newest"
"""Value of --checkpoint for the newest stage-2 run."""

_AUTO: Final = "auto"
_STAGE_2: Final = "DistillationModule"


class PhotoParser(ArgumentParser):
    """A parser with the arguments PHOTOS, --all, --aligned, --detector and --detector-weights.

    Args:
        command: name of the command, such as "mask".
        description: one sentence.
        photos: add the positional argument PHOTOS; false if the command adds its photos itself.
    """

    def __init__(self, command: str, description: str, photos: bool = True) -> None:
        super().__init__(prog=f"deocc {command}", description=description)
        if photos:
            self.add_photos()
            self.add_json()
        self.add_argument(
            "--all", action="store_true", dest="every", help="all faces of a photo, not only the most prominent"
        )
        self.add_argument(
            "--face",
            type=int,
            dest="number",
            metavar="N",
            help="of photos with several faces take this one, from 1, most prominent first",
        )
        aligned = "the photos are crops aligned in this way, one face each, and no detector is used"
        self.add_argument("--aligned", choices=list_alignments(), help=aligned)
        self.add_argument("--detector", choices=list_detectors(), help=f"default: {DEFAULT_DETECTOR}")
        self.add_argument("--detector-weights", metavar="FILE", help="the weights of the detector named by --detector")

    def add_json(self) -> None:
        """Add --json."""
        self.add_argument("--json", action="store_true", help="print the rows of the table, or the error, as JSON")

    def add_photos(self) -> None:
        """Add PHOTOS."""
        accepted = "image files, and folders of them with their subfolders"
        self.add_argument("photos", nargs="+", type=Path, metavar="PHOTOS", help=accepted)


def finder_of(chosen: argparse.Namespace, size: int) -> FaceFinder:
    """Create the finder that the arguments describe, with crops of `size` pixels; raises what `FaceFinder` raises."""
    return FaceFinder(size, chosen.detector, chosen.detector_weights, chosen.aligned, chosen.every, chosen.number)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint and --device, for `load_model`."""
    places = "a run, a checkpoint, a model folder, owner/name on the Hugging Face hub, or"
    parser.add_argument(
        "--checkpoint",
        metavar="MODEL",
        help=f"{places} {NEWEST!r} for the newest stage-2 run below runs/ "
        "(default: the packaged model, else the newest run)",
    )
    parser.add_argument(
        "--device", default=_AUTO, help="cpu, cuda, cuda:1, mps, ...; default: a GPU where there is one"
    )


def load_model(chosen: argparse.Namespace) -> Pipeline:
    """Load the model that the arguments choose; a message on stderr names it if no path was given.

    Raises:
        FileNotFoundError: there is no such model, no stage-2 run, or no pretrained model.
        ValueError: the model is damaged or something else, or there is no such device.
        ImportError: a package that it needs is not installed.
    """
    device = _device(chosen.device)
    with telling_warnings():
        return load(_source(chosen.checkpoint), device)


def model_hash(pipeline: Pipeline) -> str:
    """Return a hash of networks, weights and crop size, equal for a checkpoint and the model folder made from it."""
    described = {name: pipeline.config[name] for name in ("student", "deoccluder", "face")}
    return checksum(json.dumps(described, sort_keys=True), weight_bytes(pipeline.network))[:32]


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
        run = runs.newest_run(_STAGE_2)
        say(f"using the newest stage-2 run, {run}")
        return run
    return checkpoint


def _device(name: str) -> torch.device:
    try:
        if name == _AUTO:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = describe_error(error)
        raise ValueError(f"--device {name} cannot be used ({reason}): choose cpu, or leave it out") from error
    return device
