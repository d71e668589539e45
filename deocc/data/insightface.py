"""insightface's files: training sets as records (`train.rec`, `train.idx`), verification pairs as pickles (`lfw.bin`).

Pickles are not trusted, since they can call any function. Verification files need lists, bytes, booleans and, depending
on how they were written, bytes as Latin-1 text or NumPy arrays. The unpickler therefore provides stand-ins that keep
bytes and nothing else, and `_check_opcodes` examines all opcodes before any is executed.
"""

import mmap
import pickle  # nosec B403  # only with a find_class that returns stand-ins
import pickletools  # nosec B403  # lists opcodes without executing them
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from deocc.data.face_set import FaceSet, Split, cached_array, missing_set, split_people
from deocc.data.images import read_image_bytes
from deocc.data.pairs import contiguous_folds
from deocc.evaluation.protocol import ListedPairs
from deocc.files import checksum, expand_user
from deocc.geometry import get_template
from deocc.messages import describe_error, show_progress

_MAGIC: Final = 0xCED7230A
_WHOLE, _FIRST, _LAST = 0, 1, 3
"""Flags of a complete record, and of the first and last part of a record; 2 is a part between."""

_LENGTH_BITS: Final = 29
_LENGTH: Final = (1 << _LENGTH_BITS) - 1
_HEAD = np.dtype([("magic", "<u4"), ("word", "<u4")])
_LABELS = np.dtype([("count", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8")])
_START = np.dtype([*_HEAD.descr, *_LABELS.descr, ("first", "<f4")])
_CHUNK: Final = 1 << 16  # records whose labels are read at a time
_EXACT: Final = 1 << 24  # float32 holds every integer up to here
_ADVICE: Final = "get both files again from the dataset zoo of insightface and keep them side by side"


class _Names(Sequence[str]):
    """Names `PERSON/KEY`, created on access; millions of strings would take as much memory as their images."""

    def __init__(self, identity: NDArray[np.int64], key: NDArray[np.int64]) -> None:
        self._identity, self._key = identity, key

    def __len__(self) -> int:
        return len(self._key)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        return f"{self._identity[place]}/{self._key[place]}"


class RecordFaces(FaceSet):
    """Square aligned crops in a record file; the identity is the label of a record.

    Collecting the labels is a pass over the whole file, so they are cached by name, size and time of the record file
    and the hash of the index file. The split of an identity follows from a hash of its number, as in `FolderFaces`;
    identities in neither share are tested. The shares (our choice) are met on average.

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
                f"train={train} and val={val}: "
                "choose train above 0, val from 0, and a sum of 1 at most; the rest is for tests"
            )
        self._path = path = expand_user(rec)
        self.credit = f"face crops of the record file {path.parent.resolve().name}/{path.name}"  # owner not known
        index_path = path.with_suffix(".idx") if idx is None else expand_user(idx)
        missing = [file.name for file in (path, index_path) if not file.is_file()]
        if missing:
            raise missing_set("record files", path.parent, missing, 2, _ADVICE)
        status = path.stat()
        key = checksum(f"{path.name} {status.st_size} {status.st_mtime_ns}\n", index_path)[:32]
        keys, self._offset, self.identity = cached_array("records", key, lambda: _scan(path, index_path))
        self.names = _Names(self.identity, keys)
        people = np.unique(self.identity).tolist()
        needed: list[Split] = ["train", "val"] if val > 0 else ["train"]
        self.split_of_identity = dict(zip(people, split_people(people, train, val, seed, needed), strict=True))
        self._size = 0  # that of the first image
        self._size = len(self.image(0))

    @cached_property
    def landmarks(self) -> NDArray[np.float64]:  # type: ignore[override]
        """(N, 5, 2), one row repeated without copying it. torch warns of the result of `broadcast_to`."""
        points = self._template.tensor(self._size).double().numpy()
        return as_strided(points, (len(self.names), 5, 2), (0, *points.strides))

    @cached_property
    def _data(self) -> NDArray[np.uint8]:
        return np.memmap(self._path, np.uint8, "r")

    def __getstate__(self) -> dict[str, object]:
        """Return the state without what pickling would copy for each image: the file, and the repeated landmarks."""
        return {name: value for name, value in self.__dict__.items() if name not in ("landmarks", "_data")}

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read the crop at `index`, (H, H, 3) RGB; see `FaceSet.image`."""
        name = f"image {self.names[index]} of {self._path}"
        image = read_image_bytes(_read_record(self._data, int(self._offset[index]), self._path), name)
        height, width, _ = image.shape
        side = self._size or width
        if (height, width) != (side, side):
            raise ValueError(
                f"{name} has {width} x {height} pixels: "
                f"expected {side} x {side}, since all crops of a record file are square and of one size"
            )
        return image

    def fingerprint(self, split: Split) -> str:
        """Return a hash of the split's identities, the positions of their images and the template; see `FaceSet`."""
        # Positions depend on the compressed sizes of all images before: equal ones in another file are improbable
        indices = self.indices(split)
        described = str((len(self._data), self._size, self._template.points))
        return checksum(described, self._offset[indices].tobytes(), self.identity[indices].tobytes())[:16]


def _read_record(data: NDArray[np.uint8], offset: int, path: Path) -> bytes:
    """Return the encoded image in the record at `offset` of a file, with its parts joined."""
    parts: list[bytes] = []
    flag = _FIRST
    while flag not in (_WHOLE, _LAST):
        head = data[offset : offset + _HEAD.itemsize].tobytes()
        word = int.from_bytes(head[4:], "little")
        flag, length = word >> _LENGTH_BITS, word & _LENGTH
        begins = flag in (_WHOLE, _FIRST)
        if int.from_bytes(head[:4], "little") != _MAGIC or flag > _LAST or begins != (not parts):
            raise _no_record(path, offset)
        start = offset + _HEAD.itemsize
        parts.append(data[start : start + length].tobytes())
        if len(parts[-1]) < length:
            raise _cut_short(path, len(data), start + length)
        offset = start + -(-length // 4) * 4
    joined = _MAGIC.to_bytes(4, "little").join(parts)
    return joined[_LABELS.itemsize + 4 * int.from_bytes(joined[:4], "little") :]


def _scan(path: Path, idx: Path) -> NDArray[np.int64]:
    """Return (3, N) keys, offsets and labels of the records with images, in the order of the index."""
    key, offset = _read_idx(idx, path)
    data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    labels, images = np.empty(len(key), np.float32), np.empty(len(key), np.bool_)
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(key), _CHUNK)]
    for chunk in show_progress(chunks, f"labels of {path.name}", hidden=len(chunks) < 8):
        places = np.minimum(offset[chunk, None] + np.arange(_START.itemsize), len(data) - 1)
        start: NDArray[Any] = np.asarray(data[places]).view(_START)[:, 0]
        flag, length = start["word"] >> _LENGTH_BITS, (start["word"] & _LENGTH).astype(np.int64)
        wrong = (start["magic"] != _MAGIC) | (flag > _FIRST)
        if wrong.any():
            raise _no_record(path, int(offset[chunk][wrong][0]))
        if (end := int((offset[chunk] + _HEAD.itemsize + length).max())) > len(data):
            raise _cut_short(path, len(data), end)
        count = start["count"].astype(np.int64)
        labels[chunk] = np.where(count > 0, start["first"], start["label"])
        images[chunk] = (length > _LABELS.itemsize + 4 * count) | (flag == _FIRST)
    announced = labels[(key == 0) & ~images] - 1
    if len(announced) and announced[0] < _EXACT:
        absent = np.setdiff1d(np.arange(1, announced[0] + 1), key[images])
        if len(absent):
            names = [f"record {number:.0f}" for number in absent]
            raise missing_set(f"images of {idx.name}", idx.parent, names, int(announced[0]), _ADVICE)
    labels = labels[images]
    if len(labels) == 0 or not ((labels >= 0) & (labels < _EXACT) & (labels == np.floor(labels))).all():
        raise ValueError(
            f"{path} holds no images with people's numbers as labels: choose a record file made for face recognition"
        )
    return np.stack([key[images], offset[images], labels.astype(np.int64)])


def _read_idx(idx: Path, rec: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read keys and offsets, and check that the offsets are inside the record file."""
    try:
        rows = np.loadtxt(idx, np.int64, comments=None, ndmin=2) if idx.stat().st_size else np.zeros((0, 2), np.int64)
        if rows.size == 0 or rows.shape[1] != 2:
            raise ValueError(f"it has {rows.shape} numbers")
    except ValueError as error:
        raise ValueError(
            f"{idx} is no index of a record file ({error}): each line must be KEY tab OFFSET; {_ADVICE}"
        ) from error
    size = rec.stat().st_size
    outside = (rows[:, 1] < 0) | (rows[:, 1] > size - _HEAD.itemsize)
    if outside.any():
        key, offset = rows[outside][0].tolist()
        raise ValueError(
            f"{outside.sum():,} of {len(rows):,} records of {idx} lie outside {rec} of {size:,} bytes "
            f"(first: {key} at byte {offset:,}): the file is cut short or the index is another's; {_ADVICE}"
        )
    return rows[:, 0], rows[:, 1]


def _no_record(path: Path, offset: int) -> ValueError:
    return ValueError(
        f"no record begins at byte {offset:,} of {path}: the file is damaged or the index belongs to another; {_ADVICE}"
    )


def _cut_short(path: Path, size: int, end: int) -> ValueError:
    return ValueError(
        f"{path} has {size:,} bytes, but a record reaches to byte {end:,}: the file is cut short; {_ADVICE}"
    )


_SIZE: Final = 112  # side of the crops in a verification file
MOST_OPCODES: Final = 2**21
"""Our choice; published files have up to 14,000 images with about twenty opcodes as arrays, otherwise two."""

_NUMPY: Final = frozenset(
    {"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric"}
)
_PUTS: Final = ("PUT", "BINPUT", "LONG_BINPUT")
_OPCODES: Final = (
    "PROTO FRAME STOP MARK EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
)
_KNOWN: Final = frozenset(_OPCODES.split())


class BinFaces(FaceSet):
    """The faces of one verification file: images 2i and 2i + 1 are pair i, in ten contiguous folds as in insightface.

    Crops are aligned to the template "arcface". The file contains no identities: the images of a pair labelled same
    share one, every other image has its own, so that a bootstrap over identities is one over single pairs. All are test
    identities.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a pickle, asks for anything else to be run, or begins with an image that is not
            112 x 112.
    """

    def __init__(self, path: str) -> None:
        self.path = expand_user(path)
        self.credit = f"face pairs of the insightface verification file {self.path.name}"  # their owner is not known
        self._encoded, same = _read_bin(self.path)
        self.names = [f"{self.path.stem}/{index:05d}" for index in range(len(self._encoded))]
        new = np.ones(len(self.names), dtype=np.int64)
        new[1::2] = ~same
        self.identity = new.cumsum() - 1
        self.split_of_identity = dict.fromkeys(range(int(new.sum())), "test")
        self.landmarks = np.tile(get_template("arcface").tensor(_SIZE).double().numpy(), (len(self.names), 1, 1))
        first = np.arange(0, len(self.names), 2)
        self.protocol = ListedPairs(first, first + 1, same, contiguous_folds(len(first)))
        self.image(0)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read the crop at `index`, (112, 112, 3) RGB; see `FaceSet.image`."""
        name = f"image {index} of {self.path}"
        image = read_image_bytes(self._encoded[index], name)
        height, width, _ = image.shape
        if (height, width) != (_SIZE, _SIZE):
            raise ValueError(f"{name} is {width} x {height} pixels: expected insightface's {_SIZE} x {_SIZE} crops")
        return image

    def content(self, index: int) -> bytes:
        """Return the encoded image; see `FaceSet.content`."""
        return self._encoded[index]


def _read_bin(path: Path) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Read the encoded images, and (pairs,) bool, whether a pair shows one person."""
    if not path.is_file():
        raise FileNotFoundError(f"no verification file at {path.absolute()}: give one of insightface's .bin files")
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
            _check_opcodes(file)
            file.seek(0)
            images, labels = _BytesUnpickler(file).load()
        images = [_plain(image) for image in images]
        labels = [label[0] if isinstance(label, bytes) else label for label in map(_plain, _plain(labels))]
        if not all(isinstance(image, bytes) for image in images):
            raise ValueError("expected encoded images as bytes")
        if any(label not in (0, 1) for label in labels):
            raise ValueError("labels other than true and false")
    except _ForbiddenError as error:
        raise ValueError(
            f"{path} asks for {error}, which no verification file needs, so it was not run: "
            "the file may be malicious, get another copy"
        ) from error
    except Exception as error:  # a damaged pickle raises almost any error
        raise ValueError(
            f"cannot read {path} as an insightface verification file ({describe_error(error)}): get another copy"
        ) from error
    if not images or len(images) != 2 * len(labels):
        raise ValueError(f"{path} holds {len(images)} images and {len(labels)} labels: expected two images a label")
    return images, np.array(labels, dtype=np.bool_)


def _check_opcodes(file: mmap.mmap) -> None:
    """Raise ValueError for opcodes that no verification file needs; in a mapped file a wrong length takes no memory."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(cast(BinaryIO, file)), 1):
        if number > MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES:,} opcodes")
        if opcode.name not in _KNOWN:
            raise ValueError(f"opcode {opcode.name}, which no such file needs")
        # Each place of the memo takes an opcode to fill
        if opcode.name in _PUTS and not 0 <= int(argument or 0) <= number:
            raise ValueError(f"place {argument} of the memo after {number:,} opcodes")


class _ForbiddenError(ValueError):
    """The pickle asks for something that verification files do not need."""


class _Type:
    """Stand-in for numpy.dtype: its code. The byte order, which its state contains, does not matter for bytes."""

    __slots__ = ("code",)

    def __init__(self, code: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


class _Data:
    """Stand-in for a NumPy array or scalar with elements of one byte: its bytes."""

    __slots__ = ("data",)

    def __init__(self, dtype: object = None, data: object = b"") -> None:
        code = dtype.code if isinstance(dtype, _Type) else "u1"
        if code not in {"u1", "b1", b"u1", b"b1"} or not isinstance(data, bytes):
            raise ValueError(f"expected arrays of uint8 or bool, got {code!r}")
        self.data = data

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.__init__(state[2], state[4])  # type: ignore[misc]  # version, shape, type, Fortran order, bytes


def _plain(value: Any) -> Any:
    """Return the bytes of a stand-in; of NumPy's booleans they are one byte."""
    return value.data if isinstance(value, _Data) else value


class _BytesUnpickler(pickle.Unpickler):
    """Unpickles plain containers, and bytes in any representation; strings of Python 2 are bytes."""

    def __init__(self, file: mmap.mmap) -> None:
        super().__init__(file, encoding="bytes")
        self._left = len(file)

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in, a new one each time, since a pickle can set attributes of it, or raise an error."""
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _encoding: self._bytes(text)
        stand_ins: dict[str, Callable[..., object]] = {
            "ndarray": lambda: None,
            "_reconstruct": lambda *_: _Data(),
            "_frombuffer": lambda buffer, dtype, *_: _Data(dtype, self._bytes(buffer)),
            "scalar": lambda dtype, data: _Data(dtype, data),
            "dtype": lambda code, *_: _Type(code),
        }
        if module not in _NUMPY or name not in stand_ins:
            raise _ForbiddenError(repr(f"{module}.{name}"[:80]))  # escaped, since the file chose these words
        return stand_ins[name]

    def _bytes(self, data: object) -> object:
        """Return the bytes of Latin-1 text or of a bytearray, in all at most as many as the file has."""
        if not isinstance(data, str | bytearray):
            return data
        self._left -= len(data)  # a pickle may repeat the same ones
        if self._left < 0:
            raise ValueError("more bytes asked for than the file has")
        return data.encode("latin-1") if isinstance(data, str) else bytes(data)
