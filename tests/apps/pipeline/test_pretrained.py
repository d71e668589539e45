"""The pretrained model: how it is installed, that a wheel holds it, and that it is the default."""

import importlib
import json
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deocc
from deocc.commands.arguments import load_model
from deocc.data import OrlFaces
from deocc.geometry import align
from deocc.inference import model_folder as folder
from deocc.inference import model_folder as install_pretrained
from tests.apps.real_model import model, untested_model
from tests.conftest import ROOT

__all__ = ["model", "untested_model"]  # pytest finds its fixtures by name

FILES = ["README.md", "config.json", "model.safetensors"]
SHIPPED = folder.PRETRAINED
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
OFFLINE = """
import socket
def refuse(*_): raise OSError("this program must not use a network")
socket.socket.connect = refuse
import deocc, deocc.cli
print(deocc.__file__)
deocc.cli.main()
"""


@pytest.fixture
def shipped(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the pretrained model."""
    monkeypatch.setattr(folder, "PRETRAINED", model)
    return model


@pytest.fixture(scope="module")
def installed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of a wheel that was built with a stand-in for the pretrained model."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("building the package needs setuptools 77 or later")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("installed")
    unwanted = shutil.ignore_patterns("__pycache__", "pretrained")
    shutil.copytree(ROOT / "deocc", tree / "deocc", ignore=unwanted)
    shutil.copytree(model, tree / "deocc/pretrained")
    shutil.copytree(ROOT / "configs", tree / "configs")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(tree)], cwd=tree, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(tree / built.stdout.split()[-1]) as wheel:
        wheel.extractall(out)
    return out


def test_a_wheel_holds_the_pretrained_model(model: Path, installed: Path) -> None:
    packed = installed / "deocc/pretrained"
    assert sorted(path.name for path in packed.iterdir()) == FILES
    assert all((packed / name).read_bytes() == (model / name).read_bytes() for name in FILES)


def test_an_installed_wheel_compares_photos_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    faces = OrlFaces()
    for name, index in (("a", 200), ("b", 202)):  # two photos of one person
        crop = align(faces.image(index), faces.landmarks[index], 112)[0]
        pixels = ((crop + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, "verify", "../a.png", "../b.png", "--aligned", "canonical", "--json"],
        cwd=tmp_path / "empty",
        env={"PYTHONPATH": str(installed), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, answer = done.stdout.split("\n", 1)
    assert Path(where) == installed / "deocc/__init__.py"
    assert (
        done.stderr
        == f"deocc: using the pretrained model, {installed / 'deocc/pretrained'}; --checkpoint takes another\n"
    )
    assert json.loads(answer)["decision"] == "same"


def test_load_without_a_source_takes_the_pretrained_model(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, expected = deocc.load(), deocc.load(shipped)
    assert found.config == expected.config and found.thresholds == expected.thresholds is not None
    face = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 112, 112))).float()
    assert torch.equal(found.embed_faces(face), expected.embed_faces(face))
    assert deocc.load(device="cpu").device.type == "cpu"


@pytest.mark.parametrize(
    ("command", "words"),
    {
        "verify": ["a.jpg", "b.jpg"],
        "identify": ["gallery", "photos"],
        "predict": ["photos", "--out", "out"],
        "demo": [],
        "export": ["--to", "onnx", "--out", "a.onnx"],
    }.items(),
)
def test_every_command_takes_the_pretrained_model_by_default(
    command: str, words: list[str], shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = importlib.import_module(
        f"deocc.commands.{command}" + (".command" if command in ("demo", "ablate", "doctor") else "")
    )._parser()
    pipeline = load_model(parser.parse_args([*words, "--device", "cpu"]))
    assert pipeline.config == deocc.load(shipped).config
    assert capsys.readouterr().err == f"deocc: using the pretrained model, {shipped}; --checkpoint takes another\n"


def test_load_without_a_pretrained_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "PRETRAINED", tmp_path / "pretrained")
    with pytest.raises(
        FileNotFoundError, match=r"no pretrained model \(no config\.json in .*pretrained\): name another one"
    ) as error:
        deocc.load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("inside", ["model", "."])
def test_a_tested_run_is_installed(
    model: Path, tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "run" / inside, dirs_exist_ok=True)
    target = tmp_path / "package/pretrained"
    install_pretrained.main([str(tmp_path / "run"), "--target", str(target)])
    assert sorted(path.name for path in target.iterdir()) == FILES
    size = (model / folder.WEIGHTS).stat().st_size / 1e6
    assert f"pretrained model: {target} (model.safetensors {size:.2f} MB" in capsys.readouterr().out
    monkeypatch.setattr(folder, "PRETRAINED", target)
    assert deocc.load().config == deocc.load(model).config


def test_a_model_that_is_too_large_untested_or_incomplete_is_not_installed(
    model: Path, untested_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = install_pretrained.install_pretrained
    with pytest.raises(ValueError, match="has no thresholds for any condition"):
        install(untested_model, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in .*deocc test --checkpoint"):
        install(tmp_path, tmp_path / "out")
    monkeypatch.setattr(install_pretrained, "MOST_BYTES", 11_000_000)
    with pytest.raises(ValueError, match=r"has 11\.\d MB, at most 11 MB are allowed"):
        install(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not (SHIPPED / folder.CONFIG).is_file(), reason="this checkout has no pretrained model")
def test_the_pretrained_model_of_this_checkout_is_complete() -> None:
    pipeline = deocc.load()
    assert sorted(path.name for path in SHIPPED.iterdir()) == FILES
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= install_pretrained.MOST_BYTES
    assert pipeline.thresholds is not None
    for row in pipeline.thresholds.thresholds.values():
        measured = {entry.target: entry.test for entry in row}
        for target in (1e-2, 1e-3):
            test = measured[target]
            assert test is not None and test.interval is not None
            assert 0.5 * target <= test.false_accept_rate <= 2 * target
    card = (SHIPPED / folder.CARD).read_text(encoding="utf-8")
    for part in ("It is for research.", "must not be used", "under CC0", "Labeled Faces in the Wild"):
        assert part in card
