"""Images in a folder, or in a zip that is read in place, with one interface. Nothing is extracted."""

import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deocc.data.images import IMAGE_SUFFIXES, read_image, read_image_bytes
from deocc.files import is_stray, walk_files
from deocc.messages import describe_error

_MAX_BYTES: Final = 256 * 2**20  # our choice, far above any photo; an entry that claims more is a zip bomb
_COMPRESSIONS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack beyond the size that an entry claims


class ImageStore(ABC):
    """Image files by name: POSIX paths relative to the store, such as `000001.jpg` or `person/1.png`.

    A store can be pickled and forked; each process opens the files itself.
    """

    path: Path
    """The folder or zip."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all images, sorted; no image is opened."""

    @abstractmethod
    def read(self, name: str) -> NDArray[np.uint8]:
        """Read an image as (H, W, 3) RGB.

        Raises:
            FileNotFoundError: there is no such image.
            ValueError: it is not a readable image, or the name leads out of the store.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the size of an image file in bytes, uncompressed.

        Raises:
            FileNotFoundError: there is no such image.
            ValueError: the name leads out of the store.
        """


class FolderImages(ImageStore):
    """The images in a folder and its subfolders."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """See `ImageStore.names`; hidden files are left out."""
        return sorted(name for name, _ in walk_files(self.path) if _is_image(name))

    def read(self, name: str) -> NDArray[np.uint8]:
        """See `ImageStore.read`."""
        return read_image(self._file(name))

    def size(self, name: str) -> int:
        """See `ImageStore.size`."""
        path = self._file(name)
        try:
            found = path.stat()
        except OSError:  # missing, or the name is too long
            found = None
        if found is None or not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(f"no image at {path}")
        return found.st_size

    def _file(self, name: str) -> Path:
        _check_inside(name, self.path)
        return self.path / name


class ZipImages(ImageStore):
    """The images in one folder of a zip, read in place.

    Args:
        path: the zip.
        folder_name: folder of the images; if there is none of that name, the whole zip is used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the zip cannot be read, for example because it is truncated.
    """

    def __init__(self, path: Path, folder_name: str) -> None:
        self.path, self.folder_name = path, folder_name
        self._zip, self._process = _open_zip(path), os.getpid()
        self.folder = _zip_folder(self._zip.namelist(), folder_name)

    def names(self) -> list[str]:
        """See `ImageStore.names`; hidden files and names that lead out of the zip are left out."""
        start = len(self.folder)
        listed = (
            name[start:] for name in self._opened().namelist() if name.startswith(self.folder) and _is_image(name)
        )
        return sorted(name for name in listed if not leads_out(name))

    def read(self, name: str) -> NDArray[np.uint8]:
        """See `ImageStore.read`."""
        entry, shown = self._entry(name), f"{self.path}/{self.folder}{name}"
        if entry.file_size > _MAX_BYTES:
            raise ValueError(
                f"cannot read {shown} ({entry.file_size:,} bytes, at most {_MAX_BYTES:,} allowed): it is not a photo"
            )
        if entry.compress_type not in _COMPRESSIONS:
            raise ValueError(
                f"cannot read {shown} (packed by method {entry.compress_type}): "
                "pack the zip again, by deflate or not at all"
            )
        try:
            with self._opened().open(entry) as file:
                data = file.read(entry.file_size)  # zipfile unpacks no more than this
        except Exception as error:  # a damaged or encrypted zip makes zipfile fail in any way
            raise ValueError(f"cannot read {shown} ({describe_error(error)}): copy the zip again") from error
        return read_image_bytes(data, shown)

    def size(self, name: str) -> int:
        """See `ImageStore.size`."""
        return self._entry(name).file_size

    def __getstate__(self) -> dict[str, object]:
        """Return the constructor arguments: other processes open the zip themselves."""
        return {"path": self.path, "folder_name": self.folder_name}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _opened(self) -> zipfile.ZipFile:
        """Return the zip opened by this process: a forked process would share the file position of its parent."""
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
    """Open `folder_name/` or `folder_name.zip` in the first of `places` that has one; return None if none has.

    A nested folder of the same name (`a/a/1.jpg`, as in some copies) is used, also in a zip.

    Args:
        root: folder of the data set.
        folder_name: name of the folder, or of the zip without `.zip`.
        places: subfolders of `root` to search, in order; "" is `root` itself.

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
    """Return the deepest of "", `folder_name/` and `folder_name/folder_name/` that has entries."""
    options = (f"{folder_name}/{folder_name}/", f"{folder_name}/")
    return next((option for option in options if any(name.startswith(option) for name in names)), "")


def _open_zip(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise FileNotFoundError(f"no zip at {path}")
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory makes zipfile fail in any way
        raise ValueError(
            f"cannot read {path} as a zip ({describe_error(error)}): it may be half copied, copy it again"
        ) from error


def leads_out(name: str) -> bool:
    r"""Return whether a path leads, or might lead on any system, out of the folder to which it is relative.

    >>> [leads_out(name) for name in ("a/b.png", "a/../b.png", "/b.png", "..\\b.png", "C:b.png", "a\0.png")]
    [False, True, True, True, True, True]
    """
    parts = PureWindowsPath(name)  # accepts the separators of all systems
    return bool(parts.anchor) or ".." in parts.parts or "\0" in name


def _check_inside(name: str, folder: Path) -> None:
    if leads_out(name):
        raise ValueError(f"image name {name!r} leads out of {folder}: names are paths below it")


def _is_image(name: str) -> bool:
    suffix = f".{name.rpartition('.')[2].lower()}"
    return suffix in IMAGE_SUFFIXES and not any(is_stray(part) for part in name.split("/"))
