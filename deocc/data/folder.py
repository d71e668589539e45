"""Folders of faces, `person/image`: crops aligned to a known template, or photos whose landmarks are detected."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deocc.data.face_set import FaceSet, NameTable, Split, cached_array, identity_name, split_people
from deocc.data.images import FORMATS, is_image, read_image, read_size
from deocc.data.landmarks import LEFT_OUT, SUBSTITUTED, find_landmarks
from deocc.files import checksum, expand_user, walk_files
from deocc.geometry import get_template
from deocc.masking.registry import kind_numbers
from deocc.messages import name_some, show_progress

_VERSION: Final = 3  # increase when `_square_sides` returns other numbers, so that old files are not used
_PROGRESS_FROM: Final = 10_000  # images from which progress is shown
_SPLIT_FOLDERS: Final = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


class FolderListing(NamedTuple):
    """Index of a `person/image` directory tree, in a few arrays.

    Attributes:
        root: the folder.
        names: PERSON/FILE or PERSON/.../FILE.
        people: folders with images, sorted; names that differ only in their Unicode form are one person.
        identity: (N,) positions in `people`.
        stamp: (N, 2) size in bytes and modification time in nanoseconds of each file.
        unused: files that are no images or in no person's folder, and folders that cannot be read.
    """

    root: Path
    names: NameTable
    people: list[str]
    identity: NDArray[np.int64]
    stamp: NDArray[np.int64]
    unused: Sequence[str]

    def describe_unused(self) -> str:
        """Return a line that counts and names the files that are not used."""
        reason = f"they are no images of the formats {', '.join(FORMATS)} or in no person's folder"
        return f"{len(self.unused):,} files in {self.root} are not used, since {reason} ({name_some(self.unused)})"


def list_folder(root: Path, identities: bool = True) -> FolderListing:
    """List the images below a folder that has a folder for each person, in which they may be in subfolders.

    Without `identities` each image is a person of its own, wherever it is below the folder.

    Raises:
        FileNotFoundError: there is no such folder, or no image in its subfolders.
        ValueError: its folders are splits instead of people.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder at {root.absolute()}: give the folder that has one folder of faces for each person"
        )
    files, unused = [], []

    def skip(error: OSError) -> None:
        unused.append(f"{os.path.relpath(error.filename or root, root)} ({error.strerror})")

    for name, entry in walk_files(root, skip):
        person, _, rest = name.partition("/") if identities else (name, "", name)
        if rest and entry.is_file() and is_image(entry.path):
            status = entry.stat()
            files.append((identity_name(person), name, status.st_size, status.st_mtime_ns))
        else:
            unused.append(name)
    if not files:
        raise FileNotFoundError(
            f"no image below {root.absolute()}: looked for PERSON/IMAGE ({', '.join(FORMATS)}); put each person's "
            "faces into a folder of their own, or set identities: false for stage 1, which needs none"
        )
    files.sort()
    counts = Counter(person for person, *_ in files)
    if {person.casefold() for person in counts} <= _SPLIT_FOLDERS:
        raise ValueError(
            f"the folders in {root.absolute()} are {', '.join(counts)}, which are splits and no people: give one of "
            "them, the split is made from the names of the people in it"
        )
    identity = np.repeat(np.arange(len(counts), dtype=np.int64), list(counts.values()))
    stamp = np.array([file[2:] for file in files], dtype=np.int64)
    return FolderListing(root, NameTable(name for _, name, _, _ in files), list(counts), identity, stamp, unused)


def square_side(path: Path, size: tuple[int, int]) -> int:
    """Return the side of the image at `path` from its width and height, or raise a ValueError that names it."""
    width, height = size
    if width != height:
        raise ValueError(f"{path} is {width} x {height} pixels: aligned crops are square, so align it or remove it")
    return width


class FolderFaces(FaceSet):
    """Faces in one folder per person: square aligned crops, or with a `detector` photos of any size.

    Images may be in subfolders of a person's folder. Files that are not used are counted and named in a warning; hidden
    and system files are ignored (`deocc.files.is_stray`).

    Landmarks of crops are the points of the template, scaled to the image. Landmarks of photos are detected once and
    cached (`deocc.data.landmarks`). Photos without a face, or that cannot be read, are named in a warning; training and
    validation leave them out, and a test uses the mean landmarks.

    The split of a person follows from a hash of the folder name, so that adding people does not move others between
    splits. The shares are met on average.

    Args:
        root: folder that contains a folder for each person.
        aligned: template of the crops, a name of `deocc.geometry.TEMPLATES`; not used with a `detector`.
        train: share of people for training.
        val: share of people for validation; the others are tested.
        seed: seed of the split.
        detector: detector of the landmarks of photos, a name of `deocc.detection.list_detectors()`; None for aligned
            crops.
        detector_weights: weights file of the detector, if it needs one.
        identities: False for unknown people, for stage 1: images may be anywhere below the folder, and each is split
            as a person of its own.
        occluded: pattern of the names of images that show real occluders, such as "*/masked/*" for
            PERSON/masked/IMAGE, with the wildcards of `fnmatch`. They are left out of training and validation, and
            a test compares the bare images with them without drawing masks; those of people without a bare image are
            left out with a warning. None: all images are bare.
        occluder: kind of the real occluders, under which results are listed.

    Raises:
        FileNotFoundError: there is no such folder, or no image in its subfolders.
        ValueError: an unknown template, detector or kind, shares that leave nothing for a split, an empty split, a
            crop that is not square, or no bare or no occluded image of a test person.
    """

    names: NameTable

    def __init__(
        self,
        root: str,
        aligned: str = "arcface",
        train: float = 0.6,
        val: float = 0.1,
        seed: int = 0,
        detector: str | None = None,
        detector_weights: str | None = None,
        identities: bool = True,
        occluded: str | None = None,
        occluder: str = "surgical",
    ) -> None:
        template = get_template(aligned)
        if not (train > 0 and val > 0 and train + val < 1):
            raise ValueError(
                f"train={train} and val={val}: choose shares above 0 whose sum is below 1, the rest is the test share"
            )
        self.root = expand_user(root)
        self.has_identities = identities
        self.credit = f"faces of the folder {self.root.resolve().name}"  # their owner is not known
        listing = list_folder(self.root, identities)
        if listing.unused:
            warnings.warn(listing.describe_unused(), stacklevel=2)
        self.names, self.identity, self._stamp = listing.names, listing.identity, listing.stamp
        splits = split_people(listing.people, train, val, seed)
        if detector is None:
            sides, of_image = np.unique(self._square_sides(), return_inverse=True)
            points = [
                template.tensor(side).double().numpy() if side else np.full((5, 2), np.nan) for side in sides.tolist()
            ]
            self.landmarks = np.stack(points)[of_image]
        else:
            found = find_landmarks(self.root, self.names, detector, detector_weights, skip_unreadable=True)
            tested = np.array([split == "test" for split in splits])[self.identity]
            found.warn(~tested, LEFT_OUT)
            found.warn(tested, SUBSTITUTED)
            kept = np.flatnonzero(found.found | tested)
            self.landmarks, self._stamp = found.filled()[kept], self._stamp[kept]
            self.names = NameTable(self.names[index] for index in kept.tolist())
            people, self.identity = np.unique(self.identity[kept], return_inverse=True)
            splits = split_people([listing.people[at] for at in people], train, val, seed)
        self.split_of_identity = dict(enumerate(splits))
        if occluded is not None:
            matches = [fnmatchcase(name, occluded) for name in self.names]
            self.occluder = self._leave_out_without_bare(np.where(matches, kind_numbers([occluder])[0], -1))
            tested = self.occluder[self.indices("test")] >= 0
            if tested.all() or not tested.any():
                raise ValueError(
                    f"occluded={occluded!r} matches {int(tested.sum())} of the {len(tested)} images of test people, "
                    f"but bare and occluded ones are compared: give a pattern for names such as {self.names[0]!r}"
                )

    def _square_sides(self) -> NDArray[np.int64]:
        """Return (N,) the sides of the square crops in pixels, from the cache; 0 for files that cannot be read.

        Those are tried again each time. Without a side an image has no landmarks, and a run names it.
        """

        def read_side(name: str) -> int:
            try:
                size = read_size(self.root / name)
            except (ValueError, OSError):
                return 0
            return square_side(self.root / name, size)

        names = show_progress(self.names, "sizes of the images", hidden=len(self) < _PROGRESS_FROM)
        key = checksum(f"{_VERSION} {self._digest(np.arange(len(self)))}")[:32]
        sides = cached_array("sides", key, lambda: np.array([read_side(name) for name in names], dtype=np.int64))
        for index in np.flatnonzero(sides == 0).tolist():
            sides[index] = read_side(self.names[index])
        return sides

    def _leave_out_without_bare(self, occluder: NDArray[np.int64]) -> NDArray[np.int64]:
        """Leave out the occluded images of test people who have no bare image to compare them with.

        Takes the occluder of each image, -1 for a bare face, and returns those of the images that are left.
        """
        kept, tested = np.ones(len(self), np.bool_), self.indices("test")
        kept[tested] = np.isin(self.identity[tested], np.unique(self.identity[occluder < 0]))
        lost = [self.names[index] for index in np.flatnonzero(~kept).tolist()]
        if not lost or not kept[tested].any():
            return occluder
        warnings.warn(
            f"{len(lost):,} occluded images of test people without a bare image are left out ({name_some(lost)})",
            stacklevel=3,
        )
        self.names = NameTable(self.names[index] for index in np.flatnonzero(kept).tolist())
        self.landmarks, self.identity, self._stamp = self.landmarks[kept], self.identity[kept], self._stamp[kept]
        return occluder[kept]

    def _digest(self, indices: NDArray[np.int64]) -> str:
        """Return a hash of the location, names, sizes and times of these files; no file is read."""
        chosen = np.isin(np.arange(len(self)), indices)
        lengths = np.diff(self.names.ends)
        parts = (self.names.text[np.repeat(chosen, lengths)], lengths[indices], self._stamp[indices])
        return checksum(str(self.root.resolve()), *(part.tobytes() for part in parts))

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read the image at `index`, (H, W, 3) RGB; see `FaceSet.image`."""
        return read_image(self.root / self.names[index])

    def fingerprint(self, split: Split) -> str:
        """Return a hash of the split's names, which contain the people, file sizes and landmarks; see `FaceSet`.

        Decoding a million images would take minutes; one that is replaced by one of equal size is not noticed.
        """
        indices = self.indices(split).tolist()
        files = (f"{self.names[index]}\0{self._stamp[index, 0]}\0" for index in indices)
        return checksum(self.landmarks[indices].round(2).tobytes(), *files)[:16]

    def quick_fingerprint(self, split: Split) -> str:
        """Return a hash of location, names, sizes, times and landmarks of the split's files; no file is read."""
        indices = self.indices(split)
        return checksum(self._digest(indices), self.identity[indices].tobytes(), self.landmarks[indices].tobytes())[:32]
