"""MXNet RecordIO, read without mxnet: records of an image with a label each, found through an index file.

A record is the magic number, a word of three flag bits and 29 length bits, and data padded to four bytes [0]. Where the data hold the magic
number themselves, at a multiple of four bytes, the writer drops it and splits the record into parts there. The data begin with mxnet's
`IRHeader` [1]: a count of labels, a label, two ids; where the count is not 0, so many float32 labels follow; then the image file. In
insightface's sets record 0 holds no image but the labels (images + 1, images + people + 1), and the people's records after the images hold
none either [2].

[0] dmlc-core, `include/dmlc/recordio.h`.
[1] mxnet, `python/mxnet/recordio.py`.
[2] insightface, `src/data/face2rec2.py` of 2019.
"""

import hashlib
import uuid
import warnings
import zipfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from deocc.data.missing import missing_set
from deocc.runs import cache_folder

_MAGIC: Final = 0xCED7230A
_WHOLE, _FIRST, _LAST = 0, 1, 3
"""Flags of a record in one part, and of a record's first and last part; 2 is any part between."""

_LENGTH_BITS: Final = 29
_HEAD = np.dtype([("magic", "<u4"), ("word", "<u4")])
_LABELS = np.dtype([("count", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8")])
_START = np.dtype([*_HEAD.descr, *_LABELS.descr, ("first", "<f4")])
_CHUNK: Final = 1 << 16  # records whose labels are read at a time
_EXACT: Final = 1 << 24  # float32 holds every integer up to here
_ADVICE: Final = "get both files anew from the dataset zoo of insightface and keep them side by side"


class RecordIndex(NamedTuple):
    """The records that hold an image, in the order of the index file."""

    key: NDArray[np.int64]
    """(N,) the records' numbers in the index file."""
    offset: NDArray[np.int64]
    """(N,) where they begin, in bytes."""
    person: NDArray[np.int64]
    """(N,) their labels."""


class RecordFile:
    """Random access to the records of a file; each process maps it into its own memory.

    Args:
        path: the .rec file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, object]:
        """What a spawned loader worker needs: no mapped file."""
        return {"path": self.path, "_data": None}

    @property
    def data(self) -> NDArray[np.uint8]:
        """All bytes of the file."""
        if self._data is None:
            self._data = np.memmap(self.path, np.uint8, "r")
        return self._data

    def read(self, offset: int) -> bytes:
        """The data of the record at `offset`, its parts joined.

        Raises:
            ValueError: no record begins there, or the file is cut short.
        """
        parts: list[bytes] = []
        flag = _FIRST
        while flag not in (_WHOLE, _LAST):
            flag, length = self._head(offset)
            if (flag in (_WHOLE, _FIRST)) != (not parts) or flag > _LAST:
                raise self._no_record(offset)
            start = offset + _HEAD.itemsize
            parts.append(self.data[start : start + length].tobytes())
            if len(parts[-1]) < length:
                raise self._cut(start + length)
            offset = start + -(-length // 4) * 4
        return _MAGIC.to_bytes(4, "little").join(parts)

    def image_bytes(self, offset: int) -> bytes:
        """The image file in the record at `offset`.

        Raises:
            ValueError: as `read`.
        """
        data = self.read(offset)
        return data[_LABELS.itemsize + 4 * int.from_bytes(data[:4], "little") :]

    def labels(self, offset: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The first label of each record, and whether an image follows.

        Args:
            offset: (N,) where the records begin, in bytes.

        Returns:
            (N,) labels, (N,) True where the record holds more than labels.

        Raises:
            ValueError: no record begins at one of the offsets, or the file is cut short.
        """
        places = np.minimum(offset[:, None] + np.arange(_START.itemsize), len(self.data) - 1)
        start: NDArray[Any] = np.asarray(self.data[places]).view(_START)[:, 0]
        flag, length = start["word"] >> _LENGTH_BITS, (start["word"] & ((1 << _LENGTH_BITS) - 1)).astype(np.int64)
        wrong = (start["magic"] != _MAGIC) | (flag > _FIRST)
        if wrong.any():
            raise self._no_record(int(offset[wrong][0]))
        end = int((offset + _HEAD.itemsize + length).max())
        if end > len(self.data):
            raise self._cut(end)
        count = start["count"].astype(np.int64)
        image = (length > _LABELS.itemsize + 4 * count) | (flag == _FIRST)
        return np.where(count > 0, start["first"], start["label"]), image

    def _head(self, offset: int) -> tuple[int, int]:
        """Flag and length of the record or part at `offset`."""
        head = self.data[offset : offset + _HEAD.itemsize].tobytes()
        magic, word = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
        if magic != _MAGIC:
            raise self._no_record(offset)
        return word >> _LENGTH_BITS, word & ((1 << _LENGTH_BITS) - 1)

    def _no_record(self, offset: int) -> ValueError:
        return ValueError(
            f"no record begins at byte {offset:,} of {self.path}: the file is damaged or the index belongs to another; {_ADVICE}"
        )

    def _cut(self, end: int) -> ValueError:
        return ValueError(
            f"{self.path} has {len(self.data):,} bytes, but a record reaches to byte {end:,}: the file is cut short; {_ADVICE}"
        )


def load_index(file: RecordFile, idx: Path) -> RecordIndex:
    """Which records hold images, and of whom: from an earlier run, or else from the two files.

    To collect the labels is a pass over the whole file, so they are kept in `DEOCC_CACHE` or else `~/.cache/deocc`, under the record file's
    name and size and the index file's hash.

    Raises:
        FileNotFoundError: one of the files is missing, or the index lists fewer images than record 0 promises.
        ValueError: one of the files is damaged, cut short, or does not fit the other.
    """
    missing = [path.name for path in (file.path, idx) if not path.is_file()]
    if missing:
        raise missing_set("record files", file.path.parent, missing, 2, _ADVICE)
    cached = _cache_file(file, idx)
    index = _kept(cached)
    if index is None:
        index = _scan(file, idx, *_read_idx(file, idx))
        _keep(index, cached)
    return index


def _kept(cached: Path) -> RecordIndex | None:
    """What an earlier run kept; None where it kept nothing or the file is damaged."""
    try:
        with cached.open("rb") as opened, np.load(opened, allow_pickle=False) as columns:
            return RecordIndex(columns["key"], columns["offset"], columns["person"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(index: RecordIndex, cached: Path) -> None:
    """Write the file in one step, so that no other process reads half of it."""
    part = cached.with_suffix(f".{uuid.uuid4().hex}.npz")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        np.savez(part, **index._asdict())
        part.replace(cached)
    except OSError as error:
        advice = "set DEOCC_CACHE to a folder that can be written to"
        warnings.warn(f"labels cannot be kept in {cached.parent} ({error.strerror}) and will be collected again: {advice}", stacklevel=4)


def _cache_file(file: RecordFile, idx: Path) -> Path:
    digest = hashlib.sha256(f"{file.path.name} {file.path.stat().st_size}\n".encode() + idx.read_bytes()).hexdigest()
    return cache_folder() / "records" / f"{digest[:32]}.npz"


def _read_idx(file: RecordFile, idx: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys and offsets, each offset inside the record file."""
    try:
        rows = np.loadtxt(idx, np.int64, comments=None, ndmin=2) if idx.stat().st_size else np.zeros((0, 2), np.int64)
    except ValueError as error:
        raise ValueError(f"{idx} is no index of a record file ({error}): each line must be KEY tab OFFSET; {_ADVICE}") from error
    if rows.size == 0 or rows.shape[1] != 2:
        raise ValueError(f"{idx} is no index of a record file: expected lines KEY tab OFFSET, got {rows.shape} numbers; {_ADVICE}")
    size = file.path.stat().st_size
    outside = (rows[:, 1] < 0) | (rows[:, 1] > size - _HEAD.itemsize)
    if outside.any():
        key, offset = rows[outside][0].tolist()
        found = f"{outside.sum():,} of {len(rows):,} records of {idx} lie outside {file.path} of {size:,} bytes"
        raise ValueError(f"{found} (first: {key} at byte {offset:,}): the file is cut short or the index is another's; {_ADVICE}")
    return rows[:, 0], rows[:, 1]


def _scan(file: RecordFile, idx: Path, key: NDArray[np.int64], offset: NDArray[np.int64]) -> RecordIndex:
    """The labels of all records."""
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(key), _CHUNK)]
    shown = track(chunks, f"labels of {file.path.name}", console=Console(stderr=True), transient=True, disable=len(chunks) < 8)
    labels, images = (np.concatenate(column) for column in zip(*(file.labels(offset[chunk]) for chunk in shown), strict=True))
    promised = labels[(key == 0) & ~images] - 1
    absent = () if len(promised) == 0 or promised[0] >= _EXACT else np.setdiff1d(np.arange(1, promised[0] + 1), key[images])
    if len(absent):
        raise missing_set(f"images of {idx.name}", idx.parent, [f"record {number:.0f}" for number in absent], int(promised[0]), _ADVICE)
    labels = labels[images]
    if len(labels) == 0 or not ((labels >= 0) & (labels < _EXACT) & (labels == np.floor(labels))).all():
        raise ValueError(f"{file.path} holds no images with people's numbers as labels: choose a record file made for face recognition")
    return RecordIndex(key[images], offset[images], labels.astype(np.int64))
