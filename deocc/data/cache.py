"""Aligned faces of a large split, computed once and stored in an LMDB file below the cache folder.

LMDB was chosen because the seeded order of an epoch needs random access, which streaming formats (WebDataset, LitData)
do not provide; because one file is mapped by all processes of a node and is in memory once; and because a complete file
is read without a lock, so that many nodes can share it on a network drive.

A key is the position of an image in the face set. A value contains the landmarks and the raw pixels of a face; it is
empty for an image that cannot be read. Lossless compression would save a third (PNG) to a half (WebP) of the disk space
at 112 pixels, but takes 0.3-0.4 ms per face to decode instead of 3 microseconds, measured on one core.
"""

import mmap
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import lmdb
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from deocc.data.face_set import FaceSet, Split
from deocc.data.loader import UnreadableImageError, ignore_stop_signals
from deocc.files import cache_folder, checksum, hold_lock
from deocc.geometry import TEMPLATES
from deocc.messages import one_line, say, show_progress

AlignedFace = tuple[NDArray[np.uint8], NDArray[np.float32]]
"""A face, (size, size, 3) RGB, and its landmarks (5, 2) in pixels of the crop."""

Align = Callable[[int], AlignedFace]
"""Returns the aligned face of the image at an index of a face set, or raises UnreadableImageError."""

_VERSION: Final = 3  # increase when `read_image` or `geometry.align` returns other pixels, so old files are not used
_LANDMARK_BYTES: Final = 5 * 2 * 4
_MISSING: Final = b"?"  # replaces a missing value; no value has this length
_BLOCK_BYTES: Final = 2**23  # written at a time; an interruption loses at most this
_READERS: Final[dict[Path, tuple[int, lmdb.Environment]]] = {}  # a process may open a file only once


class AlignedCache:
    """A file of `number` aligned faces of `size` pixels. An unfinished file ends in `.part` and is resumed.

    Copies in other processes open the file themselves.

    Attributes:
        gigabytes: size of the complete file in 10^9 bytes.
    """

    def __init__(self, path: Path, size: int, number: int) -> None:
        self.path, self.size, self.number = path, size, number
        self._value_bytes = _LANDMARK_BYTES + 3 * size**2
        self._stored_bytes = -(-(self._value_bytes + 16) // mmap.PAGESIZE) * mmap.PAGESIZE  # with header, whole pages
        self.gigabytes = number * self._stored_bytes / 1e9

    @classmethod
    def of(cls, face_set: FaceSet, split: Split, size: int, indices: NDArray[np.int64]) -> "AlignedCache":
        """Return the cache of these images of a split, named by a hash of data, template and size."""
        described = repr((_VERSION, face_set.quick_fingerprint(split), TEMPLATES["canonical"], size))
        key = checksum(described, indices.tobytes())[:32]
        return cls((cache_folder() / "aligned" / f"{key}.lmdb").absolute(), size, len(indices))

    def __call__(self, index: int) -> AlignedFace:
        """Return the aligned face of the image at `index` of the face set.

        Raises UnreadableImageError if it could not be read when the file was filled, and ValueError if the file was
        removed or changed.
        """
        try:
            with _reader(self.path).begin(buffers=True) as transaction:
                value = np.array(np.frombuffer(transaction.get(_key(index), _MISSING), np.uint8))
        except lmdb.Error as error:
            raise ValueError(
                f"cannot read aligned faces from {self.path} ({error}): start again, and they are computed again"
            ) from error
        if len(value) == 0:
            raise UnreadableImageError(f"image {index} could not be read when the faces in {self.path} were aligned")
        if len(value) != self._value_bytes:
            raise ValueError(
                f"{self.path} lacks the face {index}: remove the file and start again, and it is computed again"
            )
        landmarks = value[:_LANDMARK_BYTES].view(np.float32).reshape(5, 2)
        return value[_LANDMARK_BYTES:].reshape(self.size, self.size, 3), landmarks

    def is_complete(self) -> bool:
        """Return whether all faces can be read."""
        try:
            environment = _reader(self.path)
            return _is_whole(environment, self.path) and environment.stat()["entries"] == self.number
        except (OSError, lmdb.Error):  # missing or damaged
            return False

    def fill(
        self, align: Align, indices: NDArray[np.int64], num_workers: int, leave_out: Callable[[list[int]], None]
    ) -> None:
        """Compute and store the missing faces. One process works, others with the same file wait.

        If the file cannot be written, a warning says so and nothing is stored.

        Args:
            align: must be picklable.
            indices: (number,) the images, ascending.
            num_workers: processes that align faces; 0 for this process.
            leave_out: called in this process with the images that cannot be read (`Quarantine.add`). If it raises an
                error, filling stops, and the faces before those images are kept.
        """
        if self.is_complete():
            return
        try:
            lock = self.path.parents[1] / "locks" / f"{self.path.stem}.lock"
            with hold_lock(lock, on_wait=lambda: say("waiting for another process that aligns the same faces")):
                if not self.is_complete():  # another process may have filled it meanwhile
                    self._write(align, indices, num_workers, leave_out)
        except (OSError, lmdb.Error) as error:  # images that cannot be read raise other errors
            warnings.warn(
                f"cannot keep {self.gigabytes:.1f} GB of aligned faces in {self.path.parent} ({one_line(error)}), "
                "so they are aligned again in every epoch: set DEOCC_CACHE to a folder with room that can be written "
                "to, or data.cache_gigabytes to 0",
                stacklevel=2,
            )

    def _write(
        self, align: Align, indices: NDArray[np.int64], num_workers: int, leave_out: Callable[[list[int]], None]
    ) -> None:
        part = self.path.with_suffix(".part")
        _close(self.path)
        part.parent.mkdir(parents=True, exist_ok=True)
        # 256 bytes per value and 16 MB for the tree of keys
        with closing(_open_to_append(part, self.number * (self._stored_bytes + 256) + 2**24)) as environment:
            values = _Values(align, indices[environment.stat()["entries"] :])
            free, needed = shutil.disk_usage(part.parent).free, len(values) * self._stored_bytes
            if free < needed:
                raise OSError(f"{free / 1e9:.1f} GB are free there and {needed / 1e9:.1f} GB are to be written")
            loader = DataLoader(
                values,
                batch_size=max(1, _BLOCK_BYTES // self._value_bytes),
                num_workers=num_workers,
                collate_fn=list,
                worker_init_fn=ignore_stop_signals,
                generator=torch.Generator(),
            )
            for block in show_progress(loader, f"aligning {len(values):,} faces, once", len(loader)):
                leave_out([index for index, value in block if not value])
                try:
                    with environment.begin(write=True) as transaction:
                        for index, value in block:
                            transaction.put(_key(index), value, append=True)
                except lmdb.Error:
                    with suppress(OSError):
                        part.unlink()  # it has filled the disk
                    raise
        part.replace(self.path)


class _Values(Dataset[tuple[int, bytes]]):
    """Indices and values of images, aligned by the workers of a loader."""

    def __init__(self, align: Align, indices: NDArray[np.int64]) -> None:
        self.align, self.indices = align, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[int, bytes]:
        index = int(self.indices[number])
        try:
            face, landmarks = self.align(index)
        except UnreadableImageError:
            return index, b""
        return index, landmarks.tobytes() + face.tobytes()


def _reader(path: Path) -> lmdb.Environment:
    """Open a complete file once per process, since a forked worker must not use its parent's environment."""
    if path in _READERS and _READERS[path][0] != os.getpid():
        _close(path)
    if path not in _READERS:
        # No lock, which some network drives do not support and files that are never written do not need; no readahead,
        # since access is random
        _READERS[path] = os.getpid(), lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
    return _READERS[path][1]


def _close(path: Path) -> None:
    """Close a file opened by `_reader`."""
    if path in _READERS:
        _READERS.pop(path)[1].close()


def _open_to_append(path: Path, most_bytes: int) -> lmdb.Environment:
    """Open an unfinished file, or create it if it is missing or damaged; the caller must be its only writer."""
    try:
        environment = lmdb.open(str(path), map_size=most_bytes, subdir=False, lock=False)
        if _is_whole(environment, path):
            return environment
        environment.close()
    except lmdb.InvalidError:
        pass
    path.unlink()
    return lmdb.open(str(path), map_size=most_bytes, subdir=False, lock=False)


def _is_whole(environment: lmdb.Environment, path: Path) -> bool:
    """Return whether the file contains its last page; reading a truncated file would kill the process."""
    return path.stat().st_size >= (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]


def _key(index: int) -> bytes:
    return index.to_bytes(8, "big")  # LMDB sorts keys as bytes
