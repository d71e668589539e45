"""Reading one image file of any mode, or raising an error that says why it cannot be read.

Files are not trusted. Only `FORMATS` are tried, and what a file claims is checked against the limits here before pixels
are decoded. At most about 16 bytes per pixel are held, 1.6 GB for the largest image. Of pages or animations only the
first image is decoded.
"""

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from deocc.messages import describe_error

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

FORMATS: Final = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""Pillow's names of the formats that are read. It supports forty others, among them EPS, which starts Ghostscript."""

MOST_PIXELS: Final = 100_000_000
"""Largest number of pixels of an image, 300 MB as RGB. Our choice."""

MOST_BYTES: Final = 2**30
"""Largest size of a file; `MOST_PIXELS` of four 16-bit numbers take 800 MB. Our choice."""

_MOST_SCANNED: Final = 3e10
"""Largest number of scans of a JPEG times its pixels, which takes 9 s to decode. Our choice.

A file of 10 MB can contain 80,000 empty scans, each a pass over all pixels. Photos have up to about ten.
"""

_PROFILE_MODES: Final = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
"""Pillow's mode of the colours that a profile describes, by bytes 16 to 19 of its header (ICC.1:2010, 7.2.6)."""

_ORIENTATION = 0x0112  # tag number in EXIF 2.32, which lists its values from 1, upright, to 8
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageTooLargeError(ValueError):
    """An image has more than `MOST_PIXELS`."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) in sRGB, rotated upright by its EXIF orientation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, is truncated, or exceeds the limits.
    """
    _check_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(str(path), error.strerror or str(error)) from error
    return read_image_bytes(data, str(path))


def read_image_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode the content of an image file; `name` is used in errors.

    Raises:
        ValueError: the bytes are not an image, are truncated, or exceed the limits.
    """
    try:
        with open_image(data) as image:
            return np.asarray(to_srgb(upright(image)).convert("RGB"))
    except Exception as error:  # Pillow's decoders raise almost any error for damaged files
        raise _unreadable(name, reason_of(error)) from error


def read_size(path: Path) -> tuple[int, int]:
    """Read width and height in pixels, before any EXIF rotation, from the header of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not begin like an image, or exceeds the limits.
    """
    _check_file(path)
    try:
        with open_image(path) as image:
            return image.size
    except Exception as error:  # as above
        raise _unreadable(str(path), reason_of(error)) from error


@contextmanager
def open_image(source: bytes | Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Open an image within the limits without decoding it; warnings about metadata are suppressed.

    Raises:
        ValueError: it exceeds the limits.
        Exception: any error of Pillow; `reason_of` describes it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            check_size(image.size)
            scans = source.count(b"\xff\xda") if isinstance(source, bytes) and image.format in ("JPEG", "MPO") else 1
            if scans * image.width * image.height > _MOST_SCANNED:
                raise ValueError(f"{scans:,} scans of {image.width} x {image.height} pixels, which no photo has")
            yield image


def is_image(path: str, suffixes: Collection[str] = IMAGE_SUFFIXES, formats: tuple[str, ...] = FORMATS) -> bool:
    """Return whether a file is an image: by the ending of its name, or by its first bytes if the ending is another.

    A file with one of the usual endings is not opened, since a million files take minutes.
    """
    if f".{path.rpartition('.')[2].lower()}" in suffixes:  # ten times as fast as `Path.suffix`
        return True
    try:
        with Path(path).open("rb") as file:
            head = file.read(16)
    except OSError:
        return False
    Image.init()  # registers the readers of all formats
    return any(Image.OPEN[name][1](head) for name in formats if name in Image.OPEN)  # type: ignore[misc]


def check_size(size: tuple[int, int]) -> None:
    """Raise ImageTooLargeError if width and height give more than `MOST_PIXELS`."""
    width, height = size
    if width * height > MOST_PIXELS:
        most = f"at most {MOST_PIXELS // 1_000_000} million pixels are allowed"
        raise ImageTooLargeError(f"it is {width} x {height} pixels, {most}")


def reason_of(error: Exception) -> str:
    """Return in one line why Pillow could not read a file."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}, or damaged"
    return describe_error(error)


def upright(image: Image.Image) -> Image.Image:
    """Rotate the image by its EXIF orientation.

    Pillow's function also rewrites the EXIF data and fails on unusual ones.
    """
    image.load()  # rotates a TIFF already, and removes the orientation from its EXIF data
    transposition = _TRANSPOSITIONS.get(image.getexif().get(_ORIENTATION, 1))
    return image if transposition is None else image.transpose(transposition)


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image from the colour profile in its file, such as the Display P3 of phones, to sRGB.

    Returns:
        The image itself if it has no profile, one of sRGB, or one that cannot be used, which browsers ignore as well;
        else an RGB or RGBA image. 16-bit and floating-point images are not converted.
    """
    profile = image.info.get("icc_profile")
    mode = _PROFILE_MODES.get(profile[16:20]) if isinstance(profile, bytes) else None
    grey, color = image.mode in ("1", "L", "LA"), image.mode in ("P", "PA", "RGB", "RGBA", "RGBX")
    if not {"RGB": grey or color, "L": grey, "CMYK": image.mode == "CMYK", None: False}[mode]:
        return image
    transform = _transform_to_srgb(profile, mode)
    if transform is None:
        return image
    converted = ImageCms.applyTransform(image.convert(mode), transform)
    if converted is not None and image.has_transparency_data:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted or image


@lru_cache(maxsize=8)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a profile; None if the profile is damaged or changes no colour by more than rounding."""
    colors = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), -1).reshape(18, -1, 3)
    probe = Image.fromarray(colors).convert(mode)
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        converted = np.asarray(ImageCms.applyTransform(probe, transform), dtype=np.int16)
    except (ImageCms.PyCMSError, OSError):
        return None
    is_srgb = mode != "CMYK" and np.abs(converted - np.asarray(probe.convert("RGB"))).max() <= 1
    return None if is_srgb else transform


def _check_file(path: Path) -> None:
    try:
        is_file = path.is_file()
    except OSError:  # the name is too long, or the folder may not be entered
        is_file = False
    if not is_file:
        raise FileNotFoundError(f"no image at {path}")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise _unreadable(str(path), f"{size:,} bytes, at most {MOST_BYTES:,} are allowed")


def _unreadable(name: str, reason: str) -> ValueError:
    remedy = "make it smaller" if "pixels are allowed" in reason else "replace the file or remove it"
    return ValueError(f"cannot read {name} as an image ({reason}): {remedy}")
