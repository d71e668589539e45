"""Photos that are readable, but not as usual: 12 bits in 16, black first frames, pages, too many pixels, palettes."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deocc.geometry import TEMPLATES
from deocc.inference.photos import read_photo
from deocc.masking.texture import register_texture

GRADIENT = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))


def encoded(image: Image.Image, form: str, **settings: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **settings)  # type: ignore[arg-type]
    return buffer.getvalue()


def wide(bits: int) -> NDArray[np.uint16]:
    return (GRADIENT.astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)


@pytest.mark.parametrize("form", ["array", "PNG", "TIFF", "PPM"])
def test_12_bits_in_16(form: str) -> None:
    source = wide(12) if form == "array" else encoded(Image.fromarray(wide(12)), form)
    with pytest.warns(UserWarning, match=r"x\.png holds numbers up to 4046 in 16 bits: taken for 12 bits"):
        photo = read_photo(source, "x.png")
    assert np.abs(photo[..., 0].astype(int) - GRADIENT).max() <= 1


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_first_frame_of_one_colour(form: str) -> None:
    black, face = Image.new("RGB", (64, 48)), Image.fromarray(GRADIENT).convert("RGB")
    source = encoded(black, form, save_all=True, append_images=[face], **({"lossless": True} if form == "WEBP" else {}))
    with pytest.warns(UserWarning, match="has 2 frames or pages: using number 2"):
        photo = read_photo(source)
    assert np.abs(photo[..., 0].astype(int) - GRADIENT).max() <= 2


def test_frames_of_one_colour_only() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    source = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert (read_photo(source) == (255, 0, 0)).all()


def test_second_page_is_mentioned() -> None:
    face = Image.fromarray(GRADIENT)
    with pytest.warns(UserWarning, match="has 2 frames or pages: using number 1"):
        read_photo(encoded(face, "TIFF", save_all=True, append_images=[Image.new("L", (64, 48))]))


def test_transparent_palette(tmp_path: Path) -> None:
    pixels = np.full((40, 40, 4), (200, 30, 30, 255), np.uint8)
    pixels[:20, :, 3] = 0
    Image.fromarray(pixels).quantize(4).save(tmp_path / "mask.png")
    register_texture("palette_mask", tmp_path / "mask.png", TEMPLATES["canonical"].tensor(40))
    Image.new("P", (40, 40)).save(tmp_path / "opaque.png")
    with pytest.raises(ValueError, match=r"has no transparent pixels \(mode P\)"):
        register_texture("opaque_mask", tmp_path / "opaque.png", torch.zeros(5, 2))
