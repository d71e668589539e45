"""Reading one photograph, whatever its mode, or saying in one line why it cannot be read."""

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
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}")
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return np.asarray(upright.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path} as an image ({error}): replace the file or remove it") from error
