"""Reading one photograph, whatever its mode, or saying in one line why it cannot be read.

A file is not trusted. Only the formats of `FORMATS` are tried, and what a file claims is held against the limits here before any pixel is
decoded. At most some 16 bytes a pixel are held at once, 1.6 GB for the largest image; of a file of pages or of an animation the first alone
is decoded.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

_ORIENTATION = 0x0112  # the tag's number in EXIF 2.32, which also lists its values from 1, upright, to 8
_T = Image.Transpose
_TURNS = dict(
    enumerate(
        (
            _T.FLIP_LEFT_RIGHT,
            _T.ROTATE_180,
            _T.FLIP_TOP_BOTTOM,
            _T.TRANSPOSE,
            _T.ROTATE_270,
            _T.TRANSVERSE,
            _T.ROTATE_90,
        ),
        start=2,
    )
)
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS: Final = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""Pillow's names of what those endings stand for. It would open forty others, among them EPS, for which it starts Ghostscript."""

MOST_PIXELS: Final = 100_000_000
"""An image of more pixels is refused before it is decoded: 300 MB as RGB. OURS."""
MOST_BYTES: Final = 2**30
"""A larger file is refused unread: `MOST_PIXELS` of four 16-bit numbers take 800 MB. OURS."""

_MOST_SCANNED: Final = 3e10
"""Scans of a JPEG times its pixels. A file of 10 MB has room for 80,000 empty scans, each a pass of 25 ms over 81 million pixels; this many
take 9 s. Photos have up to some ten scans, and bytes that look like more in a film that a telephone appended. OURS."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) RGB, upright by its EXIF rotation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, is cut short, or is beyond the limits.
    """
    _check_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(str(path), error.strerror or str(error)) from error
    return read_image_bytes(data, str(path))


def read_image_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image file's bytes as `read_image` would; `name` is what errors call it.

    Raises:
        ValueError: the bytes are not an image, are cut short, or are beyond the limits.
    """
    try:
        with open_image(data) as image:
            return np.asarray(upright(image).convert("RGB"))
    except Exception as error:  # Pillow's readers of damaged files raise nearly anything
        raise _unreadable(name, reason_of(error)) from error


def read_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, before any EXIF rotation, from the file's header alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not begin as an image does, or is beyond the limits.
    """
    _check_file(path)
    try:
        with open_image(path) as image:
            return image.size
    except Exception as error:  # as above
        raise _unreadable(str(path), reason_of(error)) from error


@contextmanager
def open_image(source: bytes | Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Pillow's image, not decoded yet and within the limits; of damaged metadata, which is not used, no warning is given.

    Raises:
        ValueError: it is beyond the limits.
        Exception: whatever Pillow raises; `reason_of` puts it into words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            check_size(image.size)
            scans = source.count(b"\xff\xda") if isinstance(source, bytes) and image.format in ("JPEG", "MPO") else 1
            if scans * image.width * image.height > _MOST_SCANNED:
                raise ValueError(f"{scans:,} scans of {image.width} x {image.height} pixels, which no photo has")
            yield image


def check_size(size: tuple[int, int]) -> None:
    """Raise ValueError for a width and height of more than `MOST_PIXELS` together."""
    width, height = size
    if width * height > MOST_PIXELS:
        most = f"at most {MOST_PIXELS // 1_000_000} million pixels are allowed"
        raise ValueError(f"it is {width} x {height} pixels, {most}")


def reason_of(error: Exception) -> str:
    """One line on why Pillow could not read a file."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}, or damaged"
    return " ".join(str(error).split())[:120] or type(error).__name__


def upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation. Pillow's own function also writes the EXIF anew, and fails at odd ones."""
    image.load()  # which turns a TIFF already, and takes the orientation out of its EXIF
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _check_file(path: Path) -> None:
    """Raise an error for what is not there, is no plain file, or is too large."""
    if not _is_file(path):
        raise FileNotFoundError(f"no image at {path}")
    if path.stat().st_size > MOST_BYTES:
        raise _unreadable(str(path), f"{path.stat().st_size:,} bytes, at most {MOST_BYTES:,} are allowed")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, or a folder that may not be entered
        return False


def _unreadable(name: str, reason: str) -> ValueError:
    return ValueError(f"cannot read {name} as an image ({reason}): replace the file or remove it")
