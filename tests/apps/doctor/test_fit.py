"""`deocc doctor` on a run: what it is, and a warning for every way in which it does not fit the data at hand."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import deocc.detection
from deocc import runs
from deocc.callbacks.calibration import write_thresholds
from deocc.commands.doctor.data import checkpoint_checks as checks
from deocc.commands.doctor.data import measure, spread
from deocc.commands.doctor.finding import Finding, examine
from deocc.data import FolderFaces, OrlFaces
from deocc.detection import Detector
from deocc.geometry import TEMPLATES, similarity_transform, warp
from deocc.inference import model_folder
from deocc.inference.model_folder import face_contract, load, write_model
from tests.apps.real_model import calibration


def _look(place: Path | None, data: Path | None = None) -> list[Finding]:
    return [finding for check in checks(place, data) for finding in examine(check)]


def _levels(findings: list[Finding], part: str) -> list[str]:
    return [finding.level for finding in findings if part in str(finding)]


@pytest.fixture
def detector(dlib_detector: Detector) -> Detector:
    return dlib_detector


@pytest.fixture(autouse=True)
def _read_once(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector's 100 MB of weights are not read for every check."""
    monkeypatch.setattr(deocc.detection, "create_detector", lambda name: detector)


def _crop(index: int, template: str, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    faces = OrlFaces()
    image = torch.tensor(faces.image(index)).permute(2, 0, 1).float()[None]
    matrix = similarity_transform(torch.tensor(faces.landmarks[index]).float(), TEMPLATES[template].tensor(size))
    return warp(image, matrix, size)[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Crops as ArcFace's, of twelve people."""
    for index in range(0, 240, 20):
        path = tmp_path / f"faces/person{index}/0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(_crop(index, "arcface", 112)).save(path)
    return tmp_path / "faces"


@pytest.fixture
def run(stage2: Path, tmp_path: Path) -> Path:
    shutil.copytree(stage2, tmp_path / "run")
    return tmp_path / "run"


def _record(run: Path, **facts: object) -> None:
    (run / runs.RESULTS).write_text(json.dumps({"data": "OrlFaces", "size": 64, **facts}))


def _name_face_set(run: Path, **settings: object) -> None:
    config = yaml.safe_load((run / runs.CONFIG).read_text())
    config["data"]["face_set"] = {"class_path": "deocc.data.FolderFaces", "init_args": settings}
    (run / runs.CONFIG).write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("template", ["arcface", "dlib", "canonical"])
def test_the_template_of_crops_is_found(template: str, detector: Detector) -> None:
    fit = measure((_crop(index, template, 112) for index in range(0, 400, 70)), detector)
    assert fit is not None and fit.nearest == template and fit.is_aligned
    assert not fit.contradicts(template)
    assert fit.contradicts("dlib" if template != "dlib" else "arcface")


def test_uncropped_photos_are_aligned_to_no_template(detector: Detector) -> None:
    fit = measure((OrlFaces().image(index) for index in range(0, 400, 70)), detector)
    assert fit is not None and not fit.is_aligned
    assert measure([np.zeros((112, 112, 3), np.uint8)], detector) is None


def test_files_are_spread_from_the_first_to_the_last() -> None:
    paths = [Path(str(number)) for number in range(100)]
    assert spread(paths, 3) == [paths[0], paths[50], paths[99]]
    assert spread(paths[:2], 12) == paths[:2]


def test_without_a_run_a_command_that_trains_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_folder, "PRETRAINED", tmp_path / "pretrained")
    (finding,) = _look(None)
    assert finding.level == "warning" and finding.remedy.startswith("deocc fit")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained/config.json").touch()
    (finding,) = _look(None)
    assert finding.level == "OK" and "use the pretrained model" in finding.what


def test_a_missing_or_damaged_checkpoint_is_wrong(run: Path, tmp_path: Path) -> None:
    assert [finding.level for finding in _look(tmp_path / "nothing")] == ["wrong"]
    runs.find_checkpoint(run).write_bytes(b"nothing")
    assert "wrong" in _levels(_look(run), "train the run again")


def test_stages_are_told_apart_and_missing_thresholds_are_a_warning(stage1: Path, run: Path) -> None:
    assert _levels(_look(stage1), "stage inpainting") == ["OK"]
    findings = _look(run)
    assert _levels(findings, "stage distillation") == ["OK"]
    assert _levels(findings, "no thresholds") == ["warning"]
    write_thresholds(runs.find_checkpoint(run), calibration())
    assert _levels(_look(run), "no thresholds") == []


def test_training_data_are_compared_by_their_fingerprint(run: Path) -> None:
    assert _levels(_look(run), "no fingerprint is recorded") == ["OK"]
    _record(run, training_data_hash=OrlFaces().fingerprint("train"))
    assert _levels(_look(run), "was trained on the people at hand") == ["OK"]
    _record(run, training_data_hash="0" * 16)
    assert _levels(_look(run), f"the run recorded {'0' * 16}") == ["warning"]


def test_training_data_are_looked_for_in_the_folder_that_is_given(run: Path, folder: Path) -> None:
    _name_face_set(run, root=str(folder.parent / "moved"), aligned="arcface", seed=1)
    _record(run, data="FolderFaces", training_data_hash=FolderFaces(str(folder), seed=1).fingerprint("train"))
    assert _levels(_look(run), "not at hand") == ["warning"]
    findings = _look(run, folder)
    assert _levels(findings, "was trained on the people at hand") == ["OK"]
    next(folder.rglob("*.png")).unlink()
    assert _levels(_look(run, folder), "the run recorded") == ["warning"]


def test_crops_of_another_alignment_than_the_run_names_are_a_warning(run: Path, folder: Path) -> None:
    _name_face_set(run, root=str(folder), seed=1, aligned="arcface")
    assert _levels(_look(run, folder), "crops are aligned as arcface") == ["OK"]
    _name_face_set(run, root=str(folder), seed=1, aligned="dlib")
    (finding,) = [finding for finding in _look(run, folder) if "the run names dlib" in finding.what]
    assert (finding.level, finding.remedy) == ("warning", "--data.face_set.init_args.aligned arcface")


def test_another_size_or_template_than_the_model_was_trained_with_is_a_warning(run: Path) -> None:
    _record(run, size=64)
    assert _levels(_look(run), "the size of the faces differs") == []
    _record(run, size=96)
    assert _levels(_look(run), "config.yaml 64, test 96") == ["warning"]
    model = run / "model"
    model.mkdir()
    face = face_contract(64)
    (model / "config.json").write_text(json.dumps({"face": face}))
    assert _levels(_look(run), "the model's template is this deocc's, at 64 pixels") == ["OK"]
    face["template"][2][1] += 1.5
    (model / "config.json").write_text(json.dumps({"face": face}))
    assert _levels(_look(run), "up to 1.50 pixels") == ["warning"]


def test_a_model_folder_is_read_and_an_old_or_damaged_one_is_told(run: Path) -> None:
    pipeline = load(run)
    model = run / "model"
    write_model(model, pipeline.config, pipeline.network, "card")
    assert _levels(_look(run), f"{model}: whole") == ["OK"]
    assert _levels(_look(model), "faces of 64 pixels") == ["OK"]
    os.utime(model / "config.json", (0, 0))
    assert _levels(_look(run), "is older than") == ["warning"]
    (model / "model.safetensors").write_bytes(b"cut")
    assert _levels(_look(run), "no safetensors file") == ["wrong"]
