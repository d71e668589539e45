"""Reading an image of any mode, from a file, a folder or a zip, or raising an error that says why it cannot be read.

Files are not trusted. Only `FORMATS` are tried, and what a file claims is checked against the limits here before pixels
are decoded. At most about 16 bytes per pixel are held, 1.6 GB for the largest image. Of pages or animations only the
first image is decoded.
"""

import os
import warnings
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from deocc.files import is_file, is_stray, walk_files
from deocc.messages import describe_error

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

FORMATS: Final = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""Pillow's names of the formats that are read. It supports forty others, among them EPS, which starts Ghostscript."""

# Limits, our choice
MOST_PIXELS: Final = 100_000_000
"""Largest number of pixels of an image, 300 MB as RGB."""
MOST_BYTES: Final = 2**30
"""Largest size of a file; `MOST_PIXELS` of four 16-bit numbers take 800 MB."""
_MOST_SCANNED: Final = 3e10
"""Largest number of scans of a JPEG times its pixels, which takes 9 s to decode; photos have up to about ten scans, but
10 MB can contain 80,000 empty ones."""

_PROFILE_MODES: Final = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
"""Pillow's mode of the colours that a profile describes, by bytes 16 to 19 of its header (ICC.1:2010, 7.2.6)."""
_GREY: Final = ("1", "L", "LA")
_CONVERTIBLE: Final = {"RGB": (*_GREY, "P", "PA", "RGB", "RGBA", "RGBX"), "L": _GREY, "CMYK": ("CMYK",)}
"""Modes of images to which a profile of these colours applies."""

_MAX_16_BIT, _MAX_12_BIT = 65535, 4095
_COMPRESSIONS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack beyond the size that an entry claims
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


class PixelTypeError(ValueError):
    """An image holds numbers that cannot be scaled to 8 bits; the message continues the name of the image."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) in sRGB, rotated upright by its EXIF orientation; see `pixels_of`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, is truncated, exceeds the limits, or has other numbers than 8 or 16 bits.
    """
    _check_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(str(path), error.strerror or str(error)) from error
    return read_image_bytes(data, str(path))


def read_image_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode the content of an image file as `read_image` does; `name` is used in errors."""
    try:
        with open_image(data) as image:
            return pixels_of(image)[0]
    except Exception as error:  # Pillow's decoders raise almost any error for damaged files
        raise _unreadable(name, reason_of(error)) from error


def read_size(path: Path) -> tuple[int, int]:
    """Read width and height in pixels, before any EXIF rotation, from the header; errors as for `read_image`."""
    _check_file(path)
    try:
        with open_image(path) as image:
            return image.size
    except Exception as error:  # as above
        raise _unreadable(str(path), reason_of(error)) from error


def _check_file(path: Path) -> None:
    if not is_file(path):
        raise FileNotFoundError(f"no image at {path}")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise _unreadable(str(path), f"{size:,} bytes, at most {MOST_BYTES:,} are allowed")


def _unreadable(name: str, reason: str) -> ValueError:
    remedy = "make it smaller" if "pixels are allowed" in reason else "replace the file or remove it"
    return ValueError(f"cannot read {name} as an image ({reason}): {remedy}")


@contextmanager
def open_image(source: bytes | Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Open an image without decoding it; warnings about metadata are suppressed.

    Raises ValueError if it exceeds the limits, or any error of Pillow; `reason_of` describes both.
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
    """Return whether a file is an image: by the ending of its name, or by its first bytes if the ending is another."""
    if _has_suffix(path, suffixes):  # such files are not opened, since a million files take minutes
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
        raise ImageTooLargeError(
            f"it is {width} x {height} pixels, at most {MOST_PIXELS // 1_000_000} million pixels are allowed"
        )


def reason_of(error: Exception) -> str:
    """Return in one line why Pillow could not read a file."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}, or damaged"
    return describe_error(error)


def upright(image: Image.Image) -> Image.Image:
    """Rotate the image by its EXIF orientation."""
    # Pillow's `exif_transpose` also rewrites the EXIF data and fails on unusual ones
    image.load()  # rotates a TIFF already, and removes the orientation from its EXIF data
    transposition = _TRANSPOSITIONS.get(image.getexif().get(_ORIENTATION, 1))
    return image if transposition is None else image.transpose(transposition)


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image from the colour profile in its file, such as the Display P3 of phones, to RGB or RGBA in sRGB.

    An image without a profile, or with one of sRGB or one that cannot be used, is returned itself, as in browsers; so
    are 16-bit and floating-point images.
    """
    profile = image.info.get("icc_profile")
    mode = _PROFILE_MODES.get(profile[16:20]) if isinstance(profile, bytes) else None
    if mode is None or image.mode not in _CONVERTIBLE[mode]:
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


def pixels_of(image: Image.Image) -> tuple[NDArray[np.uint8], str | None]:
    """Convert a Pillow image of any mode, as a copy, to upright (H, W, 3) in sRGB.

    16 bits are scaled to 8 (without a colour profile), and transparent pixels are composed on white (our choice).

    Returns:
        The pixels, and the note of `scale_to_bytes` or None.

    Raises:
        PixelTypeError: the image holds other numbers than 8 or 16 bits.
    """
    image = to_srgb(upright(image))
    if image.mode == "F":
        raise PixelTypeError("holds floating-point numbers of unknown range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        grey, note = scale_to_bytes(np.asarray(image))
        return np.repeat(grey[..., None], 3, -1), note
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB")), None


def scale_to_bytes(pixels: NDArray[np.generic]) -> tuple[NDArray[np.uint8], str | None]:
    """Scale pixels of 16 bits (in Pillow's mode I of 32 bits) to 8, where Pillow's own conversion clips at 255.

    Numbers that are all below 4,096 but not below 256 are taken for 12 bits, which the note then says.

    Raises:
        PixelTypeError: the numbers are of another type or range.
    """
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, np.uint8), None
    if pixels.dtype not in (np.dtype(np.uint16), np.dtype(">u2"), np.dtype(np.int32)):
        raise PixelTypeError(f"holds {pixels.dtype} numbers: expected 8 or 16 bits without sign")
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > _MAX_16_BIT:
        raise PixelTypeError(f"holds numbers from {low} to {high}: expected 8 or 16 bits without sign")
    is_12_bit = 255 < high <= _MAX_12_BIT
    highest = _MAX_12_BIT if is_12_bit else _MAX_16_BIT
    numbers = pixels.astype(np.uint32)  # in place from here on: a photo of 100 million pixels takes 400 MB
    numbers *= 255
    numbers += highest // 2
    numbers //= highest
    note = f"holds numbers up to {high} in 16 bits: taken for 12 bits" if is_12_bit else None
    return numbers.astype(np.uint8), note


class ImageStore:
    """The images in a folder or a zip, by their POSIX paths relative to it, such as `person/1.png`.

    In a zip these are the images of its folder `folder_name`, also nested in one of the same name, or else all. Nothing
    is extracted. A store can be pickled and forked; each process opens the zip itself.

    Raises:
        ValueError: the zip cannot be read, for example because it is truncated.
    """

    def __init__(self, path: Path, folder_name: str = "") -> None:
        self.path, self.inside, self._packed = path, "", path.is_file()
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        if self._packed:
            entries = self._zip().namelist()
            for folder in (f"{folder_name}/", f"{folder_name}/{folder_name}/"):
                if any(entry.startswith(folder) for entry in entries):
                    self.inside = folder

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the open zip."""
        return {**self.__dict__, "_opened": None}

    def names(self) -> list[str]:
        """Return the names of all images, sorted; no image is opened, and hidden files are left out."""
        if not self._packed:
            return sorted(name for name, _ in walk_files(self.path) if _has_suffix(name))
        entries = (entry for entry in self._zip().namelist() if entry.startswith(self.inside))
        names = (entry.removeprefix(self.inside) for entry in entries)
        images = (name for name in names if _has_suffix(name) and not leads_out(name))
        return sorted(name for name in images if not any(map(is_stray, name.split("/"))))

    def read(self, name: str) -> NDArray[np.uint8]:
        """Read an image as (H, W, 3) RGB, or raise FileNotFoundError or ValueError, also for a name that leads out."""
        file = self._find(name)
        if isinstance(file, Path):
            return read_image(file)
        shown = f"{self.path}/{self.inside}{name}"
        if file.file_size > MOST_BYTES:
            raise ValueError(
                f"cannot read {shown} ({file.file_size:,} bytes, at most {MOST_BYTES:,} allowed): it is not a photo"
            )
        if file.compress_type not in _COMPRESSIONS:
            raise ValueError(
                f"cannot read {shown} (packed by method {file.compress_type}): "
                "pack the zip again, by deflate or not at all"
            )
        try:
            with self._zip().open(file) as opened:
                data = opened.read(file.file_size)  # zipfile unpacks no more than this
        except Exception as error:  # a damaged or encrypted zip makes zipfile fail in any way
            raise ValueError(f"cannot read {shown} ({describe_error(error)}): copy the zip again") from error
        return read_image_bytes(data, shown)

    def size(self, name: str) -> int:
        """Return the size of an image file in bytes, uncompressed; errors as for `read`."""
        file = self._find(name)
        if isinstance(file, Path):
            _check_file(file)
            return file.stat().st_size
        return file.file_size

    def _find(self, name: str) -> Path | zipfile.ZipInfo:
        if leads_out(name):
            raise ValueError(f"image name {name!r} leads out of {self.path}: names are paths below it")
        if not self._packed:
            return self.path / name
        try:
            return self._zip().getinfo(self.inside + name)
        except KeyError:
            raise FileNotFoundError(f"no image {self.inside}{name} in {self.path}") from None

    def _zip(self) -> zipfile.ZipFile:
        """Return the zip opened by this process: a forked process would share the file position of its parent."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.path)
            except Exception as error:  # a damaged directory makes zipfile fail in any way
                raise ValueError(
                    f"cannot read {self.path} as a zip ({describe_error(error)}): it may be half copied, copy it again"
                ) from error
        return self._opened[1]


def open_images(root: Path, folder_name: str, places: Sequence[str] = ("",)) -> ImageStore | None:
    """Open `folder_name/` or `folder_name.zip` in the first of the subfolders `places` of `root` that has one, or None.

    A nested folder of the same name (`a/a/1.jpg`, as in some copies) is used, also in a zip. Raises ValueError for a
    zip that cannot be read.
    """
    for place in places:
        folder, packed = root / place / folder_name, root / place / f"{folder_name}.zip"
        if folder.is_dir():
            return ImageStore(folder / folder_name if (folder / folder_name).is_dir() else folder)
        if packed.is_file():
            return ImageStore(packed, folder_name)
    return None


def leads_out(name: str) -> bool:
    r"""Return whether a path leads, or might lead on any system, out of the folder to which it is relative.

    >>> [leads_out(name) for name in ("a/b.png", "a/../b.png", "/b.png", "..\\b.png", "C:b.png", "a\0.png")]
    [False, True, True, True, True, True]
    """
    parts = PureWindowsPath(name)  # accepts the separators of all systems
    return bool(parts.anchor) or ".." in parts.parts or "\0" in name


def _has_suffix(name: str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> bool:
    return f".{name.rpartition('.')[2].lower()}" in suffixes  # ten times as fast as `Path.suffix`
