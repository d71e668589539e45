"""`deocc doctor` on data sets and on the alignment of crops."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deocc.commands.doctor.data as data_checks
from deocc.commands.doctor.data import check_alignment, measure_alignment, spread
from deocc.commands.doctor.findings import Context, Finding, run_check
from deocc.data import OrlFaces
from deocc.detection import Detector
from tests.commands.doctor.crops import draw_crop, write_crops
from tests.fake_sets.ar import write_ar
from tests.fake_sets.celeba import write_celeba
from tests.fake_sets.lfw import write_lfw


def find(context: Context | None = None) -> list[Finding]:
    return [finding for check in data_checks.CHECKS for finding in run_check(check, context or Context())]


def test_data_sets_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (finding,) = find()
    assert finding.level == "OK" and "no data sets" in finding.text
    write_celeba(tmp_path / "data/celeba")
    write_lfw(tmp_path / "data/lfw", folds=2, pairs=2)
    write_ar(tmp_path / "data/ar")
    findings = find()
    assert [finding.level for finding in findings] == ["OK", "OK", "OK"] and "LFW" in findings[1].text
    next((tmp_path / "data/lfw").rglob("*_0001.jpg")).unlink()
    incomplete = find()[1]
    assert incomplete.level == "wrong" and "1 of" in incomplete.text


def test_given_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = find(Context(data=tmp_path / "nothing"))[-1]
    assert missing.level == "wrong" and "no folder" in missing.text
    given = find(Context(data=write_crops(tmp_path / "faces")))[-1]
    assert given.level == "OK" and "12 images of 12 people" in given.text


@pytest.mark.parametrize("template", ["arcface", "dlib", "canonical"])
def test_measure_alignment_finds_template(template: str, dlib_detector: Detector) -> None:
    crops = (draw_crop(index, template, 112) for index in range(0, 400, 70))
    alignment = measure_alignment(crops, dlib_detector)
    assert alignment is not None and alignment.nearest == template and alignment.distances[template] < 0.2
    assert not alignment.contradicts(template)
    assert alignment.contradicts("dlib" if template != "dlib" else "arcface")


def test_measure_alignment_of_photos(dlib_detector: Detector) -> None:
    alignment = measure_alignment((OrlFaces().image(index) for index in range(0, 400, 70)), dlib_detector)
    assert alignment is not None and min(alignment.distances.values()) > 0.2
    assert measure_alignment([np.zeros((112, 112, 3), np.uint8)], dlib_detector) is None


def test_check_alignment(tmp_path: Path, dlib_detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_checks, "create_detector", lambda name: dlib_detector)
    assert check_alignment(tmp_path / "nothing", None) is None
    for person in ("a", "b"):
        (tmp_path / person).mkdir()
        Image.fromarray(np.zeros((112, 112, 3), np.uint8)).save(tmp_path / person / "0.png")
    no_face = check_alignment(tmp_path, None)
    assert no_face is not None and no_face.level == "warning" and "no face is found in 2" in no_face.text
    for person in ("a", "b"):
        Image.fromarray(OrlFaces().image(0)).save(tmp_path / person / "0.png")
    photos = check_alignment(tmp_path, None)
    assert photos is not None and photos.level == "warning" and "not aligned to any known template" in photos.text


def test_spread() -> None:
    paths = [Path(str(number)) for number in range(100)]
    assert spread(paths, 3) == [paths[0], paths[50], paths[99]]
    assert spread(paths[:2], 12) == paths[:2]
