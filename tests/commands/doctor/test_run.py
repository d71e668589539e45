"""`deocc doctor` on a run: its state, and a warning for each way in which it does not match the data."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

import deocc.commands.doctor.data as data_checks
from deocc import runs
from deocc.commands.doctor.findings import Context, Finding, run_check
from deocc.commands.doctor.run import CHECKS
from deocc.data import FolderFaces, OrlFaces
from deocc.detection import Detector
from deocc.evaluation.thresholds import write_thresholds
from deocc.inference import model_folder
from deocc.inference.model_folder import face_contract, load, write_model
from tests.commands.demo.conftest import calibration
from tests.commands.doctor.crops import write_crops


def find(place: Path | None, data: Path | None = None) -> list[Finding]:
    return [finding for check in CHECKS for finding in run_check(check, Context(place, data))]


def levels(findings: list[Finding], part: str) -> list[str]:
    return [finding.level for finding in findings if part in str(finding)]


@pytest.fixture(autouse=True)
def _read_once(dlib_detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not read the detector's 100 MB of weights in every check."""
    monkeypatch.setattr(data_checks, "create_detector", lambda name: dlib_detector)


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


def test_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_folder, "PRETRAINED", tmp_path / "pretrained")
    (finding,) = find(None)
    assert finding.level == "warning" and finding.remedy.startswith("deocc fit")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained/config.json").touch()
    (finding,) = find(None)
    assert finding.level == "OK" and "use the pretrained model" in finding.text


def test_missing_or_damaged_checkpoint(run: Path, tmp_path: Path) -> None:
    assert [finding.level for finding in find(tmp_path / "nothing")] == ["wrong"]
    runs.find_checkpoint(run).write_bytes(b"nothing")
    assert "wrong" in levels(find(run), "train the run again")


def test_stages_and_thresholds(stage1: Path, run: Path) -> None:
    assert levels(find(stage1), "stage inpainting") == ["OK"]
    findings = find(run)
    assert levels(findings, "stage distillation") == ["OK"]
    assert levels(findings, "no thresholds") == ["warning"]
    write_thresholds(runs.find_checkpoint(run), calibration())
    assert levels(find(run), "no thresholds") == []


def test_training_data_fingerprint(run: Path) -> None:
    assert levels(find(run), "no fingerprint is recorded") == ["OK"]
    record(run, training_data_hash=OrlFaces().fingerprint("train"))
    assert levels(find(run), "was trained on the people found here") == ["OK"]
    record(run, training_data_hash="0" * 16)
    assert levels(find(run), f"the run recorded {'0' * 16}") == ["warning"]


def test_training_data_in_given_folder(run: Path, folder: Path) -> None:
    name_face_set(run, root=str(folder.parent / "moved"), aligned="arcface", seed=1)
    record(run, data="FolderFaces", training_data_hash=FolderFaces(str(folder), seed=1).fingerprint("train"))
    assert levels(find(run), "not available") == ["warning"]
    findings = find(run, folder)
    assert levels(findings, "was trained on the people found here") == ["OK"]
    next(folder.rglob("*.png")).unlink()
    assert levels(find(run, folder), "the run recorded") == ["warning"]


def test_alignment_contradicts_run(run: Path, folder: Path) -> None:
    name_face_set(run, root=str(folder), seed=1, aligned="arcface")
    assert levels(find(run, folder), "crops are aligned as arcface") == ["OK"]
    name_face_set(run, root=str(folder), seed=1, aligned="dlib")
    (finding,) = [finding for finding in find(run, folder) if "the run names dlib" in finding.text]
    assert (finding.level, finding.remedy) == ("warning", "--data.face_set.init_args.aligned arcface")


def test_other_size_or_template(run: Path) -> None:
    record(run, size=64)
    assert levels(find(run), "the size of the faces differs") == []
    record(run, size=96)
    assert levels(find(run), "config.yaml 64, test 96") == ["warning"]
    model = run / "model"
    model.mkdir()
    face = face_contract(64)
    (model / "config.json").write_text(json.dumps({"face": face}))
    assert levels(find(run), "template is the one of this version, at 64 pixels") == ["OK"]
    face["template"][2][1] += 1.5
    (model / "config.json").write_text(json.dumps({"face": face}))
    assert levels(find(run), "up to 1.50 pixels") == ["warning"]


def test_model_folder_complete_old_damaged(run: Path) -> None:
    pipeline = load(run)
    model = run / "model"
    write_model(model, pipeline.config, pipeline.network, "card")
    assert levels(find(run), f"{model}: complete") == ["OK"]
    assert levels(find(model), "faces of 64 pixels") == ["OK"]
    os.utime(model / "config.json", (0, 0))
    assert levels(find(run), "is older than") == ["warning"]
    (model / "model.safetensors").write_bytes(b"cut")
    assert levels(find(run), "no safetensors file") == ["wrong"]
