"""The pretrained model is the default of every command, and part of a wheel."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import deocc
from deocc.commands.arguments import PARSERS
from deocc.commands.model import load_model
from deocc.data import OrlFaces
from deocc.geometry import align
from deocc.inference import model_folder
from tests.conftest import ROOT

_BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
_OFFLINE = """
import socket
def refuse(*_): raise OSError("this program must not use a network")
socket.socket.connect = refuse
import deocc, deocc.cli
print(deocc.__file__)
deocc.cli.main()
"""


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("verify", ["a.jpg", "b.jpg", "--device", "cpu"]),
        ("identify", ["gallery", "photos", "--device", "cpu"]),
        ("predict", ["photos", "--out", "out", "--device", "cpu"]),
        ("demo", ["--device", "cpu"]),
        ("export", ["--to", "onnx", "--out", "a.onnx"]),
    ],
)
def test_commands_use_the_pretrained_model(
    command: str, argv: list[str], model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_folder, "PRETRAINED", model)
    pipeline = load_model(PARSERS[command]().parse_args(argv))
    assert pipeline.config == deocc.load(model).config
    assert capsys.readouterr().err == f"deocc: using the pretrained model, {model}; --checkpoint takes another\n"


def test_wheel_verifies_offline(model: Path, tmp_path: Path) -> None:
    tree, installed, empty = tmp_path / "tree", tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    for name in ("deocc", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "pretrained"))
    shutil.copytree(model, tree / "deocc/pretrained")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    built = subprocess.run([sys.executable, "-c", _BUILD, "."], cwd=tree, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(tree.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    names = {path.name for path in model.iterdir()}
    assert {path.name for path in (installed / "deocc/pretrained").iterdir()} == names
    assert all((installed / "deocc/pretrained" / name).read_bytes() == (model / name).read_bytes() for name in names)

    faces = OrlFaces()
    for name, index in (("a", 200), ("b", 202)):  # two photos of one person
        crop = align(faces.image(index), faces.landmarks[index], 112)[0]
        Image.fromarray(((crop + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    done = subprocess.run(
        [sys.executable, "-c", _OFFLINE, "verify", "../a.png", "../b.png", "--aligned", "canonical", "--json"],
        cwd=empty,
        env={"PYTHONPATH": str(installed), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, answer = done.stdout.split("\n", 1)
    assert Path(where) == installed / "deocc/__init__.py"
    pretrained = installed / "deocc/pretrained"
    assert done.stderr == f"deocc: using the pretrained model, {pretrained}; --checkpoint takes another\n"
    assert json.loads(answer)["decision"] == "same"
