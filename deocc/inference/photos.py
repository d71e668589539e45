"""One photo, whatever its format and mode, as upright RGB; or one line that says why it cannot be read."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deocc.data.images import FORMATS, MOST_BYTES, check_size, open_image, reason_of, upright

PHOTO_FORMATS: Final = (*FORMATS, "GIF", "AVIF")
"""Pillow's names; HEIF comes with the package pillow-heif."""

_SIXTEEN_BITS: Final = 65535

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
        ValueError: it is a folder or not an image, is cut short, may not be read, is beyond the limits of `deocc.data.images`, or an
            array's shape or type is another.
        ImportError: it is HEIC and pillow-heif is not installed.
    """
    name = name or (str(source) if isinstance(source, Path) else "the photo")
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if isinstance(source, Path):
        source = read_bytes(source)
    try:
        with _opened(source, name) as image:
            return _from_image(image, name)
    except ImportError:
        raise
    except _PhotoError as error:
        raise ValueError(str(error)) from None
    except UnidentifiedImageError:
        known = ", ".join((*PHOTO_FORMATS, "HEIC"))
        raise ValueError(
            f"{name} is not an image, or a damaged one ({known} are read): replace the file or remove it"
        ) from None
    except Exception as error:  # Pillow's readers of damaged files raise nearly anything
        raise ValueError(
            f"cannot read {name} as a photo ({reason_of(error)}): replace the file or remove it"
        ) from error


def read_bytes(path: Path) -> bytes:
    """The content of a photo's file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder or a device, may not be read, or has more bytes than any photo.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if path.is_dir() else "no plain file"
            raise ValueError(f"{path} is {what}, not a photo: give an image file")
        if status.st_size > MOST_BYTES:
            raise ValueError(f"{path} has {status.st_size:,} bytes, a photo at most {MOST_BYTES:,}: make it smaller")
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"no photo at {path}: check the path") from None
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error}): check its permissions") from error


class _PhotoError(ValueError):
    """A message that is complete already."""


@contextmanager
def _opened(source: bytes | Image.Image, name: str) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        check_size(source.size)
        yield source
        return
    Image.init()  # all of Pillow's readers, among which AVIF's is not in every version
    formats: tuple[str, ...] = tuple(each for each in PHOTO_FORMATS if each in Image.OPEN)
    if source[4:8] == b"ftyp" and not _is_known(
        source, formats
    ):  # the box that every ISO media file, and so every HEIC, begins with
        formats = _heif(name)
    with open_image(source, formats) as image:
        yield image


def _is_known(data: bytes, formats: tuple[str, ...]) -> bool:
    try:
        with open_image(data, formats):
            return True
    except UnidentifiedImageError:
        return False


def _heif(name: str) -> tuple[str, ...]:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ImportError(f'{name} is HEIC, which needs the package pillow-heif: pip install "deocc[photos]"') from None
    register_heif_opener()
    return ("HEIF",)


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
    try:
        check_size((shaped.shape[1], shaped.shape[0]))
    except ValueError as error:
        raise _PhotoError(f"{name}: {error}, make it smaller") from None
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
    if array.min() < 0 or array.max() > _SIXTEEN_BITS:
        raise _PhotoError(
            f"{name} holds numbers from {array.min()} to {array.max()}: expected 8 or 16 bits without sign"
        )
    numbers = array.astype(np.uint32)  # and in place: a photo of 100 million pixels takes 400 MB
    numbers *= 255
    numbers += _SIXTEEN_BITS // 2
    numbers //= _SIXTEEN_BITS
    return numbers.astype(np.uint8)
