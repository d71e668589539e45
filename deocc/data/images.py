"""Reading one photograph, whatever its mode, or saying in one line why it cannot be read."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

_ORIENTATION = 0x0112  # the tag's number in EXIF 2.32, which also lists its values from 1, upright, to 8
_T = Image.Transpose
_TURNS = dict(
    enumerate((_T.FLIP_LEFT_RIGHT, _T.ROTATE_180, _T.FLIP_TOP_BOTTOM, _T.TRANSPOSE, _T.ROTATE_270, _T.TRANSVERSE, _T.ROTATE_90), start=2)
)
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) RGB, upright by its EXIF rotation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, is cut short, or is a decompression bomb.
    """
    with _opened(path) as image:
        return _as_rgb(image)


def read_image_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image file's bytes as `read_image` would; `name` is what errors call it.

    Raises:
        ValueError: the bytes are not an image, are cut short, or are a decompression bomb.
    """
    with _decoded(BytesIO(data), name) as image:
        return _as_rgb(image)


def read_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, before any EXIF rotation, from the file's header alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not begin as an image does, or is a decompression bomb.
    """
    with _opened(path) as image:
        return image.size


def upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation. Pillow's own function also writes the EXIF anew, and fails at odd ones."""
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _as_rgb(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(upright(image).convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}")
    with _decoded(path, str(path)) as image:
        yield image


@contextmanager
def _decoded(source: Path | BytesIO, name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(source) as image:
            yield image
    except (UnidentifiedImageError, OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        reason = str(error).replace(repr(source), "its bytes")
        raise ValueError(f"cannot read {name} as an image ({reason}): replace the file or remove it") from error
