"""One photo, whatever its format and mode, as upright RGB; or one line that says why it cannot be read."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deocc.data.images import upright

MOST_PIXELS: Final = 100_000_000
"""A photo of more pixels is refused before it is decoded: 300 MB as RGB. OURS."""

_SIXTEEN_BITS: Final = 65535
_BOMB: Final = Image.DecompressionBombError
_READERS: Final = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, TypeError, KeyError, struct.error, _BOMB)  # of damaged files

Source = Path | bytes | Image.Image | NDArray[np.generic]


def read_photo(source: Source, name: str | None = None) -> NDArray[np.uint8]:
    """Any photo as (H, W, 3) RGB, 0 to 255.

    The EXIF rotation is applied. 16 bits are scaled to 8, not cut. What is transparent is laid on white (OURS). Of an animation the first
    frame counts. HEIC needs the package pillow-heif. Colour profiles are not applied.

    Args:
        source: a file's path, its bytes, a Pillow image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or uint16.
        name: what errors call it; default the path, or "the photo".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder or not an image, is cut short, may not be read, has more than `MOST_PIXELS` pixels or an array's shape or
            type is another.
        ImportError: it is HEIC and pillow-heif is not installed.
    """
    name = name or (str(source) if isinstance(source, Path) else "the photo")
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if isinstance(source, Path):
        source = read_bytes(source)
    try:
        with _opened(source, name) as image:
            _check_size(image.size, name)
            return _from_image(image, name)
    except _READERS as error:
        if isinstance(error, _PhotoError):
            raise ValueError(str(error)) from None
        raise ValueError(f"cannot read {name} as a photo ({_reason(error)}): replace the file or remove it") from error


def read_bytes(path: Path) -> bytes:
    """The content of a photo's file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder or may not be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"no photo at {path}: check the path") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder, not a photo") from None
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error}): check its permissions") from error


class _PhotoError(ValueError):
    """A message that is complete already."""


@contextmanager
def _opened(source: bytes | Image.Image, name: str) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        yield source
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata, and of Pillow's limit, where there is one of our own
        with _decoder(source, name) as image:
            yield image


def _decoder(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(BytesIO(data))
    except UnidentifiedImageError:
        if data[4:8] != b"ftyp":  # the box that every ISO media file, and so every HEIC, begins with
            raise _PhotoError(f"{name} is not an image that Pillow knows: replace the file or remove it") from None
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        remedy = 'pip install "deocc[photos]"'
        raise ImportError(f"{name} is HEIC, which needs the package pillow-heif: {remedy}") from None
    register_heif_opener()
    return Image.open(BytesIO(data))


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        most = f"{MOST_PIXELS // 1_000_000} million pixels are allowed"
        raise _PhotoError(f"{name} is {width} x {height} pixels, at most {most}: make it smaller")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


def _from_image(image: Image.Image, name: str) -> NDArray[np.uint8]:
    turned = upright(image)
    if turned.mode == "F":
        raise _PhotoError(f"{name} holds floating-point numbers of unknown range: save it with 8 or 16 bits")
    if turned.mode.startswith("I"):
        return _from_array(np.asarray(turned), name)
    if turned.has_transparency_data:
        turned = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned)
    return np.array(turned.convert("RGB"))


def _from_array(array: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    shaped = array[..., None] if array.ndim == 2 else array
    if shaped.ndim != 3 or shaped.shape[2] not in (1, 3, 4) or 0 in shaped.shape:
        raise _PhotoError(f"{name} has shape {array.shape}: expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    _check_size((shaped.shape[1], shaped.shape[0]), name)
    shaped = _eight_bits(shaped, name)
    if shaped.shape[2] == 4:
        opaque = shaped[..., 3:].astype(np.float32) / 255
        shaped = (shaped[..., :3] * opaque + 255 * (1 - opaque)).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shaped, (*shaped.shape[:2], 3)))


def _eight_bits(array: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    """8 bits by scaling. Pillow's own conversion cuts all above 255; its mode I holds 16-bit PGM and PNG in 32 bits."""
    if array.dtype == np.uint8:
        return np.asarray(array, dtype=np.uint8)
    if array.dtype not in (np.dtype(np.uint16), np.dtype(">u2"), np.dtype(np.int32)):
        raise _PhotoError(f"{name} holds {array.dtype} numbers: expected 8 or 16 bits without sign")
    numbers = np.asarray(array, dtype=np.int64)
    if numbers.min() < 0 or numbers.max() > _SIXTEEN_BITS:
        raise _PhotoError(f"{name} holds numbers from {numbers.min()} to {numbers.max()}: expected 8 or 16 bits without sign")
    return ((numbers * 255 + _SIXTEEN_BITS // 2) // _SIXTEEN_BITS).astype(np.uint8)
