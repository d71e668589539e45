"""Decompression bombs are refused in one line and little memory; only the listed formats are opened."""

import struct
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deocc.data import images
from deocc.data.images import FORMATS, MOST_PIXELS, read_image, read_image_bytes, read_size
from deocc.inference.photos import read_photo
from tests.security.fuzzing import within_memory

_LITTLE = 100 * 2**20
_MUCH = 110 * 2**20


def _encoded(kind: str, image: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _huge_webp() -> bytes:
    frame = _encoded("WEBP", Image.new("RGBA", (8, 8), (1, 2, 3, 4)), lossless=True)[12:]
    content = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + (16_000 - 1).to_bytes(3, "little") * 2 + frame
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _patched(kind: str, old: int, new: int, form: str, **options: Any) -> bytes:
    """An image of `old` pixels a side that claims `new` ones."""
    data = _encoded(kind, Image.new("RGB", (old, old)), **options)
    for written in (struct.pack(f"{form}{letter}", old) for letter in "HI"):
        wanted = struct.pack(f"{form}{'H' if len(written) == 2 else 'I'}", new)
        data = data.replace(written, wanted) if len(written) == 4 or form == ">" else data
    return data


_BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: _png(20_000, 20_000),
    "png, a little too large": lambda: _png(10_001, 10_000),
    "png, negative": lambda: _png(2**31, 2**31),
    "jpeg": lambda: _patched("JPEG", 1237, 60_001, ">"),
    "tiff": lambda: _patched("TIFF", 1237, 60_001, "<"),
    "bmp": lambda: _patched("BMP", 1237, 60_001, "<"),
    "webp": _huge_webp,
    "ppm": lambda: b"P6 60000 60000 255\n" + bytes(100),
    "png, one text of 110 MB": lambda: _png(2, 2, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(_MUCH), 1))),
    "png, a thousand texts": lambda: _png(2, 2, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 1), 1)) * 1000),
    "png, a profile of 110 MB": lambda: _png(2, 2, _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(_MUCH), 1))),
}


@pytest.mark.parametrize("name", _BOMBS)
def test_small_file_that_claims_much(name: str, tmp_path: Path) -> None:
    data = _BOMBS[name]()
    assert len(data) < 5_000_000
    path = tmp_path / "bomb"
    path.write_bytes(data)
    readers: list[Callable[[], Any]] = [
        partial(read_image_bytes, data, "bomb"),
        partial(read_photo, data),
        partial(read_image, path),
    ]
    for reader in readers:
        with (
            within_memory(_LITTLE),
            pytest.raises(ValueError, match=r"cannot read|not an image|smaller") as error,
        ):
            reader()
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("reader", [read_image, read_size, read_photo])
def test_limit_of_pixels_is_named(reader: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(_png(10_001, 10_000))
    message = r"bomb\.png.* 10001 x 10000 pixels, at most 100 million pixels are allowed.*make it smaller$"
    with pytest.raises(ValueError, match=message):
        reader(tmp_path / "bomb.png")
    assert MOST_PIXELS == 100_000_000


def test_large_and_special_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_BYTES", 1000)
    (tmp_path / "large.png").write_bytes(bytes(1001))
    with pytest.raises(ValueError, match=r"1,001 bytes, at most 1,000 are allowed"):
        read_image(tmp_path / "large.png")
    with pytest.raises(ValueError, match="is no plain file"):
        read_photo(Path("/dev/zero"))
    with pytest.raises(FileNotFoundError, match="no image at /dev/zero"):
        read_image(Path("/dev/zero"))


def test_jpeg_of_countless_scans() -> None:
    data = _encoded("JPEG", Image.new("L", (3000, 3000), 128), progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ValueError, match=r"5,0\d\d scans of 3000 x 3000 pixels"):
        read_image_bytes(data[:last] + data[last:-2] * 5000 + data[-2:], "scans.jpg")
    small = _encoded("JPEG", Image.new("L", (60, 40), 128), progressive=True)
    assert read_image_bytes(small + b"\xff\xda" * 1000, "film.jpg").shape == (40, 60, 3)


def test_only_the_first_page_is_decoded() -> None:
    for kind, number in {"TIFF": 1500, "GIF": 1500, "WEBP": 100}.items():
        pages = [Image.new("L", (4, 3), 7)] * number
        image = Image.new("L", (4, 3), 200).convert("RGB") if kind == "WEBP" else Image.new("L", (4, 3), 200)
        data = _encoded(kind, image, save_all=True, append_images=pages)
        with within_memory(_LITTLE):
            assert (abs(read_photo(data).astype(int) - 200) < 4).all()


@pytest.mark.parametrize("kind", ["EPS", "PSD", "FITS", "ICO", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "PDF"])
def test_other_formats_are_not_opened(kind: str) -> None:
    known = Image.new("RGB", (16, 16))
    made = {"PSD": b"8BPS" + bytes(60), "FITS": b"SIMPLE  =                    T" + b" " * 3000}
    data = made[kind] if kind in made else _encoded(kind, known)
    with pytest.raises(ValueError, match=f"none of {', '.join(FORMATS)}"):
        read_image_bytes(data, "file.png")
    with pytest.raises(ValueError, match="is not an image"):
        read_photo(data, "file.png")
