import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deocc.inference.outputs import Outcome, OutcomeFile, OutputError, lock_folder, read_mark, save_png

PIXELS = np.zeros((2, 2), np.uint8)


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


def test_outcome_file_keeps_undecodable_names(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
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


def test_read_mark_returns_the_mark(tmp_path: Path) -> None:
    save_png(tmp_path / "deep/x.png", PIXELS, "abc")
    assert read_mark(tmp_path / "deep/x.png") == "abc"
    Image.new("L", (2, 2)).save(tmp_path / "y.png")
    (tmp_path / "z.png").write_text("no image")
    assert [read_mark(tmp_path / name) for name in ("y.png", "z.png", "gone.png")] == [None, None, None]


def test_save_png_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file/x\.png"):
        save_png(tmp_path / "file/x.png", PIXELS)


def test_save_png_with_a_long_name(tmp_path: Path) -> None:
    save_png(tmp_path / f"{'a' * 230}.png", PIXELS)
    assert not issubclass(ValueError, OutputError)  # which would stop the batch
    with pytest.raises(ValueError, match=r"is too long for this disk: rename the photo$"):
        save_png(tmp_path / f"{'a' * 300}.png", PIXELS)


def test_lock_folder_excludes_a_second_command(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path / "out"),
        pytest.raises(ValueError, match="another deocc is at work in"),
        lock_folder(tmp_path / "out"),
    ):
        pass
    with lock_folder(tmp_path / "out"), lock_folder(tmp_path / "other"):
        pass
