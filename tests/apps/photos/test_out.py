"""One command at a time in a folder of results, links, long names, and EXIF that Pillow cannot write anew."""

import io
import struct
from pathlib import Path

import pytest
from PIL import Image

from deocc.data.images import read_image_bytes
from deocc.inference.batch import find_photos
from deocc.inference.outputs import OutputError, alone_in, save_png
from deocc.inference.photos import read_photo


def test_a_second_command_is_refused_while_one_is_at_work(tmp_path: Path) -> None:
    with (
        alone_in(tmp_path / "out"),
        pytest.raises(ValueError, match="another deocc is at work in"),
        alone_in(tmp_path / "out"),
    ):
        pass
    with alone_in(tmp_path / "out"), alone_in(tmp_path / "other"):
        pass


def test_linked_folders_are_looked_through_once_and_never_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "real/anna").mkdir(parents=True)
    (tmp_path / "given").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "real/anna/1.png")
    (tmp_path / "given/anna").symlink_to(tmp_path / "real/anna")
    (tmp_path / "given/again").symlink_to(tmp_path / "given")
    photos, problems = find_photos([tmp_path / "given"])
    assert [photo.name for photo in photos] == ["anna/1"] and not problems


def test_a_name_too_long_for_the_disk_concerns_one_photo_only(tmp_path: Path) -> None:
    pixels = read_photo(Image.new("RGB", (4, 4)))
    save_png(tmp_path / f"{'a' * 230}.png", pixels)
    assert not issubclass(ValueError, OutputError)  # which would stop the batch
    with pytest.raises(ValueError, match=r"is too long for this disk: rename the photo$"):
        save_png(tmp_path / f"{'a' * 300}.png", pixels)


def test_a_photo_is_turned_upright_though_its_exif_cannot_be_written_anew() -> None:
    width = struct.pack(">HHI4s", 0x0100, 2, 4, b"abc\0")  # text, where a number is due
    turn = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)  # a quarter turn clockwise
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + width + turn + bytes(4)
    buffer = io.BytesIO()
    image = Image.new("L", (3, 2))
    image.putpixel((0, 0), 255)
    image.save(buffer, "PNG", exif=exif)
    for pixels in (read_photo(buffer.getvalue()), read_image_bytes(buffer.getvalue(), "it")):
        assert pixels.shape == (3, 2, 3) and pixels[0, 1].tolist() == [255] * 3 and pixels.sum() == 3 * 255
