"""Many photos: one row for every input, nothing stops the rest but a disk that takes no more, and the exit code tells."""

import csv
import errno
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deocc.inference import outputs as outcomes
from deocc.inference.batch import FoundPhoto, work_through
from deocc.inference.outputs import Outcome, OutcomeFile, OutputError, read_mark, save_png

_PHOTOS = [FoundPhoto(Path(f"in/{name}.jpg"), name) for name in "abcd"]


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _done(photo: FoundPhoto) -> list[Outcome]:
    return [Outcome(str(photo.path), face=1, output=f"out/{photo.name}.png", details={"score": 0.5})]


def _failing_at(name: str, error: BaseException) -> Callable[[FoundPhoto], Sequence[Outcome]]:
    def work(photo: FoundPhoto) -> list[Outcome]:
        if photo.name == name:
            raise error
        return _done(photo)

    return work


def test_all_done_is_exit_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list.csv"
    assert work_through("mask", (_PHOTOS, []), OutcomeFile(path), _done) == 0
    row = {"photo": "in/a.jpg", "face": "1", "status": "done", "reason": "", "output": "out/a.png", "score": "0.5"}
    assert _table(path)[0] == row
    assert capsys.readouterr().out == f"deocc mask: 4 of 4 done: see {path}\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no face"),
        FileNotFoundError("gone"),
        ImportError("lacking"),
        RuntimeError("of torch\nand lines"),
        MemoryError(),
    ],
)
def test_what_one_photo_lacks_is_one_line_and_one_row(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "list.csv"
    problem = Outcome("nowhere", "no photo at nowhere")
    assert work_through("mask", (_PHOTOS, [problem]), OutcomeFile(path), _failing_at("b", error)) == 1
    reason = " ".join(str(error).split()) or "in/b.jpg: MemoryError"
    assert [(row["photo"], row["status"]) for row in _table(path)] == [
        ("nowhere", "left out"),
        ("in/a.jpg", "done"),
        ("in/b.jpg", "left out"),
        ("in/c.jpg", "done"),
        ("in/d.jpg", "done"),
    ]
    assert _table(path)[2]["reason"] == reason
    told = capsys.readouterr()
    assert told.err.splitlines() == ["deocc: no photo at nowhere", f"deocc: {reason}"]
    assert told.out == f"deocc mask: 3 of 5 done, 2 left out: see {path}\n"


def test_a_full_disk_ends_the_work_with_rows_for_what_was_not_reached(
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
        return _done(photo)

    monkeypatch.setattr(Image.Image, "save", save)
    assert work_through("mask", (_PHOTOS, []), OutcomeFile(tmp_path / "list.csv"), work) == 1
    assert [row["status"] for row in _table(tmp_path / "list.csv")] == ["done", "done", "left out", "left out"]
    assert "No space left on device" in _table(tmp_path / "list.csv")[3]["reason"]
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("deocc: cannot write")
        and "No space left on device" in line
        and "stopped after 2 of 4 photos" in line
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "list.csv"]  # no half file


def test_where_not_even_the_list_can_be_written_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert work_through("mask", (_PHOTOS, []), OutcomeFile(tmp_path / "file/list.csv"), _done) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith(f"deocc: cannot write {tmp_path}/file/list.csv") for line in lines)


def test_an_interrupted_list_holds_what_was_done(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    with pytest.raises(KeyboardInterrupt):
        work_through("mask", (_PHOTOS, []), OutcomeFile(path), _failing_at("c", KeyboardInterrupt()))
    assert [row["photo"] for row in _table(path)] == ["in/a.jpg", "in/b.jpg"]


def test_the_list_is_kept_while_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_WRITE_EVERY", 0.0)
    path = tmp_path / "list.csv"
    seen = []

    def work(photo: FoundPhoto) -> list[Outcome]:
        seen.append(len(_table(path)) if path.exists() else 0)
        return _done(photo)

    work_through("mask", (_PHOTOS, []), OutcomeFile(path), work)
    assert seen == [0, 1, 2, 3]


def test_warnings_become_lines_and_leave_nothing_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work(photo: FoundPhoto) -> list[Outcome]:
        warnings.warn(f"{photo.name}: second detector", stacklevel=1)
        return _done(photo)

    assert work_through("mask", (_PHOTOS[:2], []), OutcomeFile(tmp_path / "list.csv"), work) == 0
    assert capsys.readouterr().err.splitlines() == ["deocc: a: second detector", "deocc: b: second detector"]


def test_rows_of_other_runs_stay_and_newer_ones_take_their_place(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    first = OutcomeFile(path)
    first.replace(
        "a",
        [
            Outcome("a", output="a-cloth.png", face=1),
            Outcome("a", output="a-hand.png", face=1, details={"kind": "hand"}),
        ],
    )
    first.replace("b", [Outcome("b", 'no face, "really"\n')])
    first.write()
    second = OutcomeFile(path)
    assert second.rows("a")[1] == Outcome("a", output="a-hand.png", face=1, details={"kind": "hand"})
    second.replace("a", [Outcome("a", output="a-hand.png", face=2)])
    second.replace("b", [Outcome("b", output="b.png")])
    second.write()
    assert [(row["photo"], row["output"], row["face"], row["status"]) for row in _table(path)] == [
        ("a", "a-cloth.png", "1", "done"),
        ("a", "a-hand.png", "2", "done"),
        ("b", "b.png", "", "done"),
    ]


def test_a_name_that_is_no_text_survives(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    table = OutcomeFile(tmp_path / "list.csv")
    table.replace(name, [Outcome(name, "no face")])
    table.write()
    assert OutcomeFile(tmp_path / "list.csv").rows(name) == [Outcome(name, "no face")]


@pytest.mark.parametrize(
    "content", [b"", b"name,age\nx,3\n", b"\xff\xfe\x00\x00", b"photo,face,status,reason,output\na,one,done,,\n"]
)
def test_a_file_that_is_no_such_list_is_not_touched(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no list of an earlier run"):
        OutcomeFile(path)
    assert path.read_bytes() == content


def test_a_mark_tells_what_a_file_was_made_from(tmp_path: Path) -> None:
    save_png(tmp_path / "deep/x.png", np.zeros((2, 2), np.uint8), "abc")
    assert read_mark(tmp_path / "deep/x.png") == "abc"
    Image.new("L", (2, 2)).save(tmp_path / "y.png")
    (tmp_path / "z.png").write_text("no image")
    assert [read_mark(tmp_path / name) for name in ("y.png", "z.png", "gone.png")] == [None, None, None]


def test_a_folder_that_is_a_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file/x\.png"):
        save_png(tmp_path / "file/x.png", np.zeros((2, 2), np.uint8))
