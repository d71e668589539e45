"""Images that lie in a folder, or in a zip that is read in place, behind one interface. Nothing is ever extracted."""

import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deocc.data.images import IMAGE_SUFFIXES, read_image, read_image_bytes

_MAX_BYTES: Final = 256 * 2**20  # OURS: far above any photograph; a zip entry that claims more is a bomb
_PACKINGS: Final = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
)  # the others are unpacked without a limit, whatever size the entry claims


class ImageStore(ABC):
    """Image files by their names: POSIX paths below the store's folder, such as `000001.jpg` or `person/1.png`.

    A store can be pickled and forked: each process opens the files for itself.
    """

    path: Path
    """The folder or zip, for messages."""

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all images, ascending, from one pass over the listing; no image is opened."""

    @abstractmethod
    def read(self, name: str) -> NDArray[np.uint8]:
        """The image as (H, W, 3) RGB.

        Raises:
            FileNotFoundError: there is no such image.
            ValueError: it is not a readable image, or the name leads out of the folder.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """The image file's size in bytes, uncompressed.

        Raises:
            FileNotFoundError: there is no such image.
            ValueError: the name leads out of the folder.
        """


class FolderImages(ImageStore):
    """The images in a folder and its subfolders."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """As `ImageStore.names`; hidden files are not images."""
        return sorted(filter(_is_image, _walk(self.path, "")))

    def read(self, name: str) -> NDArray[np.uint8]:
        """As `ImageStore.read`."""
        return read_image(self._file(name))

    def size(self, name: str) -> int:
        """As `ImageStore.size`."""
        path = self._file(name)
        try:
            found = path.stat()
        except OSError:  # not there, or a name that no disk takes
            found = None
        if found is None or not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(f"no image at {path}")
        return found.st_size

    def _file(self, name: str) -> Path:
        _check_inside(name, self.path)
        return self.path / name


class ZipImages(ImageStore):
    """The images below one folder of a zip, read in place.

    Args:
        path: the zip.
        folder_name: the folder that its images lie in; where it has none of that name, all of the zip is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the zip cannot be read; a copy that was cut short ends so.
    """

    def __init__(self, path: Path, folder_name: str) -> None:
        self.path, self.folder_name = path, folder_name
        self._zip, self._process = _open_zip(path), os.getpid()
        self.folder = _zip_folder(self._zip.namelist(), folder_name)

    def names(self) -> list[str]:
        """As `ImageStore.names`; hidden files are not images, nor is what would lie outside, were the zip unpacked."""
        start = len(self.folder)
        listed = (
            name[start:] for name in self._opened().namelist() if name.startswith(self.folder) and _is_image(name)
        )
        return sorted(name for name in listed if not leads_out(name))

    def read(self, name: str) -> NDArray[np.uint8]:
        """As `ImageStore.read`."""
        entry, shown = self._entry(name), f"{self.path}/{self.folder}{name}"
        if entry.file_size > _MAX_BYTES:
            raise ValueError(
                f"cannot read {shown} ({entry.file_size:,} bytes, at most {_MAX_BYTES:,} allowed): it is no photograph"
            )
        if entry.compress_type not in _PACKINGS:
            raise ValueError(
                f"cannot read {shown} (packed by method {entry.compress_type}): pack the zip anew, by deflate or not at all"
            )
        try:
            with self._opened().open(entry) as file:
                data = file.read(entry.file_size)  # told how much, zipfile does not unpack more than that
        except Exception as error:  # a damaged or encrypted zip makes zipfile fail in any way
            raise ValueError(f"cannot read {shown} ({_reason(error)}): copy the zip again") from error
        return read_image_bytes(data, shown)

    def size(self, name: str) -> int:
        """As `ImageStore.size`."""
        return self._entry(name).file_size

    def __getstate__(self) -> dict[str, object]:
        """What another process needs: the open zip stays here."""
        return {"path": self.path, "folder_name": self.folder_name}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _opened(self) -> zipfile.ZipFile:
        """The zip as this process opened it: a forked one would share its parent's place in the file."""
        if self._process != os.getpid():
            self._zip, self._process = _open_zip(self.path), os.getpid()
        return self._zip

    def _entry(self, name: str) -> zipfile.ZipInfo:
        _check_inside(name, self.path)
        try:
            return self._opened().getinfo(self.folder + name)
        except KeyError:
            raise FileNotFoundError(f"no image {self.folder}{name} in {self.path}") from None


def open_images(root: Path, folder_name: str, places: Sequence[str] = ("",)) -> ImageStore | None:
    """The images of `folder_name/` or else `folder_name.zip`, below the first of `places` that has one; None where none has.

    A folder of the same name inside (`a/a/1.jpg`, as some copies are packed) is looked through, in a zip too.

    Args:
        root: the data set's folder.
        folder_name: the name of the folder or, with `.zip` behind it, of the zip.
        places: subfolders of `root` to look in, in order; "" is `root` itself.

    Raises:
        ValueError: there is a zip, but it cannot be read.
    """
    for place in places:
        folder, packed = root / place / folder_name, root / place / f"{folder_name}.zip"
        if folder.is_dir():
            return FolderImages(folder / folder_name if (folder / folder_name).is_dir() else folder)
        if packed.is_file():
            return ZipImages(packed, folder_name)
    return None


def _zip_folder(names: list[str], folder_name: str) -> str:
    """The deepest of "", `folder_name/` and `folder_name/folder_name/` that the zip has entries in."""
    options = (f"{folder_name}/{folder_name}/", f"{folder_name}/")
    return next((option for option in options if any(name.startswith(option) for name in names)), "")


def _open_zip(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise FileNotFoundError(f"no zip at {path}")
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory makes zipfile fail in any way
        raise ValueError(
            f"cannot read {path} as a zip ({_reason(error)}): it may be half copied, copy it again"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def leads_out(name: str) -> bool:
    r"""Whether a path leads, or might lead, out of the folder that it is relative to, here or on another system.

    >>> [leads_out(name) for name in ("a/b.png", "a/../b.png", "/b.png", "..\\b.png", "C:b.png", "a\0.png")]
    [False, True, True, True, True, True]
    """
    parts = PureWindowsPath(name)  # knows the separators of both worlds
    return bool(parts.anchor) or ".." in parts.parts or "\0" in name


def _check_inside(name: str, folder: Path) -> None:
    if leads_out(name):
        raise ValueError(f"image name {name!r} leads out of {folder}: names are paths below it")


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    """The files below a folder, by `os.scandir`: it needs no further look at a file, which on a network drive takes a millisecond each."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name


def _is_image(name: str) -> bool:
    base, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return (
        bool(base)
        and dot + suffix.lower() in IMAGE_SUFFIXES
        and not base.startswith(".")
        and not name.startswith("__MACOSX/")
    )
