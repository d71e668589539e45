"""Images in a folder and in a zip are read alike in any process, and nothing else can be read."""

import os
import pickle
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deocc.data.archive import ImageStore, ZipImages, open_images
from deocc.data.images import read_image, read_image_bytes

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
def test_every_form_gives_the_same_names_images_and_sizes(tmp_path: Path, form: str) -> None:
    _write_folder(tmp_path / "expected")
    store = _write(tmp_path / "set", form)
    assert store.names() == _NAMES
    for number, name in enumerate(_NAMES):
        np.testing.assert_array_equal(store.read(name), _picture(number))
        assert store.size(name) == (tmp_path / "expected" / name).stat().st_size


def test_a_folder_goes_before_a_zip_and_an_earlier_place_before_a_later_one(tmp_path: Path) -> None:
    (tmp_path / "Img").mkdir()
    assert open_images(tmp_path, "faces", ("", "Img")) is None
    _write_zip(tmp_path / "Img" / "faces.zip", "faces/")
    assert _open(tmp_path, "", "Img").path == tmp_path / "Img" / "faces.zip"
    _write_folder(tmp_path / "Img" / "faces")
    assert _open(tmp_path, "", "Img").path == tmp_path / "Img" / "faces"
    _write_folder(tmp_path / "faces")
    assert _open(tmp_path, "", "Img").path == tmp_path / "faces"


@pytest.mark.parametrize("form", ["folder faces", "zip faces/"])
def test_a_name_cannot_lead_out_of_the_store(tmp_path: Path, form: str) -> None:
    Image.fromarray(_picture(7)).save(tmp_path / "secret.png")
    store = _write(tmp_path / "set", form)
    for name in ("../../secret.png", str(tmp_path / "secret.png"), "a/../../../secret.png"):
        for method in (store.read, store.size):
            with pytest.raises((ValueError, FileNotFoundError), match=r"leads out of|no image"):
                method(name)


@pytest.mark.parametrize("form", ["folder faces", "zip faces/"])
def test_an_absent_image_is_named_with_its_place(tmp_path: Path, form: str) -> None:
    store = _write(tmp_path / "set", form)
    for method in (store.read, store.size):
        with pytest.raises(FileNotFoundError, match=r"no image .*9\.png"):
            method("9.png")


@pytest.mark.parametrize("form", ["folder faces", "zip faces/"])
def test_a_store_survives_pickling_and_carries_no_open_file(tmp_path: Path, form: str) -> None:
    store = _write(tmp_path / "set", form)
    store.read("b.png")
    state = pickle.dumps(store)
    assert len(state) < 500 + 2 * len(str(tmp_path))
    again: ImageStore = pickle.loads(state)
    assert again.names() == _NAMES
    np.testing.assert_array_equal(again.read("a/2.png"), _picture(1))


def test_another_process_opens_the_zip_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _write(tmp_path / "set", "zip faces/")
    assert isinstance(store, ZipImages)
    before = store._opened()
    assert store._opened() is before
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)  # as after a fork, where the open file is the parent's too
    assert store._opened() is not before
    np.testing.assert_array_equal(store.read("b.png"), _picture(2))


def test_a_zip_that_was_cut_short_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "faces.zip"
    _write_zip(path, "faces/")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        ValueError, match=r"cannot read .*faces\.zip as a zip \(.*\): it may be half copied, copy it again"
    ) as error:
        open_images(tmp_path, "faces")
    assert "\n" not in str(error.value)


def test_a_damaged_entry_is_named_when_it_is_read(tmp_path: Path) -> None:
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


def test_an_entry_that_claims_more_than_any_photograph_is_not_unpacked(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "faces.zip", "w", ZIP_DEFLATED) as packed, packed.open("faces/bomb.png", "w") as file:
        for _ in range(257):
            file.write(bytes(2**20))
    with pytest.raises(ValueError, match=r"cannot read .*bomb\.png \(269,484,032 bytes, at most 268,435,456 allowed\)"):
        _open(tmp_path).read("bomb.png")


def test_bytes_that_are_no_image_or_a_bomb_are_refused_as_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.png"
    Image.fromarray(_picture(0)).save(path)
    data = path.read_bytes()
    np.testing.assert_array_equal(read_image_bytes(data, "b.png"), read_image(path))
    for bad in (b"not an image", data[:60], b""):
        path.write_bytes(bad)
        messages = []
        for read in (lambda bad=bad: read_image_bytes(bad, str(path)), lambda: read_image(path)):
            with pytest.raises(ValueError, match=rf"cannot read {path} as an image \(.*\): replace the file") as error:
                read()
            messages.append(str(error.value))
        assert "BytesIO" not in messages[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"cannot read b\.png as an image \(Image size"):
        read_image_bytes(data, "b.png")
