"""What the frozen teacher gives for the clean training faces, computed once and kept.

A view, the training faces as they are or their mirror images, is a file of (N, D) raw embeddings, row by position in the face set:
`CACHE/teacher/KEY.npy` or `KEY-mirrored.npy`, float32 in NumPy's own format, CACHE being the environment's DEOCC_CACHE or
`~/.cache/deocc`, KEY a hash of the teacher and of the training faces. It is mapped into memory and never read as a whole.

The processes of a training make it together. Each embeds its share; every batch of embeddings is gathered in all of them, and one process
a file system writes it: the one that could create the draft. So there is one file where the nodes share a file system, and one a node
where they do not. A draft gets its name when it is whole, so that nobody takes an unfinished file. Trainings that start side by side make
one draft each, and the last replaces the others' file by an equal one.
"""

import errno
import hashlib
import math
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.lib.format import open_memmap, write_array_header_1_0
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from deocc.batch import FaceBatch
from deocc.networks.embedders.registry import Embedder, teacher_fingerprint
from deocc.runs import cache_folder

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


_VERSION: Final = (
    1  # raised when the same teacher and faces give other embeddings, so that old files are not taken for new ones
)


class TrainingData(Protocol):
    """What is asked of a data module."""

    @property
    def plain_views(self) -> tuple[bool, ...]:
        """What `flipped` may be in training where a clean face is an aligned face or its mirror image; empty where it can be anything."""

    @property
    def blends(self) -> bool:
        """Whether training blends faces of several people."""

    @property
    def training_identity(self) -> NDArray[np.int64]:
        """(N,) whose face each image of the face set is, -1 where training has no use for the image."""

    def training_fingerprint(self) -> str:
        """A hash of all that an aligned training face follows from."""

    def reference_dataloader(self, shared: bool = False) -> DataLoader[Any]:
        """The aligned training faces: all of them in every process, or each process's share."""


class TeacherCache:
    """The raw embeddings of all training faces, from an earlier training's file or computed.

    Where no file can be kept, a warning says why; then every process holds the embeddings of the faces as they are, and no more is known.

    Attributes:
        faces: (N, D) of the faces as they are, row by position in the face set; 0 where training has no use for the image or it could not
            be read.
    """

    faces: Rows

    def __init__(self, teacher: Embedder, trainer: pl.Trainer, wanted: tuple[bool, ...] = ()) -> None:
        """Read or compute them; every process must take part.

        Args:
            teacher: frozen, on the trainer's device.
            wanted: the views that `look_up` is to know, False for the aligned face and True for its mirror image; where only False is
                wanted, it stands for a mirrored face too.
            trainer: its data module is asked for the training faces (`TrainingData`), its strategy joins the processes.
        """
        self._wanted = wanted
        self._teacher, self._trainer, self._strategy = teacher, trainer, trainer.strategy
        self._data: TrainingData = trainer.datamodule  # type: ignore[attr-defined]
        used = self._data.training_identity >= 0
        self._shape, self._number = (len(used), teacher.embedding_dim), int(used.sum())
        key = f"{teacher_fingerprint(teacher)}/{self._data.training_fingerprint()}" if trainer.is_global_zero else ""
        self._key, self._draft = self._strategy.broadcast(
            (hashlib.sha256(f"{_VERSION}/{key}".encode()).hexdigest()[:32], uuid.uuid4().hex)
        )
        stored = self._stored(flipped=False)
        self.faces = self._in_memory() if stored is None else stored
        self._views: dict[bool, Rows] = {False: self.faces} if self._wanted == (False,) else {}
        if stored is not None:
            self._views = {False: stored, **self._further_views()}

    @property
    def knows_training(self) -> bool:
        """Whether every clean face that training shows can be looked up."""
        return len(self._wanted) > 0 and set(self._wanted) <= self._views.keys()

    def look_up(self, batch: FaceBatch) -> Tensor | None:
        """(B, D) raw embeddings of the clean faces of a training batch that is on the CPU, without looking at them.

        None where one of them is not known: an image that could not be read when the file was made, and can be now.
        """
        index, flipped = batch["index"].numpy(), batch["flipped"].numpy() & (True in self._wanted)
        rows = np.empty((len(index), self._shape[1]), np.float32)
        for value, view in self._views.items():
            rows[flipped == value] = view[index[flipped == value]]
        return torch.from_numpy(rows) if rows.any(1).all() else None

    def _further_views(self) -> dict[bool, Rows]:
        views = {flipped: self._stored(flipped) for flipped in self._wanted if flipped}
        return {flipped: view for flipped, view in views.items() if view is not None}

    def _stored(self, flipped: bool) -> Rows | None:
        """The view as it lies on disk, made if need be; None where that is not possible."""
        path = cache_folder() / "teacher" / f"{self._key}{'-mirrored' if flipped else ''}.npy"
        rows = map_rows(path, self._shape)
        return rows if self._all(rows is not None) else self._make(path, flipped)

    def _make(self, path: Path, flipped: bool) -> Rows | None:
        draft = Draft(path.with_name(f"{path.name}.{self._draft}.tmp"), self._shape)
        try:
            if self._all(draft.error is None):
                for places, rows in self._computed(flipped):
                    draft.write(places, rows)
                draft.close()
            written = self._all(draft.error is None)  # another node must not look before
            whole = map_rows(draft.path, self._shape) if written else None
            if self._all(whole is not None):
                draft.publish(path)
                return whole
            if draft.error is None and written and whole is None:
                draft.error = OSError("it cannot be read back")
            _warn(draft)
            return None
        finally:
            draft.discard()

    def _in_memory(self) -> Rows:
        whole = np.zeros(self._shape, np.float32)
        for places, rows in self._computed(flipped=False):
            whole[places[places >= 0]] = rows[places >= 0]
        return whole

    def _computed(self, flipped: bool) -> Iterator[tuple[NDArray[np.int64], Rows]]:
        """Positions in the face set and (B, D) embeddings of some faces of every process at a time, the same in all; -1 fills up."""
        loader = self._data.reference_dataloader(shared=True)
        batches, size = iter(loader), loader.batch_size or 1
        rounds = math.ceil(math.ceil(self._number / self._trainer.world_size) / size)
        console = Console(stderr=True, quiet=not self._trainer.is_global_zero)
        for _ in track(range(rounds), "embedding clean faces by the teacher", console=console, transient=True):
            places, rows = (
                self._strategy.all_gather(part) for part in self._embedded(next(batches, None), size, flipped)
            )
            yield places.reshape(-1).cpu().numpy(), rows.reshape(-1, self._shape[1]).cpu().numpy()

    @torch.no_grad()
    def _embedded(self, batch: FaceBatch | None, size: int, flipped: bool) -> tuple[Tensor, Tensor]:
        """(size,) positions and (size, D) embeddings; the last batches, which are smaller or missing, filled up."""
        device = self._strategy.root_device
        places = torch.full((size,), -1, device=device)
        rows = torch.zeros(size, self._shape[1], device=device)
        if batch is not None:
            face = batch["face"].to(device)
            with torch.autocast(device.type, enabled=False):
                rows[: len(face)] = self._teacher(face.flip(-1) if flipped else face).float()
            places[: len(face)] = batch["index"].to(device)
        return places, rows

    def _all(self, truth: bool) -> bool:
        """Whether it holds in every process; also, none goes on before all are here."""
        return bool(self._strategy.reduce_boolean_decision(truth, all=True))


def _warn(draft: Draft) -> None:
    """Say why this process could not keep its file; the others have nothing to say."""
    if draft.error is not None:
        warnings.warn(
            f"cannot keep the teacher's embeddings in {draft.path.parent} ({draft.error}): the teacher is run at every step; "
            "set DEOCC_CACHE to a folder with room for them",
            stacklevel=2,
        )
