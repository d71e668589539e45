"""Every input file is used or named: what is an image is decided by content, not by the ending of its name."""

import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deocc.commands.doctor_checks import check_given
from deocc.commands.doctor_installation import Context
from deocc.data import FolderFaces
from deocc.data.folder import list_folder
from deocc.inference.batch import Outcome, OutcomeFile, find_photos, process_photos
from deocc.inference.photos import read_photo

_READABLE = ["1.jpe", "2.mpo", "3", "4.jpg_large", "5.jfif", "6.JPG", "7.php"]
_OTHERS = {
    "a.tga": bytes(18),
    "b.jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
    "c.mp4": b"\0\0\0\x20ftypisom\0\0\2\0",
    "d.pdf": b"%PDF-1.7",
    "e.eps": b"%!PS-Adobe-3.0 EPSF-3.0",
    "f.txt": b"names",
    "g.dat": b"",
}


def encode(size: int = 112) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), 128, np.uint8)).save(content, "JPEG")
    return content.getvalue()


@pytest.fixture
def person(tmp_path: Path) -> Path:
    folder = tmp_path / "anna"
    folder.mkdir()
    for name in _READABLE:
        (folder / name).write_bytes(encode())
    for name, content in _OTHERS.items():
        (folder / name).write_bytes(content)
    return folder


def test_every_photo_has_a_row(person: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = OutcomeFile(tmp_path / "table.csv")
    code = process_photos("mask", find_photos([person]), table, lambda photo: [_read(photo.path)])
    rows = {Path(row.photo).name: row.done for row in table.all_rows()}
    assert code == 1
    assert rows == dict.fromkeys(_READABLE, True) | dict.fromkeys(_OTHERS, False)
    told = capsys.readouterr()
    assert "7 of 14 done, 7 left out" in told.out
    assert all(f"{name} is no photo" in told.err for name in _OTHERS)


def _read(path: Path) -> Outcome:
    assert read_photo(path).shape == (112, 112, 3)
    return Outcome(str(path))


def test_a_given_video_is_no_heic(tmp_path: Path) -> None:
    path = tmp_path / "film.jpg"
    path.write_bytes(_OTHERS["c.mp4"])
    with pytest.raises(ValueError, match="is not an image"):
        read_photo(path)


def test_a_heic_without_its_ending_is_found(tmp_path: Path) -> None:
    (tmp_path / "IMG_1").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    assert [photo.name for photo in find_photos([tmp_path])[0]] == ["IMG_1"]


def test_list_folder_uses_or_names_every_file(person: Path) -> None:
    (person / "2020/summer").mkdir(parents=True)
    (person / "2020/summer/1.png").write_bytes(encode())
    (person.parent / "loose.png").write_bytes(encode())
    listing = list_folder(person.parent)
    assert sorted(listing.names) == sorted(f"anna/{name}" for name in (*_READABLE, "2020/summer/1.png"))
    assert sorted(listing.unused) == sorted([*(f"anna/{name}" for name in _OTHERS), "loose.png"])
    assert listing.describe_unused().startswith("8 files in ")


def test_folder_faces_and_doctor_name_unused_files(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"p{number}").mkdir()
        (tmp_path / f"p{number}/1.jfif").write_bytes(encode())
    (tmp_path / "p3/film.mp4").write_bytes(_OTHERS["c.mp4"])
    with pytest.warns(UserWarning, match=r"1 files in .*p3/film.mp4"):
        assert len(FolderFaces(str(tmp_path))) == 20
    findings = list(islice(check_given(Context(data=tmp_path)), 2))
    assert [finding.level for finding in findings] == ["OK", "warning"]
    assert "20 images of 20 people" in findings[0].text and "p3/film.mp4" in findings[1].text


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in ("anna", "bob"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
    scandir = os.scandir

    def guarded(path: str) -> object:
        if Path(path).name == "bob":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert list_folder(tmp_path).unused == ["bob (Permission denied)"]


def test_split_folders_are_no_people(tmp_path: Path) -> None:
    for name in ("train/anna", "val/bob", "Test/carl"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").touch()
    with pytest.raises(ValueError, match="are splits and no people"):
        list_folder(tmp_path)
