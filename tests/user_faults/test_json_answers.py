"""With `--json`, a photo command prints one JSON value whatever happens; exit codes tell answers from errors."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deocc import cli
from tests.fake_sets.faces import save_face

pytestmark = pytest.mark.usefixtures("photos")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two photos of person 0 and one of person 9 in the working folder, one of each in the folder `people`."""
    monkeypatch.chdir(tmp_path)
    for name, person, image in (("a1", 0, 0), ("a2", 0, 1), ("b", 9, 0)):
        save_face(tmp_path / f"{name}.png", person, image, 200, 200)
    for person in (0, 9):
        (tmp_path / f"people/person{person}").mkdir(parents=True)
        save_face(tmp_path / f"people/person{person}/1.png", person, 2, 200, 200)


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    """Run a command with `--json`; return the exit code and the value that it printed."""
    try:
        cli.main([*words, "--json"])
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("verify missing.png b.png", "file_not_found", "missing.png"),
        ("verify a1.png", "value", "required: B"),
        ("verify a1.png b.png --no-such-option", "value", "--no-such-option"),
        ("verify a1.png b.png --checkpoint nowhere", "file_not_found", "no model at nowhere"),
        ("identify nowhere a1.png", "file_not_found", "no gallery at nowhere"),
        ("mask a1.png --out out --kind veil", "value", "unknown kind of mask 'veil'"),
        ("predict a1.png --out out --checkpoint nowhere", "file_not_found", "no model at nowhere"),
    ],
)
def test_errors(words: str, code: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, found = answer(capsys, *words.split())
    assert exit_code == 2
    assert found["error"]["code"] == code and message in found["error"]["message"]
    assert "\n" not in found["error"]["message"]


def test_decisions(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for other, decision, expected in (("a2.png", "same", 0), ("b.png", "different", 1)):
        code, found = answer(capsys, "verify", "a1.png", other, "--checkpoint", str(model))
        assert (code, found["decision"]) == (expected, decision)
        assert found["photo_b"] == other and found["reason"] and found["found_b"]["detector"] == "mtcnn"


@pytest.mark.parametrize("command", ["identify people", "mask", "predict"])
def test_repeated_commands(command: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of the earlier run are printed with the same types."""
    words = [*command.split(), "a1.png", "missing.png"]
    words += ["--out", "out"] if "identify" not in command else []
    words += ["--checkpoint", str(model)] if command != "mask" else ["--kind", "surgical"]
    first = answer(capsys, *words)
    assert answer(capsys, *words) == first


def test_full_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    code, found = answer(capsys, "mask", "a1.png", "a2.png", "--out", "out")
    assert (code, found["error"]["code"]) == (2, "output")
    assert "(No space left on device)" in found["error"]["message"]
    assert "stopped after 0 of 2 photos" in found["error"]["message"]


@pytest.mark.parametrize("command", ["identify people", "mask", "predict"])
def test_rows_of_several_photos(command: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*command.split(), "a1.png", "missing.png"]
    words += ["--out", "out"] if "identify" not in command else []
    words += ["--checkpoint", str(model)] if "mask" not in command else ["--kind", "surgical"]
    code, rows = answer(capsys, *words)
    assert code == 1 and {row["photo"] for row in rows} == {"a1.png", "missing.png"}
    (lost,) = [row for row in rows if row["photo"] == "missing.png"]
    assert lost["status"] != "done" and "missing.png" in lost["reason"]
