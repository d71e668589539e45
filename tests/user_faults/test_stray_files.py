"""Files that file managers and network drives leave in folders never become data."""

import zipfile
from pathlib import Path

import pytest

from deocc import runs
from deocc.data import ArFaces
from deocc.data.folder import list_folder
from deocc.data.images import ImageStore
from deocc.files import is_stray, walk_files
from deocc.inference.batch import find_photos

_STRAY = [
    "anna/._1.png",
    ".ipynb_checkpoints/1-checkpoint.png",
    "anna/.ipynb_checkpoints/1.png",
    "anna/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
    "__MACOSX/anna/1.png",
    "anna/Thumbs.db",
    "desktop.ini",
    "$RECYCLE.BIN/S-1-5/1.png",
    "lost+found/1.png",
    ".Trash-1000/files/anna/1.png",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("anna/1.png", "bob/1.png", *_STRAY):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def test_walk_files_leaves_out_stray(folder: Path) -> None:
    assert [name for name, _ in walk_files(folder)] == ["anna/1.png", "bob/1.png"]


def test_walk_files_ends_at_mutual_links(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
        (tmp_path / name / "link").symlink_to(tmp_path / other)
    assert [name for name, _ in walk_files(tmp_path)] == ["a/1.png", "a/link/1.png", "b/1.png", "b/link/1.png"]


def test_list_folder_has_no_stray_people(folder: Path) -> None:
    listing = list_folder(folder)
    assert listing.people == ["anna", "bob"] and not listing.unused


def test_find_photos_has_no_stray_files(folder: Path) -> None:
    photos, problems = find_photos([folder])
    assert [photo.name for photo in photos] == ["anna/1", "bob/1"] and not problems


def test_archives_have_no_stray_images(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    packed = tmp_path_factory.mktemp("zip") / "faces.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("anna/1.png", "bob/1.png", *_STRAY):
            archive.write(folder / name, name)
    assert ImageStore(folder).names() == ImageStore(packed, "faces").names() == ["anna/1.png", "bob/1.png"]


def test_ar_has_no_stray_shots(tmp_path: Path) -> None:
    for name in (".Trash/m-001-01.bmp", "@eaDir/m-001-01.bmp", "._m-001-01.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match="no AR image below"):
        ArFaces(str(tmp_path))


def test_newest_run_is_not_in_the_trash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("inpaint", ".Trash-1000/files/inpaint"):
        (tmp_path / name / runs.CHECKPOINTS).mkdir(parents=True)
        (tmp_path / name / runs.CHECKPOINTS / "last.ckpt").touch()
        (tmp_path / name / runs.CHECKPOINTS / "._last.ckpt").touch()
        (tmp_path / name / runs.CONFIG).write_text("InpaintingModule")
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert runs.newest_run("InpaintingModule") == tmp_path / "inpaint"


@pytest.mark.parametrize("name", ["anna", "@anna", "J. Doe", "#1", "thumbs", "~"])
def test_people_are_not_stray(name: str) -> None:
    assert not is_stray(name)
