"""The words that the commands on photos share."""

import argparse
from pathlib import Path
from typing import NoReturn

from deocc.apps.photos.aligned import list_alignments
from deocc.apps.photos.faces import DEFAULT_DETECTOR, FaceFinder
from deocc.detection import list_detectors


class PhotoParser(argparse.ArgumentParser):
    """A parser with the arguments PHOTOS, --all, --aligned, --detector and --detector-weights; what it refuses is a ValueError.

    Args:
        command: the name of the command, such as "mask".
        description: one sentence.
        photos: whether PHOTOS is among the arguments, or the command names its photos otherwise.
    """

    def __init__(self, command: str, description: str, photos: bool = True) -> None:
        super().__init__(prog=f"deocc {command}", description=description, allow_abbrev=False)
        if photos:
            what = "image files, and folders of them with their subfolders"
            self.add_argument("photos", nargs="+", type=Path, metavar="PHOTOS", help=what)
        self.add_argument("--all", action="store_true", dest="every", help="all faces of a photo, not only the most prominent")
        aligned = "the photos are crops aligned in this way, one face each, and no detector is used"
        self.add_argument("--aligned", choices=list_alignments(), help=aligned)
        self.add_argument("--detector", choices=list_detectors(), help=f"default: {DEFAULT_DETECTOR}")
        self.add_argument("--detector-weights", metavar="FILE", help="the weights of the detector named by --detector")

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with one line, which `deocc` prints.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.prog}: {message}; see {self.prog} --help")


def finder_of(chosen: argparse.Namespace, size: int) -> FaceFinder:
    """The finder that the parsed words ask for, its crops `size` pixels a side; raises what `FaceFinder` raises."""
    return FaceFinder(size, chosen.detector, chosen.detector_weights, chosen.aligned, chosen.every)
