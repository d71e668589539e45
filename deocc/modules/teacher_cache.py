"""Disk cache for the teacher's embeddings of the clean training faces.

A view is the aligned training faces or their mirror images. Each view is one NumPy file of raw float32 embeddings
(N, D), by position in the face set, named by a hash of the teacher and the training faces. It is mapped into memory and
never read as a whole.

Each rank embeds its share of the faces, every batch of embeddings is gathered on all ranks, and one rank per file
system writes it, the one that could create the draft. A draft is renamed when it is complete. Simultaneous trainings
write one draft each, and the last one replaces the others' file by an equal one.
"""

import errno
import math
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.lib.format import open_memmap, write_array_header_1_0
from numpy.typing import NDArray
from torch import Tensor

from deocc.batch import FaceBatch
from deocc.files import cache_folder, checksum
from deocc.messages import show_progress
from deocc.networks.embedders.embedder import Embedder
from deocc.networks.embedders.registry import teacher_fingerprint

Rows = NDArray[np.float32]
_VERSION: Final = 1  # to be raised when the same teacher and faces give other embeddings
_ABANDONED = 24 * 3600  # seconds without a write after which a draft is deleted


class TeacherCache:
    """Raw embeddings of all training faces, read from the file of an earlier training or computed.

    If the file cannot be written, a warning says why. Every rank then holds the embeddings of the aligned faces in
    memory, and mirror images are unknown.
    """

    faces: Rows
    """(N, D) embeddings of the aligned faces by position in the face set; 0 for unused or unreadable images."""
    knows_training: bool
    """Every clean face that training shows can be looked up."""

    def __init__(self, teacher: Embedder, trainer: pl.Trainer, wanted: tuple[bool, ...] = ()) -> None:
        """Read or compute the embeddings; call it on every rank.

        Args:
            teacher: frozen, on the trainer's device.
            trainer: its data module has `training_identity` (N,), -1 for images not used in training, a
                `training_fingerprint` of the aligned faces, and a `reference_dataloader` of this rank's share of them.
            wanted: views for `look_up`, False for the aligned faces and True for their mirror images. If only False is
                wanted, it also stands for mirrored faces.
        """
        self._teacher, self._trainer, self._wanted = teacher, trainer, wanted
        self._data: Any = trainer.datamodule  # type: ignore[attr-defined]
        used = self._data.training_identity >= 0
        self._shape, self._number = (len(used), teacher.embedding_dim), int(used.sum())
        key = f"{teacher_fingerprint(teacher)}/{self._data.training_fingerprint()}" if trainer.is_global_zero else ""
        names = (checksum(f"{_VERSION}/{key}")[:32], uuid.uuid4().hex)
        self._key, self._draft_name = trainer.strategy.broadcast(names)
        self._views: dict[bool, Rows] = {}
        aligned = self._open_or_make(flipped=False)
        if aligned is not None:
            self.faces = self._views[False] = aligned
            mirrored = self._open_or_make(flipped=True) if True in wanted else None
            if mirrored is not None:
                self._views[True] = mirrored
        else:
            self.faces = np.zeros(self._shape, np.float32)
            for position, embedding in self._compute(flipped=False):
                self.faces[position[position >= 0]] = embedding[position >= 0]
            if wanted == (False,):
                self._views[False] = self.faces
        self.knows_training = len(wanted) > 0 and set(wanted) <= self._views.keys()

    def look_up(self, batch: FaceBatch) -> Tensor | None:
        """Return raw embeddings (B, D) of a training batch on the CPU, or None if an image was once unreadable."""
        index, flipped = batch["index"].numpy(), batch["flipped"].numpy() & (True in self._wanted)
        rows = np.empty((len(index), self._shape[1]), np.float32)
        for value, view in self._views.items():
            rows[flipped == value] = view[index[flipped == value]]
        return torch.from_numpy(rows) if rows.any(1).all() else None

    def _open_or_make(self, flipped: bool) -> Rows | None:
        """Return a view from its file, which is written if it does not exist; None if that is impossible."""
        path = cache_folder() / "teacher" / f"{self._key}{'-mirrored' if flipped else ''}.npy"
        rows = open_rows(path, self._shape)
        if self._on_all_ranks(rows is not None):
            return rows
        draft = Draft(path.with_name(f"{path.name}.{self._draft_name}.tmp"), self._shape)
        try:
            if self._on_all_ranks(draft.error is None):
                for position, embedding in self._compute(flipped):
                    draft.write(position, embedding)
                draft.close()
            written = self._on_all_ranks(draft.error is None)  # also a barrier: nodes read only complete files
            rows = open_rows(draft.path, self._shape) if written else None
            if self._on_all_ranks(rows is not None):
                draft.publish(path)
                return rows
            if written and rows is None:
                draft.error = OSError("it cannot be read back")
        finally:
            draft.discard()
        if draft.error is not None:  # on the rank where it happened
            warnings.warn(
                f"cannot keep the teacher's embeddings in {path.parent} ({draft.error}): the teacher is run at every "
                "step; set DEOCC_CACHE to a folder with room for them",
                stacklevel=2,
            )
        return None

    def _compute(self, flipped: bool) -> Iterator[tuple[NDArray[np.int64], Rows]]:
        """Yield positions (B,) in the face set, -1 for padding, and embeddings (B, D) gathered from all ranks."""
        strategy, device = self._trainer.strategy, self._trainer.strategy.root_device
        loader = self._data.reference_dataloader()
        batches, size = iter(loader), loader.batch_size or 1
        rounds = math.ceil(math.ceil(self._number / self._trainer.world_size) / size)
        hidden = not self._trainer.is_global_zero
        for _ in show_progress(range(rounds), "embedding clean faces by the teacher", hidden=hidden):
            position = torch.full((size,), -1, device=device)
            embedding = torch.zeros(size, self._shape[1], device=device)
            batch = next(batches, None)  # the last one is smaller, or missing on ranks with a smaller share
            if batch is not None:
                face = batch["face"].to(device)
                with torch.no_grad(), torch.autocast(device.type, enabled=False):
                    embedding[: len(face)] = self._teacher(face.flip(-1) if flipped else face).float()
                position[: len(face)] = batch["index"].to(device)
            position, embedding = strategy.all_gather(position), strategy.all_gather(embedding)
            yield position.reshape(-1).cpu().numpy(), embedding.reshape(-1, self._shape[1]).cpu().numpy()

    def _on_all_ranks(self, condition: bool) -> bool:
        """All-reduce (AND) followed by a barrier."""
        return bool(self._trainer.strategy.reduce_boolean_decision(condition, all=True))


def open_rows(path: Path, shape: tuple[int, int]) -> Rows | None:
    """Map a file of float32 rows (N, D) into memory; None if it does not exist, is incomplete or has another shape."""
    try:
        rows = open_memmap(path, mode="r")
    except (OSError, ValueError):
        return None
    return np.asarray(rows) if rows.shape == shape and rows.dtype == np.float32 else None


class Draft:
    """An incomplete file of rows that becomes visible under its final name when it is complete.

    Every rank opens it by the same name; on each file system the first one writes it. An OSError is kept in `error`, so
    that no rank leaves the others waiting. Writing through a memory map would end the process on a full disk.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        """Create a file of float32 zeros (N, D), unless another rank of this file system has."""
        self.path = path
        self.error: OSError | None = None
        self._file: BinaryIO | None = None
        with self._keeping_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in path.parent.glob("*.tmp"):  # drafts of killed trainings, which can be gigabytes
                with suppress(FileNotFoundError):  # another process was faster
                    if time.time() - old.stat().st_mtime > _ABANDONED:
                        old.unlink()
            with suppress(FileExistsError):
                self._file = path.open("xb")
            if self._file is not None:
                write_array_header_1_0(self._file, {"descr": "<f4", "fortran_order": False, "shape": shape})
                self._start, size = self._file.tell(), 4 * math.prod(shape)
                if shutil.disk_usage(path.parent).free < size:
                    raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed")
                self._file.truncate(self._start + size)

    def write(self, position: NDArray[np.int64], rows: Rows) -> None:
        """Write rows (B, D) at their positions (B,); negative positions are skipped."""
        if self._file is None or self.error is not None:
            return
        with self._keeping_errors():
            for place, row in zip(position.tolist(), rows.astype("<f4"), strict=True):
                if place >= 0:
                    self._file.seek(self._start + place * row.nbytes)
                    self._file.write(row.tobytes())

    def close(self) -> None:
        """Flush to the disk."""
        if self._file is not None:
            with self._keeping_errors(), self._file:
                self._file.flush()
                os.fsync(self._file.fileno())

    def publish(self, path: Path) -> None:
        """Rename the complete file; existing memory maps stay valid."""
        if self._file is not None:
            self.path.replace(path)

    def discard(self) -> None:
        """Delete the file unless it was published."""
        if self._file is not None:
            self._file.close()
            self.path.unlink(missing_ok=True)

    @contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
