import csv
import errno
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deocc.inference import batch, outputs
from deocc.inference.batch import FoundPhoto, Outcome, OutcomeFile, find_photos, process_photos
from deocc.inference.faces import PhotoFace
from deocc.inference.outputs import OutputError, save_png

PHOTOS = [FoundPhoto(Path(f"in/{name}.jpg"), name) for name in "abcd"]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def succeed(photo: FoundPhoto) -> list[Outcome]:
    return [Outcome(str(photo.path), face=1, output=f"out/{photo.name}.png", details={"score": 0.5})]


def failing_at(name: str, error: BaseException) -> Callable[[FoundPhoto], Sequence[Outcome]]:
    def work(photo: FoundPhoto) -> list[Outcome]:
        if photo.name == name:
            raise error
        return succeed(photo)

    return work


def test_find_photos_sorts_and_filters(tmp_path: Path) -> None:
    names = ["in/b.JPG", "in/a.png", "in/deep/er/c.heic", "in/notes.txt", "in/.hidden.png", "in/.cache/d.png"]
    touch(tmp_path, "odd.bin", *names)
    photos, problems = find_photos([tmp_path / "odd.bin", tmp_path / "in"])
    found = [photo.path.relative_to(tmp_path).as_posix() for photo in photos]
    assert found == ["odd.bin", "in/a.png", "in/b.JPG", "in/deep/er/c.heic"]
    assert [photo.name for photo in photos] == ["odd", "a", "b", "deep/er/c"]
    assert [Path(problem.photo).name for problem in problems] == ["notes.txt"]
    assert "is no photo" in problems[0].reason


def test_find_photos_numbers_equal_names(tmp_path: Path) -> None:
    """A file that is given several times counts once."""
    touch(tmp_path, "a/x.jpg", "b/x.jpg", "c/X.png")
    photos, _ = find_photos([tmp_path / name for name in ("a/x.jpg", "a", "b", "a/../a/x.jpg", "c")])
    assert [photo.name for photo in photos] == ["x", "x-2", "X-3"]


def test_find_photos_skips_results(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg", "out/masked_photos/x.png", "deep/table.csv", "other.csv")
    results = [tmp_path / "out", tmp_path / "deep/../deep/table.csv"]
    photos, problems = find_photos([tmp_path], outside=results)
    assert [photo.name for photo in photos] == ["x"]
    assert [Path(problem.photo).name for problem in problems] == ["other.csv"]


def test_find_photos_follows_links_once(tmp_path: Path) -> None:
    touch(tmp_path, "real/anna/1.png", "given/.keep")
    (tmp_path / "given/anna").symlink_to(tmp_path / "real/anna")
    (tmp_path / "given/again").symlink_to(tmp_path / "given")
    photos, problems = find_photos([tmp_path / "given"])
    assert [photo.name for photo in photos] == ["anna/1"]
    assert not problems


def test_find_photos_reports_bad_links(tmp_path: Path) -> None:
    touch(tmp_path, "in/x.jpg")
    (tmp_path / "in/loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "in/dangling.jpg").symlink_to("nowhere.jpg")
    photos, problems = find_photos([tmp_path / "in"])
    assert [photo.name for photo in photos] == ["x"]
    reasons = {Path(problem.photo).name: problem.reason for problem in problems}
    assert sorted(reasons) == ["dangling.jpg", "loop.jpg"]
    assert "cannot read" in reasons["loop.jpg"] and "symbolic links" in reasons["loop.jpg"]


def test_find_photos_reports_bad_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "good/x.jpg", "locked/y.jpg")
    (tmp_path / "empty").mkdir()
    scandir = os.scandir

    def guarded(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    photos, problems = find_photos([tmp_path / name for name in ("gone", "empty", "locked", "good")])
    assert [photo.name for photo in photos] == ["x"]
    assert [Path(problem.photo).name for problem in problems] == ["gone", "empty", "locked"]
    needles = ("no photo or folder at", "it holds no files", "locked (Permission denied)")
    for problem, needle in zip(problems, needles, strict=True):
        assert needle in problem.reason


def test_process_photos_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list.csv"
    assert process_photos("mask", (PHOTOS, []), OutcomeFile(path), succeed) == 0
    row = {"photo": "in/a.jpg", "face": "1", "status": "done", "reason": "", "output": "out/a.png", "score": "0.5"}
    assert read_table(path)[0] == row
    assert capsys.readouterr().out == f"deocc mask: 4 of 4 done: see {path}\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no face"),
        FileNotFoundError("gone"),
        ImportError("lacking"),
        RuntimeError("two\nlines"),
        MemoryError(),
    ],
)
def test_process_photos_leaves_one_out(error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list.csv"
    problem = Outcome("nowhere", "no photo at nowhere")
    assert process_photos("mask", (PHOTOS, [problem]), OutcomeFile(path), failing_at("b", error)) == 1
    reason = " ".join(str(error).split()) or "in/b.jpg: MemoryError"
    rows = read_table(path)
    assert [row["photo"] for row in rows] == ["nowhere", *(str(photo.path) for photo in PHOTOS)]
    assert [row["status"] for row in rows] == ["left out", "done", "left out", "done", "done"]
    assert rows[2]["reason"] == reason
    told = capsys.readouterr()
    assert told.err.splitlines() == ["deocc: no photo at nowhere", f"deocc: {reason}"]
    assert told.out == f"deocc mask: 3 of 5 done, 2 left out: see {path}\n"


def test_process_photos_stops_on_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Image.Image.save

    def save(self: Image.Image, target: Path, **options: object) -> None:
        if self.width == 5:
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, target, **options)  # type: ignore[arg-type]

    def work(photo: FoundPhoto) -> list[Outcome]:
        save_png(tmp_path / f"{photo.name}.png", np.zeros((4, 5 if photo.name == "c" else 4, 3), np.uint8))
        return succeed(photo)

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OutputError, match=r"^cannot write .*No space left.*; stopped after 2 of 4 photos"):
        process_photos("mask", (PHOTOS, []), OutcomeFile(tmp_path / "list.csv"), work, as_json=True)
    rows = read_table(tmp_path / "list.csv")
    assert [row["status"] for row in rows] == ["done", "done", "left out", "left out"]
    assert "No space left on device" in rows[3]["reason"]
    told = capsys.readouterr()
    assert told.out == told.err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "list.csv"]  # no half file


def test_process_photos_reports_an_unwritable_table(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/file/list.csv .* stopped after 4 of 4 photos"):
        process_photos("mask", (PHOTOS, []), OutcomeFile(tmp_path / "file/list.csv"), succeed)


def test_process_photos_keeps_both_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A photo may be left out of the gallery and be identified."""
    problem = Outcome("in/b.jpg", "gallery: shows nearly the same face")
    for _ in range(2):
        found = PHOTOS, [problem]
        assert process_photos("identify", found, OutcomeFile(tmp_path / "list.csv"), succeed, as_json=True) == 1
        for rows in (json.loads(capsys.readouterr().out), read_table(tmp_path / "list.csv")):
            states = [(row["photo"], row["status"]) for row in rows if row["photo"] == problem.photo]
            assert states == [(problem.photo, "left out"), (problem.photo, "done")]
            assert len(rows) == 5


def test_process_photos_keeps_rows_on_interrupt(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    with pytest.raises(KeyboardInterrupt):
        process_photos("mask", (PHOTOS, []), OutcomeFile(path), failing_at("c", KeyboardInterrupt()))
    assert [row["photo"] for row in read_table(path)] == ["in/a.jpg", "in/b.jpg"]


def test_process_photos_writes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_WRITE_INTERVAL", 0.0)
    monkeypatch.setattr(outputs, "_PAUSE", 0)
    path = tmp_path / "list.csv"
    seen = []

    def work(photo: FoundPhoto) -> list[Outcome]:
        seen.append(len(read_table(path)) if path.exists() else 0)
        return succeed(photo)

    process_photos("mask", (PHOTOS, []), OutcomeFile(path), work)
    assert seen == [0, 1, 2, 3]


def test_process_photos_prints_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work(photo: FoundPhoto) -> list[Outcome]:
        warnings.warn(f"{photo.name}: second detector", stacklevel=1)
        return succeed(photo)

    assert process_photos("mask", (PHOTOS[:2], []), OutcomeFile(tmp_path / "list.csv"), work) == 0
    assert capsys.readouterr().err.splitlines() == ["deocc: a: second detector", "deocc: b: second detector"]


def test_outcome_file_merges_runs(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    first = OutcomeFile(path)
    hand = Outcome("a", output="a-hand.png", face=1, details={"kind": "hand"})
    first.replace("a", [Outcome("a", output="a-cloth.png", face=1), hand])
    first.replace("b", [Outcome("b", 'no face, "really"\n')])
    first.write()
    second = OutcomeFile(path)
    assert second.rows("a")[1] == hand
    second.replace("a", [Outcome("a", output="a-hand.png", face=2)])
    second.replace("b", [Outcome("b", output="b.png")])
    second.write()
    with path.open(newline="") as file:
        rows = [(row["photo"], row["output"], row["face"], row["status"]) for row in csv.DictReader(file)]
    assert rows == [("a", "a-cloth.png", "1", "done"), ("a", "a-hand.png", "2", "done"), ("b", "b.png", "", "done")]


def test_outcome_file_keeps_types(tmp_path: Path) -> None:
    """A repeated command prints the same JSON; a person may be called "12"."""
    face, points, matrix = torch.zeros(3, 8, 8), torch.zeros(5, 2), torch.zeros(2, 3)
    found = PhotoFace(face, points, matrix, np.arange(4.0), 1.0, "mtcnn", 2, 3, 90)
    details = {"kind": "12", "person": "0.5", "seed": 2**60, "covered_pixels": 7, "visible": 1.0, **found.details}
    row = Outcome("a", output="a.png", face=1, details=details)
    table = OutcomeFile(tmp_path / "list.csv")
    for _ in range(2):
        table.replace("a", [row])
        table.write()
        table = OutcomeFile(tmp_path / "list.csv")
        assert json.dumps(table.rows("a")[0].row) == json.dumps(row.row)


def test_outcome_file_reads_unquoted_tables(tmp_path: Path) -> None:
    """As they were written before."""
    (tmp_path / "list.csv").write_text('photo,face,status,reason,output,kind\na b,1,done,,a.png,"x,y"\n')
    row = Outcome("a b", "", 1, "a.png", {"kind": "x,y"})
    assert OutcomeFile(tmp_path / "list.csv").all_rows() == [row]


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9.jpg"), "a\rb.jpg", "a\nb.jpg", "a\r\nb.jpg", "a,b.jpg"])
def test_outcome_file_keeps_unusual_names(name: str, tmp_path: Path) -> None:
    table = OutcomeFile(tmp_path / "list.csv")
    table.replace(name, [Outcome(name, "no face")])
    table.write()
    assert OutcomeFile(tmp_path / "list.csv").rows(name) == [Outcome(name, "no face")]


@pytest.mark.parametrize(
    "content", [b"", b"name,age\nx,3\n", b"\xff\xfe\x00\x00", b"photo,face,status,reason,output\na,one,done,,\n"]
)
def test_outcome_file_keeps_other_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no list of an earlier run"):
        OutcomeFile(path)
    assert path.read_bytes() == content
