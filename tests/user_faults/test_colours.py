"""Colours are converted from the profile of a file to sRGB, and results are tagged."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from deocc.data.images import read_image
from deocc.inference.outputs import read_mark, save_png
from deocc.inference.photos import read_photo

_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
"""XYZ of the primaries of Display P3, adapted to D50."""
_PROPHOTO = ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249))


def build_profile(primaries: tuple[tuple[float, ...], ...] | None, gamma: float, space: bytes = b"RGB ") -> bytes:
    """Build a matrix profile (ICC.1:2001-04): header, tag table, white point, primaries and tone curve."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH2x", 1, round(gamma * 256))
    tags = [(b"desc", b"desc\0\0\0\0\0\0\0\x01" + bytes(80)), (b"wtpt", xyz((0.9642, 1.0, 0.8249)))]
    if primaries is None:
        tags.append((b"kTRC", curve))
    else:
        for name, values in zip((b"r", b"g", b"b"), primaries, strict=True):
            tags += [(name + b"XYZ", xyz(values)), (name + b"TRC", curve)]
    offset, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags:
        table += name + struct.pack(">II", offset + len(data), len(content))
        data += content
    white = xyz((0.9642, 1.0, 0.8249))[8:]
    header = struct.pack(">4x4sI4s4s4s12s4s28x", b"", 0x02400000, b"mntr", space, b"XYZ ", bytes(12), b"acsp")
    size = offset + len(data)
    return (
        struct.pack(">I", size) + (header[4:] + white).ljust(124, b"\0") + struct.pack(">I", len(tags)) + table + data
    )


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def convert(image: Image.Image, profile: bytes) -> NDArray[np.uint8]:
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert converted is not None
    return np.asarray(converted)


@pytest.mark.parametrize(("primaries", "gamma"), [(_P3, 2.2), (_PROPHOTO, 1.8)], ids=["P3", "ProPhoto"])
@pytest.mark.parametrize("read", [read_image, read_photo])
def test_profile_is_applied(picture, primaries, gamma, read, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    profile = build_profile(primaries, gamma)
    Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=profile)
    found = read(tmp_path / "a.png")
    np.testing.assert_array_equal(found, convert(Image.fromarray(picture), profile))
    assert np.abs(found.astype(int) - picture).max() > 10


def test_srgb_profile_changes_no_pixel(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=srgb)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), picture)


def test_transparency_is_kept(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    image = Image.fromarray(picture)
    image.putalpha(Image.fromarray(np.tile(np.array([0, 255], np.uint8), (16, 8))))
    profile = build_profile(_P3, 2.2)
    image.save(tmp_path / "a.png", icc_profile=profile)
    found = read_photo(tmp_path / "a.png")
    assert (found[:, ::2] == 255).all()
    np.testing.assert_array_equal(found[:, 1::2], convert(Image.fromarray(picture), profile)[:, 1::2])


def test_palette_and_grey_images_are_converted(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    profile = build_profile(_PROPHOTO, 1.8)
    palette = Image.fromarray(picture).quantize(16)
    palette.save(tmp_path / "p.png", icc_profile=profile)
    np.testing.assert_array_equal(read_photo(tmp_path / "p.png"), convert(palette.convert("RGB"), profile))
    grey = Image.fromarray(picture[..., 0])
    grey.save(tmp_path / "g.png", icc_profile=build_profile(None, 1.0, b"GRAY"))
    found = read_photo(tmp_path / "g.png")
    assert (found[..., 0] == found[..., 2]).all() and found.mean() > picture[..., 0].mean() + 20


@pytest.mark.parametrize(
    "profile", [b"", b"no profile", bytes(16) + b"RGB " + bytes(200), build_profile(_P3, 2.2)[:200]]
)
def test_unusable_profile_is_ignored(picture: NDArray[np.uint8], profile: bytes, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), picture)


def test_profile_of_another_mode_is_ignored(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=build_profile(None, 1.0, b"GRAY"))
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), picture)


def test_results_are_tagged(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", picture, "mark")
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["srgb"] == 0
    assert read_mark(tmp_path / "a.png") == "mark"
    save_png(tmp_path / "mask.png", picture[..., 0])
    with Image.open(tmp_path / "mask.png") as image:
        assert "srgb" not in image.info
