"""Images in a folder and in a zip are read alike in any process, and nothing else can be read."""

import pickle
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deocc.data import images
from deocc.data.images import ImageStore, open_images

_NAMES = ["a/1.png", "a/2.png", "b.png"]


def _picture(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def _write_folder(folder: Path) -> None:
    for number, name in enumerate(_NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_picture(number)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "._b.png").write_bytes(b"what macOS leaves behind")


def _write_zip(path: Path, inside: str, compression: int = ZIP_DEFLATED) -> None:
    source = path.parent / "source"
    _write_folder(source)
    with ZipFile(path, "w", compression) as packed:
        for file in sorted(source.rglob("*.*")):
            packed.write(file, inside + file.relative_to(source).as_posix())
        packed.writestr("__MACOSX/faces/._b.png", b"what macOS leaves behind")


def _open(root: Path, *places: str) -> ImageStore:
    store = open_images(root, "faces", places or ("",))
    assert store is not None
    return store


def _write(root: Path, form: str) -> ImageStore:
    """A store of one form; all of them hold the same images."""
    root.mkdir(exist_ok=True)
    if form.startswith("folder"):
        _write_folder(root / form.removeprefix("folder "))
    else:
        compression = ZIP_STORED if form.endswith("stored") else ZIP_DEFLATED
        _write_zip(root / "faces.zip", form.split()[1] if form.count(" ") else "", compression)
    return _open(root)


@pytest.mark.parametrize(
    "form", ["folder faces", "folder faces/faces", "zip", "zip faces/", "zip faces/faces/", "zip faces/ stored"]
)
def test_every_form_gives_the_same_images(tmp_path: Path, form: str) -> None:
    _write_folder(tmp_path / "expected")
    store = _write(tmp_path / "set", form)
    assert store.names() == _NAMES
    for number, name in enumerate(_NAMES):
        np.testing.assert_array_equal(store.read(name), _picture(number))
        assert store.size(name) == (tmp_path / "expected" / name).stat().st_size


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    grey = np.linspace(0, 65535, 63).round().astype(np.uint16).reshape(9, 7)
    Image.fromarray(grey).save(tmp_path / f"a{suffix}")
    expected = np.repeat((grey / 257).round()[..., None], 3, -1)
    np.testing.assert_allclose(images.read_image(tmp_path / f"a{suffix}"), expected, atol=1)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    rgba = np.dstack([_picture(0), np.where(np.arange(7) < 3, 0, 255) * np.ones((9, 1), np.int64)]).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    expected = np.where(np.arange(7)[:, None] < 3, 255, rgba[..., :3])
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), expected)


def test_floating_point_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((9, 7), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif as an image \(holds floating-point numbers of unknown range"):
        images.read_image(tmp_path / "a.tif")


def test_order_of_places(tmp_path: Path) -> None:
    (tmp_path / "Img").mkdir()
    assert open_images(tmp_path, "faces", ("", "Img")) is None
    _write_zip(tmp_path / "Img" / "faces.zip", "faces/")
    assert _open(tmp_path, "", "Img").path == tmp_path / "Img" / "faces.zip"
    _write_folder(tmp_path / "Img" / "faces")
    assert _open(tmp_path, "", "Img").path == tmp_path / "Img" / "faces"
    _write_folder(tmp_path / "faces")
    assert _open(tmp_path, "", "Img").path == tmp_path / "faces"


@pytest.mark.parametrize("form", ["folder faces", "zip faces/"])
def test_name_cannot_lead_out(tmp_path: Path, form: str) -> None:
    Image.fromarray(_picture(7)).save(tmp_path / "secret.png")
    store = _write(tmp_path / "set", form)
    for name in ("../../secret.png", str(tmp_path / "secret.png"), "a/../../../secret.png"):
        for method in (store.read, store.size):
            with pytest.raises((ValueError, FileNotFoundError), match=r"leads out of|no image"):
                method(name)


@pytest.mark.parametrize("form", ["folder faces", "zip faces/"])
def test_absent_image_is_named(tmp_path: Path, form: str) -> None:
    store = _write(tmp_path / "set", form)
    for method in (store.read, store.size):
        with pytest.raises(FileNotFoundError, match=r"no image .*9\.png"):
            method("9.png")


@pytest.mark.parametrize("form", ["folder faces", "zip faces/"])
def test_pickled_store_opens_its_own_file(tmp_path: Path, form: str) -> None:
    store = _write(tmp_path / "set", form)
    store.read("b.png")
    state = pickle.dumps(store)
    assert len(state) < 500 + 2 * len(str(tmp_path))
    again: ImageStore = pickle.loads(state)
    assert again.names() == _NAMES
    np.testing.assert_array_equal(again.read("a/2.png"), _picture(1))


def test_cut_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "faces.zip"
    _write_zip(path, "faces/")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        ValueError, match=r"cannot read .*faces\.zip as a zip \(.*\): it may be half copied, copy it again"
    ) as error:
        open_images(tmp_path, "faces")
    assert "\n" not in str(error.value)


def test_damaged_entry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "faces.zip"
    _write_zip(path, "faces/", ZIP_STORED)
    content = path.read_bytes()
    at = content.index(b"IDAT")
    path.write_bytes(content[: at + 10] + bytes([content[at + 10] ^ 255]) + content[at + 11 :])
    failures = []
    for name in _NAMES:
        try:
            _open(tmp_path).read(name)
        except ValueError as error:
            failures.append(str(error))
    assert len(failures) == 1
    assert "faces.zip/faces/" in failures[0] and failures[0].endswith("copy the zip again")


def test_entry_larger_than_any_photo_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_zip(tmp_path / "faces.zip", "faces/")
    monkeypatch.setattr(images, "MOST_BYTES", 50)
    with pytest.raises(ValueError, match=r"cannot read .*b\.png \(\d+ bytes, at most 50 allowed\): it is not a photo"):
        _open(tmp_path).read("b.png")
