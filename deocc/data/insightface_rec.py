"""insightface's training sets: `train.rec` beside `train.idx`."""

import hashlib
import uuid
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, overload

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from deocc.data.face_set import FaceSet, Split, missing_set
from deocc.data.images import read_image_bytes
from deocc.data.loader import item_seed
from deocc.files import cache_folder
from deocc.geometry import get_template

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
        warnings.warn(
            f"labels cannot be kept in {cached.parent} ({error.strerror}) and will be collected again: {advice}",
            stacklevel=4,
        )


def _cache_file(file: RecordFile, idx: Path) -> Path:
    digest = hashlib.sha256(f"{file.path.name} {file.path.stat().st_size}\n".encode() + idx.read_bytes()).hexdigest()
    return cache_folder() / "records" / f"{digest[:32]}.npz"


def _read_idx(file: RecordFile, idx: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys and offsets, each offset inside the record file."""
    try:
        rows = np.loadtxt(idx, np.int64, comments=None, ndmin=2) if idx.stat().st_size else np.zeros((0, 2), np.int64)
    except ValueError as error:
        raise ValueError(
            f"{idx} is no index of a record file ({error}): each line must be KEY tab OFFSET; {_ADVICE}"
        ) from error
    if rows.size == 0 or rows.shape[1] != 2:
        raise ValueError(
            f"{idx} is no index of a record file: expected lines KEY tab OFFSET, got {rows.shape} numbers; {_ADVICE}"
        )
    size = file.path.stat().st_size
    outside = (rows[:, 1] < 0) | (rows[:, 1] > size - _HEAD.itemsize)
    if outside.any():
        key, offset = rows[outside][0].tolist()
        found = f"{outside.sum():,} of {len(rows):,} records of {idx} lie outside {file.path} of {size:,} bytes"
        raise ValueError(
            f"{found} (first: {key} at byte {offset:,}): the file is cut short or the index is another's; {_ADVICE}"
        )
    return rows[:, 0], rows[:, 1]


def _scan(file: RecordFile, idx: Path, key: NDArray[np.int64], offset: NDArray[np.int64]) -> RecordIndex:
    """The labels of all records."""
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(key), _CHUNK)]
    shown = track(
        chunks, f"labels of {file.path.name}", console=Console(stderr=True), transient=True, disable=len(chunks) < 8
    )
    labels, images = (
        np.concatenate(column) for column in zip(*(file.labels(offset[chunk]) for chunk in shown), strict=True)
    )
    promised = labels[(key == 0) & ~images] - 1
    absent = (
        () if len(promised) == 0 or promised[0] >= _EXACT else np.setdiff1d(np.arange(1, promised[0] + 1), key[images])
    )
    if len(absent):
        raise missing_set(
            f"images of {idx.name}",
            idx.parent,
            [f"record {number:.0f}" for number in absent],
            int(promised[0]),
            _ADVICE,
        )
    labels = labels[images]
    if len(labels) == 0 or not ((labels >= 0) & (labels < _EXACT) & (labels == np.floor(labels))).all():
        raise ValueError(
            f"{file.path} holds no images with people's numbers as labels: choose a record file made for face recognition"
        )
    return RecordIndex(key[images], offset[images], labels.astype(np.int64))


class _Names(Sequence[str]):
    """`PERSON/KEY` for each image, made when asked for: millions of strings would take as much memory as their images."""

    def __init__(self, index: RecordIndex) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index.key)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "_Names": ...
    def __getitem__(self, place: int | slice) -> "str | _Names":
        if isinstance(place, slice):
            return _Names(RecordIndex(*(column[place] for column in self._index)))
        return f"{self._index.person[place]}/{self._index.key[place]}"


class RecordFaces(FaceSet):
    """Square aligned crops in a record file; a person is the number in the records' labels.

    The labels of all records are collected once and kept (`deocc.data.record_io.load_index`). Which split a person belongs to follows from
    a hash of the number, as in `FolderFaces`; whoever is in neither share is a test person. The shares, their defaults OURS, are kept on
    average only.

    Args:
        rec: the .rec file.
        idx: its index; default the file of the same name that ends in .idx.
        aligned: the template that the crops were made with, a name of `deocc.geometry.TEMPLATES`.
        train: share of the people to train on.
        val: share of the people to validate on; 0 for none.
        seed: another seed splits the people otherwise.

    Raises:
        FileNotFoundError: one of the files is missing, or the index lists fewer images than the file's first record promises.
        ValueError: an unknown template, impossible shares, a split without a person, or files that are damaged, cut short or do not fit
            each other.
    """

    def __init__(
        self,
        rec: str,
        idx: str | None = None,
        aligned: str = "arcface",
        train: float = 0.99,
        val: float = 0.01,
        seed: int = 0,
    ) -> None:
        self._template = get_template(aligned)
        if not (train > 0 and val >= 0 and train + val <= 1):
            raise ValueError(
                f"train={train} and val={val}: choose train above 0, val from 0, and a sum of 1 at most; the rest is for tests"
            )
        self._file = RecordFile(Path(rec))
        self._index = load_index(self._file, Path(idx) if idx is not None else self._file.path.with_suffix(".idx"))
        self.names, self.person = _Names(self._index), self._index.person
        self.split_of_person = _split_people(np.unique(self.person).tolist(), train, val, seed)
        self._size = len(self._decode(0))
        self._set_landmarks()

    def __getstate__(self) -> dict[str, object]:
        """All but the landmarks, which are one row repeated and would be written out for each image."""
        return {name: value for name, value in self.__dict__.items() if name != "landmarks"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._set_landmarks()

    @property
    def credit(self) -> str:
        """The file's name: whose faces they are its owner knows."""
        return f"face crops of the record file {self._file.path.parent.resolve().name}/{self._file.path.name}"

    def image(self, index: int) -> NDArray[np.uint8]:
        """The crop at `index`, (H, H, 3) RGB.

        Raises:
            ValueError: the record is damaged, holds no readable image, or one of another size than the first.
        """
        image = self._decode(index)
        if image.shape != (self._size, self._size, 3):
            shapes = f"{image.shape[1]} x {image.shape[0]} pixels, but the first image {self._size} x {self._size}"
            raise ValueError(
                f"image {self.names[index]} of {self._file.path} has {shapes}: all crops of a record file must be of one size"
            )
        return image

    def fingerprint(self, split: Split) -> str:
        """A hash of the split's people, of where their images lie in the file, and of the template: millions of images are not read.

        An image's place tells the compressed size of all before it, so that another file with equal places is improbable.
        """
        indices = self.indices(split)
        digest = hashlib.sha256(str((len(self._file.data), self._size, self._template.points)).encode())
        digest.update(self._index.offset[indices].tobytes())
        digest.update(self.person[indices].tobytes())
        return digest.hexdigest()[:16]

    def _decode(self, index: int) -> NDArray[np.uint8]:
        name = f"image {self.names[index]} of {self._file.path}"
        image = read_image_bytes(self._file.image_bytes(int(self._index.offset[index])), name)
        if image.shape[0] != image.shape[1]:
            raise ValueError(
                f"{name} has {image.shape[1]} x {image.shape[0]} pixels: aligned crops are square, so choose another file"
            )
        return image

    def _set_landmarks(self) -> None:
        """One row for all images: a copy for each of millions would take hundreds of megabytes. Torch warns of `broadcast_to`'s result."""
        points = self._template.tensor(self._size).double().numpy()
        self.landmarks = as_strided(points, (len(self.names), 5, 2), (0, *points.strides))


def _split_people(people: list[int], train: float, val: float, seed: int) -> dict[int, Split]:
    """The split of each person, or an error where nobody is left to train or validate on."""
    places = [item_seed(seed, "split", person) / 2**63 for person in people]
    splits: list[Split] = ["train" if place < train else "val" if place < train + val else "test" for place in places]
    empty = [split for split, share in (("train", train), ("val", val)) if share > 0 and split not in splits]
    if empty:
        found = (
            f"of {len(people)} people none falls into {' and '.join(empty)} (train {train:g}, val {val:g}, seed {seed})"
        )
        raise ValueError(f"{found}: raise that share, choose another seed, or set val to 0")
    return dict(zip(people, splits, strict=True))
