"""Aligned faces of a large split, cut out once and kept in an LMDB file below `DEOCC_CACHE` or `~/.cache/deocc`.

Why LMDB: the order of an epoch follows from its seed exactly, so faces are asked for by index, which formats made for streaming in nearly
random order (WebDataset, LitData) do not serve; one file is mapped by all processes of a node and lies in their memory once, as the
system's page cache; and a complete file is only read, without a lock, so that many nodes can share it on a network drive.

A value is the landmarks and the raw pixels of a face; that of an image which could not be read is empty. A lossless code would save a
third (PNG) to a half (WebP) of the disk space of colour faces at 112 pixels, but take 0.3-0.4 ms to undo in place of 3 microseconds,
measured on one core.
"""

import hashlib
import mmap
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb
import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from deocc.data.face_set import FaceSet, Split
from deocc.data.loader import ignore_stop_signals
from deocc.data.quarantine import UnreadableImageError
from deocc.geometry import TEMPLATES
from deocc.runs import cache_folder

_READERS: Final[dict[Path, tuple[int, lmdb.Environment]]] = {}  # LMDB allows a process one opening of a file


def reader(path: Path) -> lmdb.Environment:
    """The file, opened once a process: a forked worker must not use its parent's.

    No lock is taken, for nobody writes to a complete file, and locks do not work on every network drive.

    Raises:
        lmdb.Error: it is not there, or no LMDB file.
    """
    process, environment = _READERS.get(path, (0, None))
    if environment is not None and process != os.getpid():
        forget(path)
    if path not in _READERS:
        # Values are asked for in random order: to read ahead would fetch what nobody asks for.
        _READERS[path] = os.getpid(), lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
    return _READERS[path][1]


def forget(path: Path) -> None:
    """Close what `reader` opened."""
    if path in _READERS:
        _READERS.pop(path)[1].close()


def open_to_append(path: Path, most_bytes: int) -> lmdb.Environment:
    """The file as an interruption left it, or a new one where there is none or it is damaged; its only writer is the caller.

    Args:
        path: the file.
        most_bytes: what it may grow to.

    Raises:
        lmdb.Error: the file cannot be written.
    """
    try:
        environment = lmdb.open(str(path), map_size=most_bytes, subdir=False, lock=False)
        if is_whole(environment, path):
            return environment
        environment.close()
    except lmdb.InvalidError:
        pass
    path.unlink()
    return lmdb.open(str(path), map_size=most_bytes, subdir=False, lock=False)


def count(environment: lmdb.Environment) -> int:
    """The number of values."""
    return int(environment.stat()["entries"])


def is_whole(environment: lmdb.Environment, path: Path) -> bool:
    """Whether the file reaches to its last page: to read beyond the end of one that was cut short would kill the process."""
    return path.stat().st_size >= (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]


AlignedFace = tuple[NDArray[np.uint8], NDArray[np.float32]]
"""A face, (size, size, 3) RGB, and its landmarks there, (5, 2) in pixels."""

_VERSION: Final = 1  # raised when `geometry.align` gives other pixels, so that old files are not taken for new ones
_LANDMARK_BYTES: Final = 5 * 2 * 4
_MISSING: Final = b"?"  # in place of a value that is not there; no value has its length
_BLOCK_BYTES: Final = 2**23  # written at a time: what an interruption loses, and what each worker holds twice


@dataclass(frozen=True)
class AlignedCache:
    """A file of aligned faces. Only a whole one has the name `path`; an unfinished one ends in `.part` and is gone on with.

    A copy in another process is as small as this: it opens the file for itself.
    """

    path: Path
    size: int
    """Side of the faces in pixels."""
    number: int
    """How many faces the file holds when it is complete."""

    @classmethod
    def of(cls, face_set: FaceSet, split: Split, size: int, indices: NDArray[np.int64]) -> "AlignedCache":
        """The file of these images of a split; its name follows from the data (`FaceSet.quick_fingerprint`), template and size."""
        described = repr((_VERSION, face_set.quick_fingerprint(split), TEMPLATES["canonical"], size)).encode()
        key = hashlib.sha256(described + indices.tobytes()).hexdigest()[:32]
        return cls((cache_folder() / "aligned" / f"{key}.lmdb").absolute(), size, len(indices))

    @property
    def gigabytes(self) -> float:
        """What the complete file takes, in 10^9 bytes."""
        return self.number * self._stored_bytes / 1e9

    def __call__(self, index: int) -> AlignedFace:
        """The face of the image at `index` of the face set.

        Raises:
            UnreadableImageError: the image could not be read when the file was filled.
            ValueError: the file was removed or changed since it was found complete.
        """
        try:
            with reader(self.path).begin(buffers=True) as transaction:
                value = np.array(np.frombuffer(transaction.get(_key(index), _MISSING), np.uint8))
        except lmdb.Error as error:
            raise ValueError(
                f"cannot read aligned faces from {self.path} ({error}): start again, and they are made anew"
            ) from error
        if len(value) == 0:
            raise UnreadableImageError(f"image {index} could not be read when the faces in {self.path} were aligned")
        if len(value) != self._value_bytes:
            raise ValueError(
                f"{self.path} lacks the face {index}: remove the file and start again, and it is made anew"
            )
        return value[_LANDMARK_BYTES:].reshape(self.size, self.size, 3), value[:_LANDMARK_BYTES].view(
            np.float32
        ).reshape(5, 2)

    def is_complete(self) -> bool:
        """Whether all faces can be read."""
        try:
            return (
                self.path.is_file()
                and is_whole(reader(self.path), self.path)
                and count(reader(self.path)) == self.number
            )
        except (OSError, lmdb.Error):
            return False

    def fill(
        self,
        align: Callable[[int], AlignedFace],
        indices: NDArray[np.int64],
        num_workers: int,
        leave_out: Callable[[list[int]], None],
    ) -> None:
        """Write the faces that are not there yet. One process works, others with the same file wait for it.

        Where the file cannot be written, a warning says so and nothing is kept.

        Args:
            align: cuts out the face of an image; has to go to other processes.
            indices: (number,) the images, ascending.
            num_workers: processes that cut out faces; 0 for this one.
            leave_out: is told in this process of the images that cannot be read (`Quarantine.add`). Where it raises, this stops, and the
                faces before those images are kept.
        """
        try:
            if not self.is_complete():
                with self._alone():
                    if not self.is_complete():  # another process may have filled it meanwhile
                        self._write(align, indices, num_workers, leave_out)
        except _StorageError as error:
            advice = "set DEOCC_CACHE to a folder with room that can be written to, or data.cache_gigabytes to 0"
            lost = f"cannot keep {self.gigabytes:.1f} GB of aligned faces in {self.path.parent}"
            warnings.warn(f"{lost} ({error}), so they are aligned anew in every epoch: {advice}", stacklevel=2)

    @property
    def _value_bytes(self) -> int:
        return _LANDMARK_BYTES + 3 * self.size**2

    @property
    def _stored_bytes(self) -> int:
        """A value with LMDB's head, in whole pages."""
        return -(-(self._value_bytes + 16) // mmap.PAGESIZE) * mmap.PAGESIZE

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self.path.parents[1] / "locks" / f"{self.path.stem}.lock")
        with _storage():
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                Console(stderr=True).print("waiting for another process that aligns the same faces")
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _write(
        self,
        align: Callable[[int], AlignedFace],
        indices: NDArray[np.int64],
        num_workers: int,
        leave_out: Callable[[list[int]], None],
    ) -> None:
        part = self.path.with_suffix(".part")
        with _storage():
            forget(self.path)
            part.parent.mkdir(parents=True, exist_ok=True)
            environment = open_to_append(
                part, self.number * (self._stored_bytes + 256) + 2**24
            )  # with room for the tree of keys
        with closing(environment):
            done = count(environment)
            _check_room(part, (self.number - done) * self._stored_bytes)
            blocks = _Blocks(align, indices[done:], max(1, _BLOCK_BYTES // self._value_bytes))
            loader = DataLoader(
                blocks,
                batch_size=None,
                num_workers=num_workers,
                worker_init_fn=ignore_stop_signals,
                generator=torch.Generator(),
            )
            title = f"aligning {self.number - done:,} faces, once"
            for block in track(loader, title, total=len(blocks), console=Console(stderr=True), transient=True):
                leave_out([index for index, value in block if not value])
                with _storage(part), environment.begin(write=True) as transaction:
                    for index, value in block:
                        transaction.put(_key(index), value, append=True)
        with _storage():
            part.replace(self.path)


class _StorageError(Exception):
    """The file cannot be written."""


class _Blocks(Dataset[list[tuple[int, bytes]]]):
    """So many images' indices and values at a time, so that a loader's workers cut them out."""

    def __init__(self, align: Callable[[int], AlignedFace], indices: NDArray[np.int64], block: int) -> None:
        self.align, self.indices, self.block = align, indices, block

    def __len__(self) -> int:
        return -(-len(self.indices) // self.block)

    def __getitem__(self, number: int) -> list[tuple[int, bytes]]:
        indices = self.indices[number * self.block : (number + 1) * self.block].tolist()
        return [(index, self._value(index)) for index in indices]

    def _value(self, index: int) -> bytes:
        try:
            return b"".join(part.tobytes() for part in reversed(self.align(index)))
        except UnreadableImageError:
            return b""


@contextmanager
def _storage(part: Path | None = None) -> Iterator[None]:
    """Tells a failure to write from one to read an image; a file that has filled the disk is removed."""
    try:
        yield
    except (OSError, NotImplementedError, lmdb.Error) as error:  # NotImplementedError: a file system without locks
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        raise _StorageError(" ".join(str(error).split())) from error


def _check_room(part: Path, needed: int) -> None:
    """Tell before hours of work, not after."""
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise _StorageError(f"{free / 1e9:.1f} GB are free there and {needed / 1e9:.1f} GB are to be written")


def _key(index: int) -> bytes:
    return index.to_bytes(8, "big")  # LMDB sorts by bytes: so keys ascend as indices do
