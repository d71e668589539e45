from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deocc.inference.outputs import OutputError, WriteTimer, check_writable, lock_out, read_mark, save_png

PIXELS = np.zeros((2, 2), np.uint8)


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


def test_lock_out_excludes_a_second_command(tmp_path: Path) -> None:
    with (
        lock_out(tmp_path / "out"),
        pytest.raises(ValueError, match="another deocc writes to"),
        lock_out(tmp_path / "out"),
    ):
        pass
    with lock_out(tmp_path / "out"), lock_out(tmp_path / "other"):
        pass


def test_check_writable_finds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new/deep", "--out x")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^--out x: nothing can be written into .*/file: choose another folder$"):
        check_writable(tmp_path / "file/deep", "--out x")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match=f"nothing can be written into {tmp_path}:"):
        check_writable(tmp_path / "new/deep", "--out x")


def test_write_timer_follows_slow_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    timer, durations, ends = WriteTimer(2.0), iter((0.05, 3.0, 0.0, 0.0)), [0.0]

    def write() -> None:
        nonlocal now
        now += next(durations)
        ends.append(now)

    for writes, pause in enumerate((2, 2, 60, 2), 1):
        for moment, written in ((-0.1, writes), (0.1, writes + 1)):
            now = ends[writes - 1] + pause + moment
            timer.call_when_due(write)
            assert len(ends) == written
