"""Read a photo of any format and pixel type as upright RGB, or explain in one line why it cannot be read."""

import stat
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deocc.data import images

PHOTO_FORMATS: Final = (*images.FORMATS, "GIF", "AVIF")  # Pillow's names
KNOWN_FORMATS: Final = ", ".join((*PHOTO_FORMATS, "HEIC"))  # for messages; HEIC needs the package pillow-heif
_SUFFIXES: Final = images.IMAGE_SUFFIXES | {".avif", ".gif", ".heic", ".heif"}
_BRANDS: Final = frozenset(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1 avif avis".split())
"""Brands of HEIC and AVIF photos, in the first box of the file; videos such as MP4 begin alike with other brands."""

_MOST_FRAMES: Final = 10  # frames of an animation that are looked at

Source = Path | bytes | Image.Image | NDArray[np.generic]


def read_photo(source: Source, name: str | None = None) -> NDArray[np.uint8]:
    """Read a photo as (H, W, 3) in sRGB, 0 to 255.

    The EXIF rotation and the colour profile are applied, 16 bits are scaled to 8 (without the profile), and transparent
    pixels are composed on white (our choice). 16-bit images whose numbers are all below 4,096 are taken for 12 bits. Of
    several frames or pages the first one that is not of one colour is used. Warnings report both.

    Args:
        source: path of a file, its bytes, a Pillow image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of type
            uint8 or uint16.
        name: name of the photo in error messages; default: the path, or "the photo".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the source is a folder, not an image, truncated, not readable, larger than the limits of
            `deocc.data.images`, or an array of another shape or type.
        ImportError: the file is HEIC and pillow-heif is not installed.
    """
    name = name or (str(source) if isinstance(source, Path) else "the photo")
    notes: list[str] = []  # warnings are suppressed while Pillow reads
    remedy = "replace the file or remove it"
    if isinstance(source, Path):
        source = read_bytes(source)
    try:
        if isinstance(source, np.ndarray):
            photo = _convert_array(source, notes)
        elif isinstance(source, Image.Image):
            images.check_size(source.size)
            photo = _convert_image(source, notes)
        else:
            with images.open_image(source, _formats_of(source)) as image:
                photo = _convert_image(image, notes)
    except images.PixelTypeError as error:
        raise ValueError(f"{name} {error}") from None
    except UnidentifiedImageError:
        if isinstance(source, bytes) and _is_iso_photo(source) and "HEIF" not in Image.OPEN:
            raise ImportError(
                f'{name} is HEIC, which needs the package pillow-heif: pip install "deocc[photos]"'
            ) from None
        raise ValueError(f"{name} is not an image, or a damaged one ({KNOWN_FORMATS} are read): {remedy}") from None
    except images.ImageTooLargeError as error:
        raise ValueError(f"{name}: {error}, make it smaller") from None
    except Exception as error:  # Pillow raises almost anything for a damaged file
        raise ValueError(f"cannot read {name} as a photo ({images.reason_of(error)}): {remedy}") from error
    for note in notes:
        warnings.warn(f"{name} {note}", stacklevel=2)
    return photo


def is_photo(path: Path) -> bool:
    """Return whether a file is a photo: by the ending of its name, or by its first bytes if the ending is another."""
    if images.is_image(str(path), _SUFFIXES, PHOTO_FORMATS):
        return True
    try:
        with path.open("rb") as file:
            return _is_iso_photo(file.read(12))
    except OSError:
        return False


def _is_iso_photo(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


def read_bytes(path: Path) -> bytes:
    """Read the file of a photo; ValueError if it is a folder or a device, or has more than `MOST_BYTES` bytes."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if path.is_dir() else "no plain file"
            raise ValueError(f"{path} is {kind}, not a photo: give an image file")
        if status.st_size > images.MOST_BYTES:
            raise ValueError(
                f"{path} has {status.st_size:,} bytes, a photo at most {images.MOST_BYTES:,}: make it smaller"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"no photo at {path}: check the path") from None
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error}): check its permissions") from error


def _formats_of(data: bytes) -> tuple[str, ...]:
    """Return Pillow's names of `PHOTO_FORMATS`, and for ISO media files that of pillow-heif, where it is installed."""
    Image.init()  # registers all readers; that of AVIF is not in every version of Pillow
    names: tuple[str, ...] = PHOTO_FORMATS
    if _is_iso_photo(data):
        names = (*names, "HEIF")
        with suppress(ImportError):
            from pillow_heif import register_heif_opener

            register_heif_opener()
    return tuple(name for name in names if name in Image.OPEN)


def _convert_image(image: Image.Image, notes: list[str]) -> NDArray[np.uint8]:
    """Convert a Pillow image of any mode, or the first of its frames that is not of one colour, to (H, W, 3)."""
    frames = getattr(image, "n_frames", 1)
    for number in range(min(frames, _MOST_FRAMES)):
        image.seek(number)
        # An animation may begin with a frame of one colour.
        if frames == 1 or any(low < high for low, high in np.atleast_2d(image.getextrema())):
            if frames > 1 and image.format != "MPO":  # the further images of MPO are other views of the same photo
                notes.append(f"has {frames} frames or pages: using number {number + 1}")
            break
    else:
        image.seek(0)
    pixels, note = images.pixels_of(image)
    notes += [note] if note else []
    return pixels


def _convert_array(array: NDArray[np.generic], notes: list[str]) -> NDArray[np.uint8]:
    """Convert an array of pixels to (H, W, 3)."""
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise images.PixelTypeError(f"has shape {array.shape}: expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    images.check_size((pixels.shape[1], pixels.shape[0]))
    scaled, note = images.scale_to_bytes(pixels)
    notes += [note] if note else []
    if scaled.shape[2] == 4:
        alpha = scaled[..., 3:].astype(np.float32) / 255
        scaled = (scaled[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(scaled, (*scaled.shape[:2], 3)))
