import io
import struct
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deocc.data.images import read_image_bytes
from deocc.inference.photos import read_photo

COLOURS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_photo_applies_exif_rotation(orientation: int) -> None:
    # By the table of the EXIF standard: flip left to right, number of anticlockwise quarter turns.
    flip, turns = {1: (0, 0), 2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 3), 7: (1, 3), 8: (0, 1)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_photo(encode(Image.fromarray(COLOURS), exif=exif))
    np.testing.assert_array_equal(read, np.rot90(COLOURS[:, ::-1] if flip else COLOURS, turns))


def test_read_photo_with_unwritable_exif() -> None:
    width = struct.pack(">HHI4s", 0x0100, 2, 4, b"abc\0")  # text instead of a number
    turn = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)  # a quarter turn clockwise
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + width + turn + bytes(4)
    buffer = io.BytesIO()
    image = Image.new("L", (3, 2))
    image.putpixel((0, 0), 255)
    image.save(buffer, "PNG", exif=exif)
    for pixels in (read_photo(buffer.getvalue()), read_image_bytes(buffer.getvalue(), "it")):
        assert pixels.shape == (3, 2, 3)
        assert pixels[0, 1].tolist() == [255] * 3
        assert pixels.sum() == 3 * 255


def test_read_photo_ignores_damaged_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    exif[0x010E] = "a long description"
    data = bytearray(encode(Image.fromarray(COLOURS), "JPEG", exif=exif, quality=95))
    at = data.index(b"\x01\x0e")  # the entry of the description: its length becomes larger than the file
    data[at + 4 : at + 8] = b"\x7f\xff\xff\xff" if b"MM" in data[:40] else b"\xff\xff\xff\x7f"
    assert read_photo(bytes(data)).shape == (4, 6, 3)  # warnings are errors in the tests


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_read_photo_scales_16_bits(kind: str) -> None:
    ramp = np.array([[0, 128, 257 * 7, 257 * 100], [257 * 200, 30000, 65534, 65535]], dtype=np.uint16)
    expected = np.repeat(np.round(ramp / 65535 * 255)[..., None], 3, 2)
    np.testing.assert_array_equal(read_photo(encode(Image.fromarray(ramp), kind)), expected)


def test_read_photo_composes_on_white() -> None:
    alpha = np.array([[0, 128, 255, 255, 51, 0]] * 4, dtype=np.uint8)[..., None]
    expected = COLOURS * (alpha / 255) + 255 * (1 - alpha / 255)
    rgba = np.concatenate([COLOURS, alpha], 2)
    for source in (rgba, encode(Image.fromarray(rgba))):
        np.testing.assert_allclose(read_photo(source), expected, atol=1)
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 10, 20, 1, 2, 3])
    palette.putdata([0, 1])
    assert read_photo(encode(palette, transparency=0)).tolist() == [[[255, 255, 255], [1, 2, 3]]]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "LA"])
def test_read_photo_converts_every_mode(mode: str) -> None:
    grey = Image.fromarray(np.array([[0, 255, 255, 0]], dtype=np.uint8)).convert("RGB")
    assert read_photo(grey.convert(mode))[..., 0].tolist() == [[0, 255, 255, 0]]
    assert read_photo(grey.convert(mode)).shape == (1, 4, 3)


def test_read_photo_converts_arrays() -> None:
    grey = COLOURS[..., 0]
    for array in (grey, grey[..., None]):
        np.testing.assert_array_equal(read_photo(array), np.stack([grey] * 3, 2))
    np.testing.assert_array_equal(read_photo(COLOURS.astype(np.uint16) * 257), COLOURS)


def test_read_photo_of_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    buffer = BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 60, 30))).save(buffer)
    assert np.abs(read_photo(buffer.getvalue()).astype(int) - [200, 60, 30]).max() < 8
    opened = {name: handler for name, handler in Image.OPEN.items() if name not in ("HEIF", "AVIF")}
    monkeypatch.setattr(Image, "OPEN", opened)
    monkeypatch.setattr(Image, "ID", list(opened))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = r"^a\.heic is HEIC, which needs the package pillow-heif: pip install \"deocc\[photos\]\"$"
    with pytest.raises(ImportError, match=message):
        read_photo(buffer.getvalue(), "a.heic")


def test_read_photo_of_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encode(Image.fromarray(np.tile(COLOURS, (40, 40, 1))), "JPEG")[:-800])
    with pytest.raises(ValueError, match=r"cut\.jpg as a photo \(image file is truncated"):
        read_photo(path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_read_photo_of_no_image(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"x\.png.*replace the file") as error:
        read_photo(content, "x.png")
    assert "\n" not in str(error.value)


def test_read_photo_of_a_bad_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is a folder, not a photo"):
        read_photo(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no photo at .*gone\.jpg"):
        read_photo(tmp_path / "gone.jpg")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "secret.jpg").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ValueError, match=r"secret\.jpg \(Permission denied\): check its permissions"):
        read_photo(tmp_path / "secret.jpg")


@pytest.mark.parametrize(
    ("source", "needle"),
    [
        (np.zeros((2, 2, 2), np.uint8), r"\(2, 2, 2\)"),
        (np.zeros((0, 2), np.uint8), r"\(0, 2\)"),
        (np.zeros((2, 2), np.float32), "float32"),
        (np.full((2, 2), 70_000, np.int32), "70000"),
        (Image.new("F", (2, 2)), "floating-point"),
    ],
)
def test_read_photo_of_a_bad_array(source: Any, needle: str) -> None:
    with pytest.raises(ValueError, match=needle):
        read_photo(source)
