"""The image files of a folder that holds a folder a person: found in one pass, with what tells a file from its later self."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from deocc.data.images import IMAGE_SUFFIXES, read_size
from deocc.data.kept_array import kept_array
from deocc.data.name_table import NameTable

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
        return FolderListing(self.root, names, [self.people[at] for at in people], person.astype(np.int64), self.stamp[indices])

    def sides(self) -> NDArray[np.int64]:
        """(N,) the sides of the square images in pixels; kept, since to look into a million files takes minutes.

        Raises:
            ValueError: an image is not square, or a file does not begin as an image does.
        """
        key = hashlib.sha256(f"{_VERSION} {self.digest(np.arange(len(self.names)))}".encode()).hexdigest()[:32]
        return kept_array("sides", key, self._read_sides)

    def _read_sides(self) -> NDArray[np.int64]:
        shown = track(self.names, "sizes of the images", console=Console(stderr=True), transient=True, disable=len(self.names) < _SHOWN)
        return np.array([_side(self.root / name) for name in shown], dtype=np.int64)


def list_folder(root: Path) -> FolderListing:
    """The images `PERSON/FILE` below a folder.

    Raises:
        FileNotFoundError: no such folder, or no image in its subfolders.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder at {root.absolute()}: give the folder that has one folder of faces for each person")
    files = sorted(_scan(root))
    if not files:
        looked = f"looked for PERSON/IMAGE with the endings {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise FileNotFoundError(f"no image below {root.absolute()}: {looked}; put each person's faces into a folder of their own")
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
