"""insightface's verification files (`lfw.bin`, `cfp_fp.bin`, `agedb_30.bin`): aligned pairs of faces in one pickle.

Pickles are not trusted, since they can call any function. These files need lists, bytes, booleans and, depending on how
they were written, bytes as Latin-1 text or NumPy arrays. The unpickler therefore provides stand-ins that keep bytes and
nothing else, and `check_opcodes` examines all opcodes before any is executed.
"""

import mmap
import pickle  # nosec B403  # only with a find_class that returns stand-ins
import pickletools  # nosec B403  # lists opcodes without executing them
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
from numpy.typing import NDArray

from deocc.data.face_set import FaceSet
from deocc.data.images import read_image_bytes
from deocc.data.pairs import contiguous_folds
from deocc.evaluation.protocol import ListedPairs
from deocc.files import expand_user
from deocc.geometry import get_template
from deocc.messages import describe_error

MOST_OPCODES: Final = 2**24
"""Our choice; published files have about twenty opcodes per image with arrays, otherwise two."""

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
    """Raise ValueError if a pickle has other opcodes than those of lists, tuples, bytes, numbers and calls with them.

    Args:
        file: read from its position; memory-mapped, so that a wrong length allocates no memory.
    """
    for number, (opcode, argument, _) in enumerate(pickletools.genops(cast(BinaryIO, file)), 1):
        if number > MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES:,} opcodes")
        if opcode.name not in _KNOWN:
            raise ValueError(f"opcode {opcode.name}, which no such file needs")
        # Each place of the memo takes an opcode to fill
        if opcode.name in _PUTS and not 0 <= int(argument or 0) <= number:
            raise ValueError(f"place {argument} of the memo after {number:,} opcodes")


_SIZE: Final = 112  # side of insightface's crops
MAX_FILE_BYTES: Final = 2**31
"""Our choice; 14,000 crops, as many as any published file has, take half a gigabyte as raw pixels."""
MAX_IMAGE_BYTES: Final = 2**20
"""Our choice; raw pixels take 37,632."""
MAX_IMAGES: Final = 2**20
"""Our choice; a pickle can list the same bytes repeatedly, two bytes at a time."""


class BinFaces(FaceSet):
    """The faces of one verification file: images 2i and 2i + 1 are pair i, in ten contiguous folds as in insightface.

    Crops are aligned to the template "arcface". The file contains no identities: the images of a pair labelled same
    share one, every other image has its own, so that a bootstrap over identities is one over single pairs. All are test
    identities.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a pickle, asks for anything else to be run, is too large, or its first image is
            not 112 x 112.
    """

    def __init__(self, path: str) -> None:
        self.path = expand_user(path)
        self._encoded, same = _read(self.path)
        self.names = [f"{self.path.stem}/{index:05d}" for index in range(len(self._encoded))]
        new = np.ones(len(self.names), dtype=np.int64)
        new[1::2] = ~same
        self.identity = new.cumsum() - 1
        self.split_of_identity = dict.fromkeys(range(int(new.sum())), "test")
        self.landmarks = np.tile(get_template("arcface").tensor(_SIZE).double().numpy(), (len(self.names), 1, 1))
        first = np.arange(0, len(self.names), 2)
        self.protocol = ListedPairs(first, first + 1, same, contiguous_folds(len(first)))
        self.image(0)

    @property
    def credit(self) -> str:
        """The name of the file, which is all that identifies the set."""
        return f"face pairs of the insightface verification file {self.path.name}"

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read the crop at `index`, (112, 112, 3) RGB.

        Raises:
            ValueError: the bytes are not a readable image, or one of another size.
        """
        image = read_image_bytes(self._encoded[index], f"image {index} of {self.path}")
        if image.shape != (_SIZE, _SIZE, 3):
            found = f"{image.shape[1]} x {image.shape[0]}"
            raise ValueError(
                f"image {index} of {self.path} is {found} pixels: expected insightface's {_SIZE} x {_SIZE} crops"
            )
        return image

    def content(self, index: int) -> bytes:
        """Return the encoded image."""
        return self._encoded[index]


class _ForbiddenError(ValueError):
    """The pickle asks for something that verification files do not need."""


class _Data:
    """Stand-in for a NumPy array or scalar with elements of one byte: its bytes."""

    __slots__ = ("data",)

    def __init__(self, dtype: object = None, data: object = b"") -> None:
        self.data = self._checked(dtype, data)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Set the state (version, shape, type, Fortran order, bytes) that NumPy pickles."""
        self.data = self._checked(state[2], state[4])

    @staticmethod
    def _checked(dtype: object, data: object) -> bytes:
        code = dtype.code if isinstance(dtype, _Type) else "u1"
        if code not in {"u1", "b1", b"u1", b"b1"} or not isinstance(data, bytes):
            raise ValueError(f"expected arrays of uint8 or bool, got {code!r}")
        return data


class _Type:
    """Stand-in for numpy.dtype: its code. Byte order does not matter for single bytes."""

    __slots__ = ("code",)

    def __init__(self, code: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


class _Copies:
    """Converts other representations to bytes, at most `most` bytes, since a pickle may repeat the same ones.

    Args:
        most: number of bytes.
    """

    def __init__(self, most: int) -> None:
        self._left = most

    def of(self, data: object) -> object:
        """Return the bytes of Latin-1 text or of a bytearray; anything else unchanged."""
        if not isinstance(data, str | bytearray):
            return data
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("more bytes asked for than the file has")
        return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def _stand_in(module: str, name: str, copies: _Copies) -> Callable[..., object] | None:
    """Return a stand-in for a function; a new one each time, since a pickle can set attributes of it."""
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
    """Unpickles plain containers, and bytes in any representation; strings of Python 2 are bytes."""

    def __init__(self, file: mmap.mmap) -> None:
        super().__init__(file, encoding="bytes")
        self._copies = _Copies(len(file))

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in, or raise an error."""
        found = _stand_in(module, name, self._copies)
        if found is None:
            raise _ForbiddenError(repr(f"{module}.{name}"[:80]))  # escaped, since the file chose these words
        return found


def _read(path: Path) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Read the encoded images, and the label of each pair."""
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
    except Exception as error:  # a damaged pickle raises almost any error
        reason = describe_error(error)
        raise ValueError(
            f"cannot read {path} as an insightface verification file ({reason}): get another copy"
        ) from error


def _image(value: object) -> bytes:
    data = value.data if isinstance(value, _Data) else value
    if not isinstance(data, bytes):
        raise TypeError(f"expected encoded images, got {type(data).__name__}")
    return data


def _labels(value: _Data | Sequence[object]) -> list[bool]:
    """Return the labels of a list, or of an array with one byte per label."""
    labels: Sequence[object] = list(value.data) if isinstance(value, _Data) else value
    plain = [label.data[0] if isinstance(label, _Data) else label for label in labels]
    if any(label not in (0, 1) for label in plain):
        raise ValueError("labels other than true and false")
    return [bool(label) for label in plain]
