"""A matrix on disk that several processes make together and then map into memory."""

import errno
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.format import open_memmap, write_array_header_1_0
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Shape = tuple[int, int]
_ABANDONED = 24 * 3600  # seconds


def map_rows(path: Path, shape: Shape) -> Rows | None:
    """The file's (N, D) float32 values, read as they are asked for; None where there is no such file of this shape, or only part of it."""
    try:
        rows = open_memmap(path, mode="r")
    except (OSError, ValueError):
        return None
    return np.asarray(rows) if rows.shape == shape and rows.dtype == np.float32 else None


class Draft:
    """A file of rows on its way, under a name of its own until it is whole.

    Every process asks for it by the same name, and on each file system one of them gets to write it. Nothing here raises where a disk is
    full or a folder closed, so that no process leaves the others waiting: `error` tells.
    """

    def __init__(self, path: Path, shape: Shape) -> None:
        """Ask for it: (N, D) float32, 0 where nothing is written."""
        self.path, self.shape = path, shape
        self.error: OSError | None = None
        self._file: BinaryIO | None = None
        self._start = 0
        with self._noting_errors():
            self._create()

    def write(self, places: NDArray[np.int64], rows: Rows) -> None:
        """Put (B, D) rows to their (B,) places; those of negative places nowhere."""
        if self._file is None or self.error is not None:
            return
        with self._noting_errors():
            for place, row in zip(places.tolist(), rows.astype("<f4"), strict=True):
                if place >= 0:
                    self._file.seek(self._start + place * row.nbytes)
                    self._file.write(row.tobytes())

    def close(self) -> None:
        """Hand all that was written to the file system."""
        if self._file is not None:
            with self._noting_errors(), self._file:
                self._file.flush()
                os.fsync(self._file.fileno())

    def publish(self, path: Path) -> None:
        """Give the whole file its name; whoever has mapped the draft keeps it."""
        if self._file is not None:
            self.path.replace(path)

    def discard(self) -> None:
        """Remove what has got no other name."""
        if self._file is not None:
            self._file.close()
            self.path.unlink(missing_ok=True)

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(self.path.parent)
        try:
            self._file = self.path.open("xb")
        except FileExistsError:  # another process of this file system was first
            return
        write_array_header_1_0(self._file, {"descr": "<f4", "fortran_order": False, "shape": self.shape})
        self._start = self._file.tell()
        needed = 4 * math.prod(self.shape)
        if shutil.disk_usage(self.path.parent).free < needed:
            raise OSError(errno.ENOSPC, f"{needed / 1e9:.1f} GB are needed")
        self._file.truncate(self._start + needed)

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error


def _remove_abandoned(folder: Path) -> None:
    """Delete drafts that nobody has written to for a day: a process that is killed leaves gigabytes behind."""
    for draft in folder.glob("*.tmp"):
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - draft.stat().st_mtime > _ABANDONED:
                draft.unlink()
