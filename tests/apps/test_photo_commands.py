"""The README's commands for photos, as they stand there, on real faces and with a model that recognises them."""

import shlex
from pathlib import Path

import pytest
from PIL import Image

from tests.apps.real_model import detector, model, read_once
from tests.conftest import run_deocc
from tests.fake_sets.faces import orl_face
from tests.test_readme import COMMANDS

__all__ = ["detector", "model", "read_once"]  # pytest finds its fixtures by name

PHOTOS = sorted(line for line in COMMANDS if line.split()[1] in {"mask", "predict", "verify", "identify", "export"})
WITHOUT_MODEL = "mask"


def _photo(path: Path, person: int, image: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(orl_face(person, image, 240, 260)[0]).save(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a person's two photos, a folder of photos, and a gallery of three."""
    _photo(tmp_path / "a.jpg", 0, 0)
    _photo(tmp_path / "b.jpg", 0, 1)
    for person in range(3):
        _photo(tmp_path / f"gallery/person{person}/1.jpg", person, 2)
        _photo(tmp_path / f"photos/{person}.jpg", person, 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", [line for line in PHOTOS if line != "deocc predict"])
def test_a_command_of_the_readme_runs(
    command: str, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command)[1:]
    own = [] if words[0] == WITHOUT_MODEL else ["--checkpoint", str(model)]
    run_deocc(*words, *own)
    _check(words[0], folder, capsys.readouterr().out)


def _check(command: str, folder: Path, said: str) -> None:
    if command == "verify":
        assert said.startswith("same: ")
    elif command == "identify":
        rows = (folder / "identified.csv").read_text().splitlines()
        assert [f"person{number}" in row for number, row in enumerate(rows[1:4])] == [True] * 3
    else:
        made = {
            "mask": "masked/masked_photos/0*.png",
            "predict": "predicted/contact_sheets/001.png",
            "export": "model.onnx",
        }[command]
        assert [path.stat().st_size > 0 for path in folder.glob(made)] == [True]
