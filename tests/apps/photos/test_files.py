"""Which files are photos, what their results are called, and a row for whatever gave none."""

import os
from pathlib import Path

import pytest

from deocc.inference.batch import find_photos


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_folders_are_walked_in_order_and_files_taken_as_given(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "in/b.JPG",
        "in/a.png",
        "in/deep/er/c.heic",
        "in/notes.txt",
        "in/.hidden.png",
        "in/.cache/d.png",
        "odd.bin",
    )
    photos, problems = find_photos([tmp_path / "odd.bin", tmp_path / "in"])
    assert [photo.path.relative_to(tmp_path).as_posix() for photo in photos] == [
        "odd.bin",
        "in/a.png",
        "in/b.JPG",
        "in/deep/er/c.heic",
    ]
    assert [photo.name for photo in photos] == ["odd", "a", "b", "deep/er/c"]
    assert problems == []


def test_results_of_equal_names_get_numbers(tmp_path: Path) -> None:
    _touch(tmp_path, "a/x.jpg", "b/x.jpg", "c/X.png")
    photos, _ = find_photos([tmp_path / "a/x.jpg", tmp_path / "b", tmp_path / "c"])
    assert [photo.name for photo in photos] == ["x", "x-2", "X-3"]


def test_a_photo_met_twice_counts_once(tmp_path: Path) -> None:
    _touch(tmp_path, "a/x.jpg")
    photos, _ = find_photos([tmp_path / "a/x.jpg", tmp_path / "a", tmp_path / "a/../a/x.jpg"])
    assert len(photos) == 1


def test_results_that_lie_within_are_no_photos(tmp_path: Path) -> None:
    _touch(tmp_path, "x.jpg", "out/masked_photos/x.png")
    photos, _ = find_photos([tmp_path], outside=tmp_path / "out")
    assert [photo.name for photo in photos] == ["x"]


def test_missing_empty_and_locked_paths_get_a_line_each_and_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path, "good/x.jpg", "locked/y.jpg")
    (tmp_path / "empty").mkdir()
    scandir = os.scandir

    def guarded(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    photos, problems = find_photos([tmp_path / name for name in ("gone", "empty", "locked", "good")])
    assert [photo.name for photo in photos] == ["x"]
    gone, empty, locked = (problem.reason for problem in problems)
    assert (
        "no photo or folder at" in gone and "looked for the endings" in empty and "locked (Permission denied)" in locked
    )
    assert [Path(problem.photo).name for problem in problems] == ["gone", "empty", "locked"]
