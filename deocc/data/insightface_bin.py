"""insightface's verification files (`lfw.bin`, `cfp_fp.bin`, `agedb_30.bin`): aligned pairs of faces in one pickle, read without trust.

A pickle can name any function and have it called. What these files need is little: lists, bytes, booleans, and, by how they were written,
bytes spelt as Latin-1 text or as NumPy arrays. So none of NumPy's or anyone's functions is handed out, only stand-ins that keep the bytes;
and `deocc.data.pickle_scan` looks through the opcodes before any of them is obeyed.
"""

import mmap
import pickle  # nosec B403  # only with a find_class that hands out nothing but stand-ins
import pickletools  # nosec B403  # it names opcodes and obeys none
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
from numpy.typing import NDArray

from deocc.data.face_set import FaceSet
from deocc.data.images import read_image_bytes
from deocc.data.pairs import contiguous_folds
from deocc.evaluation.protocol import ListedPairs
from deocc.geometry import get_template

MOST_OPCODES: Final = 2**24
"""OURS: published verification files take some twenty an image where they hold arrays, else two."""

_STACK: Final = "PROTO FRAME STOP MARK EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3"
_VALUES: Final = (
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_TEXT: Final = "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8"
_MEMO: Final = "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
_CALLS: Final = "GLOBAL STACK_GLOBAL REDUCE BUILD"
_KNOWN: Final = frozenset(" ".join((_STACK, _VALUES, _TEXT, _MEMO, _CALLS)).split())
_PUTS: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


def check_opcodes(file: mmap.mmap) -> None:
    """Raise ValueError where a pickle is more than lists, tuples, bytes, numbers, and names that are called with them.

    Args:
        file: read from where it stands to the end of the pickle; mapped, since it then makes no room for more bytes than there are.
    """
    for number, (opcode, argument, _) in enumerate(pickletools.genops(cast(BinaryIO, file)), 1):
        if number > MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES:,} opcodes")
        if opcode.name not in _KNOWN:
            raise ValueError(f"opcode {opcode.name}, which no such file needs")
        if (
            opcode.name in _PUTS and not 0 <= int(argument or 0) <= number
        ):  # each place of the memo takes an opcode to fill
            raise ValueError(f"place {argument} of the memo after {number:,} opcodes")


_SIZE: Final = 112  # insightface's crops
MAX_FILE_BYTES: Final = 2**31
"""OURS: 14,000 crops, as many as any published file has, take half a gigabyte even as raw pixels."""
MAX_IMAGE_BYTES: Final = 2**20
"""OURS: raw pixels would take 37,632."""
MAX_IMAGES: Final = 2**20
"""OURS: a pickle may list the same bytes again and again at two bytes a time."""


class BinFaces(FaceSet):
    """The faces of one verification file: images 2i and 2i + 1 are pair i, in ten contiguous folds as insightface evaluates them.

    The crops are aligned to the template "arcface" already. The file tells no people: the two images of a pair labelled same share one,
    every other image is a person of its own, so that a bootstrap over people is one over the people of single pairs. Everybody is a test
    person.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no such pickle, asks for anything else to be run, is too large, or its first image is not 112 x 112.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._encoded, same = _read(self.path)
        self.names = [f"{self.path.stem}/{index:05d}" for index in range(len(self._encoded))]
        new = np.ones(len(self.names), dtype=np.int64)
        new[1::2] = ~same
        self.person = new.cumsum() - 1
        self.split_of_person = dict.fromkeys(range(int(new.sum())), "test")
        self.landmarks = np.tile(get_template("arcface").tensor(_SIZE).double().numpy(), (len(self.names), 1, 1))
        first = np.arange(0, len(self.names), 2)
        self.protocol = ListedPairs(first, first + 1, same, contiguous_folds(len(first)))
        self.image(0)

    @property
    def credit(self) -> str:
        """The file's name: the set that it was cut from is told by nothing else."""
        return f"face pairs of the insightface verification file {self.path.name}"

    def image(self, index: int) -> NDArray[np.uint8]:
        """The crop at `index`, (112, 112, 3) RGB.

        Raises:
            ValueError: the bytes are not a readable image, or one of another size; the message names the file and the image.
        """
        image = read_image_bytes(self._encoded[index], f"image {index} of {self.path}")
        if image.shape != (_SIZE, _SIZE, 3):
            found = f"{image.shape[1]} x {image.shape[0]}"
            raise ValueError(
                f"image {index} of {self.path} is {found} pixels: expected insightface's {_SIZE} x {_SIZE} crops"
            )
        return image

    def content(self, index: int) -> bytes:
        """The image as it is encoded in the file."""
        return self._encoded[index]


class _ForbiddenError(ValueError):
    """The pickle asks for something that no verification file needs."""


class _Data:
    """Stand-in of a NumPy array or scalar: its bytes, of one byte an element, and nothing more."""

    __slots__ = ("data",)

    def __init__(self, dtype: object = None, data: object = b"") -> None:
        self.data = self._checked(dtype, data)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Take the state (version, shape, type, Fortran order, bytes) that NumPy pickles."""
        self.data = self._checked(state[2], state[4])

    @staticmethod
    def _checked(dtype: object, data: object) -> bytes:
        code = dtype.code if isinstance(dtype, _Type) else "u1"
        if code not in {"u1", "b1", b"u1", b"b1"} or not isinstance(data, bytes):
            raise ValueError(f"expected arrays of uint8 or bool, got {code!r}")
        return data


class _Type:
    """Stand-in of numpy.dtype: its code; byte order and the like say nothing about single bytes."""

    __slots__ = ("code",)

    def __init__(self, code: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Take nothing over."""


class _Copies:
    """Makes bytes of what holds them in another spelling; no more in all than the file has, for a pickle may ask for the same ones again.

    Args:
        most: how many bytes.
    """

    def __init__(self, most: int) -> None:
        self._left = most

    def of(self, data: object) -> object:
        """The bytes of Latin-1 text or of a bytearray; anything else as it is."""
        if not isinstance(data, str | bytearray):
            return data
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("more bytes asked for than the file has")
        return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def _stand_in(module: str, name: str, copies: _Copies) -> Callable[..., object] | None:
    """What stands in for a function of a pickle; each is made anew, for a pickle can write attributes onto what it gets."""
    package, _, inner = module.partition(".")
    if package == "numpy" and inner in {"", "core.multiarray", "_core.multiarray", "core.numeric", "_core.numeric"}:
        stand_ins: dict[str, Callable[..., object]] = {
            "ndarray": lambda: None,
            "_reconstruct": lambda *_: _Data(),
            "_frombuffer": lambda buffer, dtype, *_: _Data(dtype, copies.of(buffer)),
            "scalar": lambda dtype, data: _Data(dtype, data),
            "dtype": lambda code, *_: _Type(code),
        }
        return stand_ins.get(name)
    if (module, name) == ("_codecs", "encode"):
        return lambda text, _encoding: copies.of(text)
    return None


class _BytesUnpickler(pickle.Unpickler):
    """Unpickles plain containers, and bytes in whatever spelling; strings of Python 2 are bytes."""

    def __init__(self, file: mmap.mmap) -> None:
        super().__init__(file, encoding="bytes")
        self._copies = _Copies(len(file))

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in, or a refusal."""
        found = _stand_in(module, name, self._copies)
        if found is None:
            raise _ForbiddenError(repr(f"{module}.{name}"[:80]))  # escaped: the file chose these words
        return found


def _read(path: Path) -> tuple[list[bytes], NDArray[np.bool_]]:
    """The encoded images, and for every two of them whether they show one person."""
    images, same = _unpickled(path)
    if not images or len(images) != 2 * len(same):
        raise ValueError(f"{path} holds {len(images)} images and {len(same)} labels: expected two images a label")
    if len(images) > MAX_IMAGES:
        raise ValueError(f"{path} lists {len(images):,} images: a verification file has at most {MAX_IMAGES:,}")
    for index, image in enumerate(images):
        if len(image) > MAX_IMAGE_BYTES:
            raise ValueError(
                f"image {index} of {path} has {len(image):,} bytes: an aligned face has at most {MAX_IMAGE_BYTES:,}"
            )
    return images, np.array(same, dtype=np.bool_)


def _unpickled(path: Path) -> tuple[list[bytes], list[bool]]:
    if not path.is_file():
        raise FileNotFoundError(f"no verification file at {path.absolute()}: give one of insightface's .bin files")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes: a verification file has at most {MAX_FILE_BYTES:,}"
        )
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
            check_opcodes(file)
            file.seek(0)
            images, same = _BytesUnpickler(file).load()
        return [_image(image) for image in images], _labels(same)
    except _ForbiddenError as error:
        refused = f"{path} asks for {error}, which no verification file needs, so it was not run"
        raise ValueError(f"{refused}: the file may be malicious, get another copy") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"cannot read {path} as an insightface verification file ({reason}): get another copy"
        ) from error


def _image(value: object) -> bytes:
    data = value.data if isinstance(value, _Data) else value
    if not isinstance(data, bytes):
        raise TypeError(f"expected encoded images, got {type(data).__name__}")
    return data


def _labels(value: _Data | Sequence[object]) -> list[bool]:
    """Labels of a list, or of an array of one byte a label."""
    labels: Sequence[object] = list(value.data) if isinstance(value, _Data) else value
    plain = [label.data[0] if isinstance(label, _Data) else label for label in labels]
    if any(label not in (0, 1) for label in plain):
        raise ValueError("labels other than true and false")
    return [bool(label) for label in plain]
