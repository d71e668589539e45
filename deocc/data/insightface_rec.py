"""insightface's training sets: records of images with labels in `train.rec`, and their offsets in `train.idx`."""

import hashlib
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
from deocc.files import cache_folder, checksum, expand_user, replace_file
from deocc.geometry import get_template

_MAGIC: Final = 0xCED7230A
_WHOLE, _FIRST, _LAST = 0, 1, 3
"""Flags of a complete record, and of the first and last part of a record; 2 is a part between."""

_LENGTH_BITS: Final = 29
_HEAD = np.dtype([("magic", "<u4"), ("word", "<u4")])
_LABELS = np.dtype([("count", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8")])
_START = np.dtype([*_HEAD.descr, *_LABELS.descr, ("first", "<f4")])
_CHUNK: Final = 1 << 16  # records whose labels are read at a time
_EXACT: Final = 1 << 24  # float32 holds every integer up to here
_ADVICE: Final = "get both files again from the dataset zoo of insightface and keep them side by side"


class RecordIndex(NamedTuple):
    """The records with an image, in the order of the index file."""

    key: NDArray[np.int64]
    """(N,) numbers of the records in the index file."""
    offset: NDArray[np.int64]
    """(N,) positions in bytes."""
    identity: NDArray[np.int64]
    """(N,) labels."""


class RecordFile:
    """Random access to the records of a file, which each process maps into memory.

    Args:
        path: the .rec file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Return the state for a spawned worker, without the mapped file."""
        return {"path": self.path, "_data": None}

    @property
    def data(self) -> NDArray[np.uint8]:
        """All bytes of the file."""
        if self._data is None:
            self._data = np.memmap(self.path, np.uint8, "r")
        return self._data

    def read(self, offset: int) -> bytes:
        """Return the data of the record at `offset`, with its parts joined.

        Raises:
            ValueError: no record begins there, or the file is truncated.
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
        """Return the encoded image in the record at `offset`.

        Raises:
            ValueError: see `read`.
        """
        data = self.read(offset)
        return data[_LABELS.itemsize + 4 * int.from_bytes(data[:4], "little") :]

    def labels(self, offset: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read the first label of each record, and whether it contains an image.

        Args:
            offset: (N,) positions of the records in bytes.

        Returns:
            (N,) labels; (N,) bool, True if the record contains more than labels.

        Raises:
            ValueError: no record begins at one of the offsets, or the file is truncated.
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
        """Read flag and length of the record or part at `offset`."""
        head = self.data[offset : offset + _HEAD.itemsize].tobytes()
        magic, word = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
        if magic != _MAGIC:
            raise self._no_record(offset)
        return word >> _LENGTH_BITS, word & ((1 << _LENGTH_BITS) - 1)

    def _no_record(self, offset: int) -> ValueError:
        return ValueError(
            f"no record begins at byte {offset:,} of {self.path}: "
            f"the file is damaged or the index belongs to another; {_ADVICE}"
        )

    def _cut(self, end: int) -> ValueError:
        return ValueError(
            f"{self.path} has {len(self.data):,} bytes, but a record reaches to byte {end:,}: "
            f"the file is cut short; {_ADVICE}"
        )


def load_index(file: RecordFile, idx: Path) -> RecordIndex:
    """Return the records with images and their labels, from the cache or from both files.

    Collecting the labels is a pass over the whole file, so they are cached by name and size of the record file and the
    hash of the index file.

    Raises:
        FileNotFoundError: a file is missing, or the index lists fewer images than record 0 announces.
        ValueError: a file is damaged, truncated, or does not fit the other.
    """
    missing = [path.name for path in (file.path, idx) if not path.is_file()]
    if missing:
        raise missing_set("record files", file.path.parent, missing, 2, _ADVICE)
    key = checksum(f"{file.path.name} {file.path.stat().st_size}\n", idx)
    cached = cache_folder() / "records" / f"{key[:32]}.npz"
    try:
        with cached.open("rb") as opened, np.load(opened, allow_pickle=False) as columns:
            return RecordIndex(columns["key"], columns["offset"], columns["identity"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # missing or damaged
        index = _scan(file, idx, *_read_idx(file, idx))
    try:
        with replace_file(cached) as draft, draft.open("wb") as written:
            np.savez(written, **index._asdict())
    except OSError as error:
        advice = "set DEOCC_CACHE to a folder that can be written to"
        warnings.warn(
            f"labels cannot be kept in {cached.parent} ({error.strerror}) and will be collected again: {advice}",
            stacklevel=3,
        )
    return index


def _read_idx(file: RecordFile, idx: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read keys and offsets, and check that the offsets are inside the record file."""
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
    """Read the labels of all records."""
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(key), _CHUNK)]
    title, console = f"labels of {file.path.name}", Console(stderr=True)
    shown = track(chunks, title, console=console, transient=True, disable=len(chunks) < 8)
    columns = [file.labels(offset[chunk]) for chunk in shown]
    labels, images = (np.concatenate(column) for column in zip(*columns, strict=True))
    announced = labels[(key == 0) & ~images] - 1
    if len(announced) and announced[0] < _EXACT:
        absent = np.setdiff1d(np.arange(1, announced[0] + 1), key[images])
        if len(absent):
            names = [f"record {number:.0f}" for number in absent]
            raise missing_set(f"images of {idx.name}", idx.parent, names, int(announced[0]), _ADVICE)
    labels = labels[images]
    if len(labels) == 0 or not ((labels >= 0) & (labels < _EXACT) & (labels == np.floor(labels))).all():
        raise ValueError(
            f"{file.path} holds no images with people's numbers as labels: "
            "choose a record file made for face recognition"
        )
    return RecordIndex(key[images], offset[images], labels.astype(np.int64))


class _Names(Sequence[str]):
    """Names `PERSON/KEY`, created on access; millions of strings would take as much memory as their images."""

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
        return f"{self._index.identity[place]}/{self._index.key[place]}"


class RecordFaces(FaceSet):
    """Square aligned crops in a record file; the identity is the label of a record.

    Labels are collected once and cached (`load_index`). The split of an identity follows from a hash of its number, as
    in `FolderFaces`; identities in neither share are tested. The shares (our choice) are met on average.

    Args:
        rec: the .rec file.
        idx: its index; default: the file of the same name with the suffix .idx.
        aligned: template of the crops, a name of `deocc.geometry.TEMPLATES`.
        train: share of identities for training.
        val: share of identities for validation; may be 0.
        seed: seed of the split.

    Raises:
        FileNotFoundError: a file is missing, or the index lists fewer images than the first record announces.
        ValueError: an unknown template, impossible shares, an empty split, or files that are damaged, truncated or do
            not fit each other.
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
                f"train={train} and val={val}: choose train above 0, val from 0, and a sum of 1 at most; "
                "the rest is for tests"
            )
        self._file = RecordFile(expand_user(rec))
        self._index = load_index(
            self._file, expand_user(idx) if idx is not None else self._file.path.with_suffix(".idx")
        )
        self.names, self.identity = _Names(self._index), self._index.identity
        self.split_of_identity = _split_people(np.unique(self.identity).tolist(), train, val, seed)
        self._size = len(self._decode(0))
        self._set_landmarks()

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the landmarks, one repeated row that pickling would copy for each image."""
        return {name: value for name, value in self.__dict__.items() if name != "landmarks"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._set_landmarks()

    @property
    def credit(self) -> str:
        """The name of the file; the owner of its faces is not known."""
        return f"face crops of the record file {self._file.path.parent.resolve().name}/{self._file.path.name}"

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read the crop at `index`, (H, H, 3) RGB.

        Raises:
            ValueError: the record is damaged, has no readable image, or one of another size than the first.
        """
        image = self._decode(index)
        if image.shape != (self._size, self._size, 3):
            shapes = f"{image.shape[1]} x {image.shape[0]} pixels, but the first image {self._size} x {self._size}"
            raise ValueError(
                f"image {self.names[index]} of {self._file.path} has {shapes}: "
                "all crops of a record file must be of one size"
            )
        return image

    def fingerprint(self, split: Split) -> str:
        """Return a hash of the split's identities, the positions of their images, and the template; no image is read.

        Positions depend on the compressed sizes of all images before, so equal positions in another file are
        improbable.
        """
        indices = self.indices(split)
        digest = hashlib.sha256(str((len(self._file.data), self._size, self._template.points)).encode())
        digest.update(self._index.offset[indices].tobytes())
        digest.update(self.identity[indices].tobytes())
        return digest.hexdigest()[:16]

    def _decode(self, index: int) -> NDArray[np.uint8]:
        name = f"image {self.names[index]} of {self._file.path}"
        image = read_image_bytes(self._file.image_bytes(int(self._index.offset[index])), name)
        if image.shape[0] != image.shape[1]:
            raise ValueError(
                f"{name} has {image.shape[1]} x {image.shape[0]} pixels: "
                "aligned crops are square, so choose another file"
            )
        return image

    def _set_landmarks(self) -> None:
        """Repeat one row without copying it. torch warns of the result of `broadcast_to`."""
        points = self._template.tensor(self._size).double().numpy()
        self.landmarks = as_strided(points, (len(self.names), 5, 2), (0, *points.strides))


def _split_people(people: list[int], train: float, val: float, seed: int) -> dict[int, Split]:
    """Return the split of each identity; raise an error if none is left for training or validation."""
    places = [item_seed(seed, "split", person) / 2**63 for person in people]
    splits: list[Split] = ["train" if place < train else "val" if place < train + val else "test" for place in places]
    empty = [split for split, share in (("train", train), ("val", val)) if share > 0 and split not in splits]
    if empty:
        found = (
            f"of {len(people)} people none falls into {' and '.join(empty)} (train {train:g}, val {val:g}, seed {seed})"
        )
        raise ValueError(f"{found}: raise that share, choose another seed, or set val to 0")
    return dict(zip(people, splits, strict=True))
