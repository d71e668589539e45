"""Common properties of all detectors: the order of detections, checks, weights files, and real faces."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deocc.detection import Detection, Detector, create_detector
from tests.fake_sets.faces import landmark_errors, orl_face

LARGEST_ERROR = {"dlib": 0.2, "mtcnn": 0.15}
PEOPLE = (0, 9, 17, 25, 33)


class Stub(Detector):
    """Finds faces of given sides and scores."""

    name = "stub"
    _sure_score = 0.7

    def __init__(self, *faces: tuple[float, float]) -> None:
        self._faces = faces

    def smallest_face(self, height: int, width: int) -> int:
        return 5

    def _find(self, image: NDArray[np.uint8]) -> Iterable[Detection]:
        for side, score in self._faces:
            yield Detection(np.array([5.0, 5, 5 + side, 5 + side]), np.zeros((5, 2)), score)


@pytest.fixture(params=LARGEST_ERROR)
def detector(request: pytest.FixtureRequest) -> Detector:
    detector: Detector = request.getfixturevalue(f"{request.param}_detector")
    return detector


@pytest.fixture(scope="session")
def mtcnn_detector() -> Detector:
    return create_detector("mtcnn")


@pytest.mark.parametrize(
    ("faces", "expected"),
    [
        (((87, 0.99), (104, 0.75)), [0.99, 0.75]),  # a large false alarm and a face
        (((40, 0.99), (120, 0.85)), [0.85, 0.99]),  # a bystander and a masked face in front
        (((200, 0.6), (50, 0.7), (60, 0.69)), [0.7]),  # unsure faces are reported only alone
        (((50, 0.65), (200, 0.6)), [0.6, 0.65]),
        ((), []),
    ],
)
def test_detections_are_ranked(faces: tuple[tuple[float, float], ...], expected: list[float]) -> None:
    found = Stub(*faces).detect(np.zeros((9, 9, 3), np.uint8))
    assert [face.score for face in found] == expected


@pytest.mark.parametrize("box", [(0, 0, -5, 10), (3, 3, 3, 3)])
def test_empty_box_has_no_prominence(box: tuple[float, ...]) -> None:
    assert Detection(np.array(box, float), np.zeros((5, 2)), 1.0).prominence == 0


@pytest.mark.parametrize("name", ["dlib", "dlib_cnn", "mtcnn", "yunet"])
def test_unusable_weights_are_named(tmp_path: Path, name: str) -> None:
    if name.startswith("dlib"):
        pytest.importorskip("dlib")
    with pytest.raises(FileNotFoundError, match=r"no detector weights at .*file") as missing:
        create_detector(name, str(tmp_path / "file"))
    for content in (b"", b"nothing of the kind"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError, match=r"file is (damaged or not?|not a YuNet) .*: get ") as damaged:
            create_detector(name, str(tmp_path / "file"))
        assert "\n" not in str(missing.value) + str(damaged.value)


def test_weights_in_a_home_without_user() -> None:
    with pytest.raises(FileNotFoundError, match=r"no detector weights at .*~no-such-user/weights"):
        create_detector("mtcnn", "~no-such-user/weights")


def test_create_detector_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown face detector 'haar': choose one of dlib, dlib_cnn, mtcnn, yunet"):
        create_detector("haar")


def test_detection_needs_no_torch() -> None:
    code = "import sys, deocc.detection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("width", "height"), [(92, 112), (250, 250), (480, 360)])
def test_real_faces_are_located(detector: Detector, width: int, height: int) -> None:
    for person in PEOPLE:
        image, truth = orl_face(person, 0, width, height, share=1.0)
        (face,) = detector.detect(image)
        errors = landmark_errors(face.landmarks, truth)
        assert face.landmarks.shape == (5, 2) and face.box.shape == (4,)
        assert errors.max() < LARGEST_ERROR[detector.name]
        # The measured points are MTCNN's; those of dlib differ anatomically, by 0.04 (median over all 400 images).
        assert np.median(errors) < 0.1
        assert (face.box[:2] < truth.min(0)).all() and (truth.max(0) < face.box[2:]).all()
        assert face.box[2] - face.box[0] < 4 * (truth[1, 0] - truth[0, 0])


def test_strided_mirror_image_is_read(detector: Detector) -> None:
    image, truth = orl_face(5, 0, 250, 250)
    mirrored = detector.detect(image[:, ::-1])[0].landmarks[[1, 0, 2, 4, 3]]
    errors = landmark_errors(np.stack([249 - mirrored[:, 0], mirrored[:, 1]], 1), truth)
    assert errors.max() < LARGEST_ERROR[detector.name]


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (20, 20), (200, 200)])
@pytest.mark.parametrize("grey", [0, 127, 255])
def test_flat_images_have_no_face(detector: Detector, shape: tuple[int, int], grey: int) -> None:
    assert detector.detect(np.full((*shape, 3), grey, np.uint8)) == []
