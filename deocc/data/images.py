"""Reading one photograph, whatever its mode, or saying in one line why it cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) RGB, upright by its EXIF rotation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, is cut short, or is a decompression bomb.
    """
    with _opened(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def read_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, before any EXIF rotation, from the file's header alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not begin as an image does, or is a decompression bomb.
    """
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}")
    try:
        with Image.open(path) as image:
            yield image
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path} as an image ({error}): replace the file or remove it") from error
