"""Damaged images are read as images, or refused in one line; never anything else."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deocc.data.images import read_image, read_image_bytes, read_size
from deocc.inference.outputs import read_mark, save_png
from deocc.inference.photos import read_photo
from tests.security.fuzzing import MANY, damaged, for_each, refused_in_one_line

pytestmark = pytest.mark.filterwarnings("ignore:.*(frames or pages|taken for 12 bits):UserWarning")

_PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
_PICTURE = Image.fromarray(_PIXELS)


def _encoded(kind: str, image: Image.Image = _PICTURE, **options: Any) -> bytes:
    buffer = BytesIO()
    more = {"append_images": [image.rotate(180), image.copy()]} if options.get("save_all") else {}
    image.copy().save(buffer, kind, **options, **more)  # a copy, since Pillow leaves settings of one format on an image
    return buffer.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    return exif


_GREY, _PALETTE, _BITS = _PICTURE.convert("L"), _PICTURE.convert("P"), _PICTURE.convert("1")
_PLAIN, _DIM = b"P2\n# words\n4 3\n255\n" + b"1 2 3 4\n" * 3, b"P5 4 3 99\n" + bytes(12)
_FILES = {
    "png": [
        _encoded("PNG", exif=_exif()),
        _encoded("PNG", _PALETTE, transparency=3),
        _encoded("PNG", _PICTURE.convert("I;16")),
    ],
    "jpeg": [
        _encoded("JPEG", exif=_exif()),
        _encoded("JPEG", progressive=True),
        _encoded("JPEG", _PICTURE.convert("CMYK")),
    ],
    "mpo": [_encoded("MPO", save_all=True)],
    "pnm": [_encoded("PPM"), _encoded("PPM", _GREY), _PLAIN, _DIM],
    "tiff": [
        _encoded("TIFF", compression=packed, exif=_exif())
        for packed in (None, "tiff_lzw", "jpeg", "tiff_adobe_deflate")
    ],
    "pages": [_encoded("TIFF", save_all=True), _encoded("TIFF", _BITS, compression="group4")],
    "webp": [_encoded("WEBP"), _encoded("WEBP", lossless=True, exif=_exif()), _encoded("WEBP", save_all=True)],
    "bmp": [_encoded("BMP"), _encoded("BMP", _PALETTE), _encoded("BMP", _BITS)],
}
_PHOTOS = {"gif": [_encoded("GIF", save_all=True)], "avif": [_encoded("AVIF")] if "AVIF" in Image.SAVE else []}


@MANY
@pytest.mark.parametrize("kind", _FILES | _PHOTOS)
def test_damaged_image(kind: str, examples: int) -> None:
    files = (_FILES | _PHOTOS)[kind]
    if not files:
        pytest.skip(f"this Pillow writes no {kind}")

    def read(data: bytes) -> None:
        for reader in (read_photo, read_image_bytes) if kind in _FILES else (read_photo,):
            with refused_in_one_line():
                image = reader(data, "a file")
                assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0

    for_each(examples, damaged(files), read)


@MANY
def test_size_and_mark_of_damaged_image(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "image"
    save_png(tmp_path / "marked.png", _PIXELS, "a mark")
    files = [file for files in _FILES.values() for file in files]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        mark = read_mark(path)
        assert mark is None or isinstance(mark, str)
        width, height = read_size(path)
        assert width > 0 and height > 0

    for_each(examples, damaged([*files, (tmp_path / "marked.png").read_bytes()]), read)


def test_undamaged_images_are_read(tmp_path: Path) -> None:
    for kind, files in (_FILES | _PHOTOS).items():
        for data in files:
            assert read_photo(data).ndim == 3, kind
            (tmp_path / "image").write_bytes(data)
            if kind in _FILES:
                assert read_image(tmp_path / "image").shape in {(20, 24, 3), (24, 20, 3), (3, 4, 3)}, kind
