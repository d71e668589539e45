"""Any folder of faces, `person/image`: crops aligned to a known template, or photographs in which a detector finds the landmarks."""

import hashlib
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from deocc.data.face_set import SPLITS, FaceSet, Split
from deocc.data.identities import NameTable
from deocc.data.images import IMAGE_SUFFIXES, read_image, read_size
from deocc.data.landmarks import LEFT_OUT, SUBSTITUTED, FoundLandmarks, find_file_landmarks, warn_of_lost
from deocc.data.loader import item_seed
from deocc.geometry import Template, get_template
from deocc.runs import cache_folder


def kept_array(room: str, key: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """The array of an earlier call with the same key, else a new one, which is kept; a warning tells where it cannot be.

    Args:
        room: the folder below the cache's.
        key: a hash of all that the array follows from.
        compute: makes the array; numbers or strings, no objects.
    """
    path = cache_folder() / room / f"{key}.npy"
    try:
        with path.open("rb") as file:
            return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError):  # not there, or damaged: either way it is computed and written
        array = compute()
    _write(path, array)
    return array


def _write(path: Path, array: NDArray[Any]) -> None:
    """Replace the file as a whole, so that no process ever reads half of one."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        advice = "set DEOCC_CACHE to a folder that can be written to, or it is found out again next time"
        warnings.warn(f"cannot keep {path.parent.name} in {path.parent} ({error.strerror}): {advice}", stacklevel=4)


_VERSION: Final = 2  # raised when `sides` finds other numbers, so that old files are not taken for new ones
_SHOWN: Final = 10_000  # images from which on progress is worth showing


@dataclass(frozen=True)
class FolderListing:
    """Images by person and file name; a few arrays, however many there are."""

    root: Path
    names: NameTable
    """PERSON/FILE."""
    people: list[str]
    """The folders that hold images, ascending."""
    person: NDArray[np.int64]
    """(N,) positions in `people`."""
    stamp: NDArray[np.int64]
    """(N, 2) each file's size in bytes and its time of modification in nanoseconds."""

    def digest(self, indices: NDArray[np.int64]) -> str:
        """A hash of where these files lie, of their names, sizes and times: no file is read."""
        text, ends = self.names.buffers()
        chosen = np.zeros(len(self.names), dtype=np.bool_)
        chosen[indices] = True
        lengths = np.diff(ends)
        parts = (text[np.repeat(chosen, lengths)], lengths[indices], self.stamp[indices])
        return hashlib.sha256(
            b"".join([str(self.root.resolve()).encode("utf-8", "surrogateescape"), *(part.tobytes() for part in parts)])
        ).hexdigest()

    def take(self, indices: NDArray[np.int64]) -> "FolderListing":
        """The images at ascending positions, and the people who have any of them."""
        names = NameTable(self.names[index] for index in indices.tolist())
        people, person = np.unique(self.person[indices], return_inverse=True)
        return FolderListing(
            self.root, names, [self.people[at] for at in people], person.astype(np.int64), self.stamp[indices]
        )

    def sides(self) -> NDArray[np.int64]:
        """(N,) the sides of the square images in pixels; kept, since to look into a million files takes minutes.

        Raises:
            ValueError: an image is not square, or a file does not begin as an image does.
        """
        key = hashlib.sha256(f"{_VERSION} {self.digest(np.arange(len(self.names)))}".encode()).hexdigest()[:32]
        return kept_array("sides", key, self._read_sides)

    def _read_sides(self) -> NDArray[np.int64]:
        shown = track(
            self.names,
            "sizes of the images",
            console=Console(stderr=True),
            transient=True,
            disable=len(self.names) < _SHOWN,
        )
        return np.array([_side(self.root / name) for name in shown], dtype=np.int64)


def list_folder(root: Path) -> FolderListing:
    """The images `PERSON/FILE` below a folder.

    Raises:
        FileNotFoundError: no such folder, or no image in its subfolders.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder at {root.absolute()}: give the folder that has one folder of faces for each person"
        )
    files = sorted(_scan(root))
    if not files:
        looked = f"looked for PERSON/IMAGE with the endings {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise FileNotFoundError(
            f"no image below {root.absolute()}: {looked}; put each person's faces into a folder of their own"
        )
    people = {person: sum(1 for _ in group) for person, group in groupby(files, key=lambda file: file[0])}
    person = np.repeat(np.arange(len(people), dtype=np.int64), list(people.values()))
    names = NameTable(f"{folder}/{name}" for folder, name, _, _ in files)
    return FolderListing(root, names, list(people), person, np.array([file[2:] for file in files], dtype=np.int64))


def square_side(path: Path) -> int:
    """The side of a square image, from its file's header.

    Raises:
        ValueError: it is not square, or does not begin as an image does.
    """
    width, height = read_size(path)
    if width != height:
        raise ValueError(f"{path} is {width} x {height} pixels: aligned crops are square, so align it or remove it")
    return width


def _side(path: Path) -> int:
    """The side; 1 for a file that cannot be read, which a training leaves out and a test names."""
    try:
        read_size(path)
    except (ValueError, OSError):
        return 1
    return square_side(path)


def _scan(root: Path) -> Iterator[tuple[str, str, int, int]]:
    """Folder, name, size and time of every image; folders that must not be read, as a disk's `lost+found`, are passed over."""
    with os.scandir(root) as folders:
        for folder in folders:
            with suppress(NotADirectoryError, PermissionError), os.scandir(folder) as files:
                for file in files:
                    if _is_image(file.name) and file.is_file():
                        status = file.stat()
                        yield folder.name, file.name, status.st_size, status.st_mtime_ns


def _is_image(name: str) -> bool:
    """As `Path.suffix` would tell, at a tenth of the time."""
    stem, _, suffix = name.rpartition(".")
    return bool(stem) and f".{suffix.lower()}" in IMAGE_SUFFIXES


class FolderFaces(FaceSet):
    """Faces in one folder for each person: square aligned crops, or with a `detector` photographs of any size.

    The landmarks of a crop are the template's points scaled to the image. Those of photographs are detected once and cached
    (`deocc.data.landmark_cache`). Photographs without a face are named in a warning. Training and validation leave them out; in a test the
    mean landmarks stand in. A photograph that cannot be read counts as one without a face.

    The split of a person follows from a hash of the folder's name, so adding people does not move anyone. The shares are therefore kept on
    average only.

    Args:
        root: the folder that has a folder for each person.
        aligned: the template that the crops were made with, a name of `deocc.geometry.TEMPLATES`; not used with a `detector`.
        train: share of the people to train on.
        val: share of the people to validate on; the rest are tested on.
        seed: another seed splits the people differently.
        detector: finds the landmarks of photographs, a name of `deocc.detection.list_detectors()`; None for aligned crops.
        detector_weights: the detector's weights file, if it needs one.

    Raises:
        FileNotFoundError: no such folder, or no image in its subfolders.
        ValueError: an unknown template or detector, shares that leave a split nothing, a split without a person, or a crop that is not
            square.
    """

    def __init__(
        self,
        root: str,
        aligned: str = "arcface",
        train: float = 0.6,
        val: float = 0.1,
        seed: int = 0,
        detector: str | None = None,
        detector_weights: str | None = None,
    ) -> None:
        template = get_template(aligned)
        if not (train > 0 and val > 0 and train + val < 1):
            raise ValueError(
                f"train={train} and val={val}: choose shares above 0 whose sum is below 1, the rest is the test share"
            )
        self.root = Path(root)
        self._files = list_folder(self.root)
        splits = _split_people(self._files.people, train, val, seed)
        if detector is None:
            sides, of_image = np.unique(self._files.sides(), return_inverse=True)
            self.landmarks = np.stack([template.tensor(side).double().numpy() for side in sides.tolist()])[of_image]
        else:
            found = find_file_landmarks(self.root, self._files.names, detector, detector_weights, skip_unreadable=True)
            tested = np.array([split == "test" for split in splits])[self._files.person]
            _tell_lost(found, tested)
            kept = np.flatnonzero(found.found | tested)
            self._files, self.landmarks = self._files.take(kept), found.filled()[kept]
            splits = _split_people(self._files.people, train, val, seed)
        self.names, self.person = self._files.names, self._files.person
        self.split_of_person = dict(enumerate(splits))

    @property
    def credit(self) -> str:
        """The folder's name: whose faces they are only its owner knows."""
        return f"faces of the folder {self.root.resolve().name}"

    def image(self, index: int) -> NDArray[np.uint8]:
        """The image at `index`, (H, W, 3) RGB.

        Raises:
            ValueError: the file is not a readable image; the message names it.
        """
        return read_image(self.root / self.names[index])

    def fingerprint(self, split: Split) -> str:
        """As `FaceSet.fingerprint`, of pixels; kept under `quick_fingerprint`, so that only the first run reads every image."""
        return str(
            kept_array(
                "fingerprints",
                self.quick_fingerprint(split),
                lambda: np.array(super(FolderFaces, self).fingerprint(split)),
            )
        )

    def quick_fingerprint(self, split: Split) -> str:
        """A hash of where the split's files lie, of their names, sizes, times of modification and landmarks; no file is read."""
        indices = self.indices(split)
        digest = hashlib.sha256(self._files.digest(indices).encode())
        digest.update(self.person[indices].tobytes())
        digest.update(self.landmarks[indices].tobytes())
        return digest.hexdigest()[:32]


def _tell_lost(found: FoundLandmarks, tested: NDArray[np.bool_]) -> None:
    """Warn of photographs without a face, separately for those that are tested on."""
    for chosen, consequence in ((~tested, LEFT_OUT), (tested, SUBSTITUTED)):
        lost = [found.names[index] for index in np.flatnonzero(chosen & ~found.found).tolist()]
        warn_of_lost(lost, int(chosen.sum()), consequence)


def _split(person: str, train: float, val: float, seed: int) -> Split:
    place = item_seed(seed, "split", person) / 2**63
    if place < train:
        return "train"
    return "val" if place < train + val else "test"


def _split_people(people: list[str], train: float, val: float, seed: int) -> list[Split]:
    """The split of each person, or an error that names a seed under which no split is empty."""
    splits = [_split(name, train, val, seed) for name in people]
    empty = [split for split in SPLITS if split not in splits]
    if empty:
        found = (
            f"of {len(people)} people none falls into {' and '.join(empty)} (train {train:g}, val {val:g}, seed {seed})"
        )
        better = (other for other in range(1000) if {_split(name, train, val, other) for name in people} == set(SPLITS))
        advice = next(
            (f"set seed to {other}" for other in better), "at least 3 are needed: add people or change the shares"
        )
        raise ValueError(f"{found}: {advice}")
    return splits


def template_landmarks(path: Path, template: Template) -> NDArray[np.float64]:
    """(5, 2) the template's points, scaled to the square image at `path`.

    Raises:
        ValueError: the image is not square.
    """
    return template.tensor(square_side(path)).double().numpy()
