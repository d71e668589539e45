"""Checks of the data sets in `data/` and of the folder given as --data."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deocc.commands.doctor.findings import Check, Context, Finding
from deocc.data import CelebaFaces, LfwFaces
from deocc.data.ar import ar_files
from deocc.data.folder import list_folder
from deocc.data.images import read_image
from deocc.data.landmarks import FoundLandmarks
from deocc.detection import Detector, create_detector
from deocc.geometry import TEMPLATES

_CELEBA, _LFW, _AR = Path("data/celeba"), Path("data/lfw"), Path("data/ar")
_CELEBA_NAMES: Final = ("img_align_celeba", "img_celeba", "identity_CelebA", "list_eval_partition", "Anno")
_MAX_CROPS: Final = 12

# Distances in eye distances, measured on ORL with dlib's detector: crops are 0.07 from their template, uncropped photos
# 0.37 from the nearest one. Two templates differ by 0.12 or more, except facenet and canonical, which differ by 0.03.
_MAX_ALIGNED: Final = 0.2
_MIN_DIFFERENCE: Final = 0.08
_MARGIN: Final = 0.5
"""Border added around a crop, as a share of its width, because detectors look for whole heads."""


def check_celeba(context: Context) -> Iterator[Finding]:
    """Check that CelebA, if present, is complete."""
    if _CELEBA.is_dir():
        yield from _describe_celeba(_CELEBA)


def check_lfw(context: Context) -> Iterator[Finding]:
    """Check that LFW's lists and images, if present, are complete; its landmarks are not computed."""
    if not _LFW.is_dir():
        return

    class LfwFiles(LfwFaces):
        def _find_landmarks(self, names: Sequence[str], detector: str, weights: str | None) -> FoundLandmarks:
            return FoundLandmarks(names, np.zeros((len(names), 5, 2)), np.ones((len(names), 2), np.int64))

    faces = LfwFiles(str(_LFW))
    yield Finding("OK", f"{_LFW}: LFW, {len(faces):,} images of {len(faces.split_of_identity):,} people")


def check_ar(context: Context) -> Iterator[Finding]:
    """Count the images of AR, if present; everything else needs landmarks, which take minutes."""
    if not _AR.is_dir():
        return
    count = sum(1 for _ in ar_files(_AR))
    if count == 0:
        raise FileNotFoundError(f"no image below {_AR.absolute()}")
    yield Finding("OK", f"{_AR}: {count:,} images; `deocc test --config paper/ar` checks whether AR is complete")


def check_any(context: Context) -> Iterator[Finding]:
    """Report that no data set was found, which is no problem."""
    if not any(path.is_dir() for path in (_CELEBA, _LFW, _AR)):
        yield Finding("OK", f"no data sets (looked for {_CELEBA}, {_LFW}, {_AR}): the embedded faces need none")


def check_given(context: Context) -> Iterator[Finding]:
    """Count the images and people of the folder given as --data."""
    folder = context.data
    if folder is None:
        return
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder.absolute()}")
    if is_celeba(folder):
        yield from _describe_celeba(folder)
        return
    listing = list_folder(folder)
    yield Finding("OK", f"{folder}: {len(listing.names):,} images of {len(listing.people):,} people")
    if listing.unused:
        yield Finding("warning", listing.describe_unused(), "convert them, or remove them")


CHECKS: Final = (
    Check("data sets", check_any, ""),
    Check(f"data set {_CELEBA}", check_celeba, f"put a complete copy there, or remove {_CELEBA}"),
    Check(f"data set {_LFW}", check_lfw, f"put a complete copy there, or remove {_LFW}"),
    Check(f"data set {_AR}", check_ar, f"put a complete copy there, or remove {_AR}"),
    Check("--data", check_given, "give the folder that contains the data set"),
)


def is_celeba(folder: Path) -> bool:
    """Return whether a folder contains files or folders named as in CelebA."""
    return any(path.name.startswith(_CELEBA_NAMES) for path in folder.iterdir())


def check_alignment(folder: Path, expected: str | None) -> Finding | None:
    """Compare the crops of a folder with the alignment templates.

    Args:
        folder: a `person/image` folder.
        expected: template that the run's configuration names.

    Returns:
        None for a missing folder and for CelebA, whose landmarks are known.
    """
    if not folder.is_dir() or is_celeba(folder):
        return None
    paths = [folder / name for name in list_folder(folder).names]
    crops = (read_image(path) for path in spread(paths, _MAX_CROPS))
    alignment = measure_alignment(crops, create_detector("dlib"))
    if alignment is None:
        text = f"{folder}: no face is found in {min(_MAX_CROPS, len(paths))} of its images"
        return Finding("warning", text, "look at the images")
    nearest = alignment.nearest
    distance = alignment.distances[nearest]
    measured = f"({distance:.2f} eye distances off, by {alignment.found} images)"
    if distance >= _MAX_ALIGNED:
        text = f"{folder}: its images are not aligned to any known template; the nearest is {nearest} {measured}"
        return Finding("warning", text, "align them, or give photos to the commands that find faces themselves")
    if expected is not None and alignment.contradicts(expected):
        text = f"{folder}: its crops are aligned as {nearest} {measured}, the run names {expected}"
        return Finding("warning", text, f"--data.face_set.init_args.aligned {nearest}")
    return Finding("OK", f"{folder}: its crops are aligned as {expected or nearest} {measured}")


class Alignment(NamedTuple):
    """Alignment of some crops.

    Attributes:
        distances: by template, the median over crops of the mean landmark distance, in eye distances.
        found: number of crops in which a face was found.
    """

    distances: dict[str, float]
    found: int

    @property
    def nearest(self) -> str:
        """Template with the smallest distance."""
        return min(self.distances, key=lambda name: self.distances[name])

    def contradicts(self, name: str) -> bool:
        """Return whether another template fits clearly better than the named one."""
        return self.distances[name] > self.distances[self.nearest] + _MIN_DIFFERENCE


def measure_alignment(crops: Iterable[NDArray[np.uint8]], detector: Detector) -> Alignment | None:
    """Measure how far the landmarks of crops (H, W, 3) are from each template, scaled to the crop's width.

    Returns:
        None if no face is found.
    """
    rows = []
    for crop in crops:
        width = crop.shape[1]
        margin = round(_MARGIN * width)
        faces = detector.detect(np.pad(crop, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
        if not faces:
            continue
        largest = max(faces, key=lambda face: float(face.box[2] - face.box[0]))
        points = largest.landmarks - margin
        eye_distance = float(np.linalg.norm(points[1] - points[0]))
        templates = [template.tensor(width).double().numpy() for template in TEMPLATES.values()]
        rows.append([np.linalg.norm(points - template, axis=1).mean() / eye_distance for template in templates])
    if not rows:
        return None
    return Alignment(dict(zip(TEMPLATES, np.median(rows, axis=0).tolist(), strict=True)), len(rows))


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Return at most `count` paths, evenly from the first to the last."""
    places = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int))
    return [paths[place] for place in places.tolist()]


def _describe_celeba(folder: Path) -> Iterator[Finding]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        faces = CelebaFaces(str(folder))
    yield Finding("OK", f"{folder}: CelebA, {len(faces):,} images of {len(faces.split_of_identity):,} people")
    yield from (Finding("warning", str(warning.message)) for warning in caught)
