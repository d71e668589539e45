"""MTCNN on masked, cut, mirrored and many faces, and with other weights."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from deocc.detection import Detector, create_detector
from deocc.detection.mtcnn import WEIGHTS_FILE
from deocc.masking import list_kinds, render
from tests.fake_sets.faces import landmark_errors, orl_face


@pytest.fixture(scope="module")
def mtcnn() -> Detector:
    return create_detector("mtcnn")


def test_mtcnn_landmarks_mirror_with_the_image(mtcnn: Detector) -> None:
    image, _ = orl_face(5, 0, 250, 250)
    mirrored = mtcnn.detect(image[:, ::-1])[0].landmarks[[1, 0, 2, 4, 3]]
    direct = mtcnn.detect(image)[0].landmarks
    assert landmark_errors(np.stack([249 - mirrored[:, 0], mirrored[:, 1]], 1), direct).max() < 0.08


def test_mtcnn_is_deterministic(mtcnn: Detector) -> None:
    image, _ = orl_face(9, 1, 250, 250)
    first, second = mtcnn.detect(image), create_detector("mtcnn").detect(image)
    assert len(first) == len(second) == 1
    assert np.array_equal(first[0].box, second[0].box) and np.array_equal(first[0].landmarks, second[0].landmarks)
    assert first[0].score == second[0].score


def test_mtcnn_finds_rendered_masks(mtcnn: Detector) -> None:
    """Every kind of occluder on three people each."""
    found = []
    for number in range(3 * len(list_kinds())):
        image, truth = orl_face(number, 0, 250, 250)
        face = torch.tensor(image).permute(2, 0, 1)[None] / 127.5 - 1
        landmarks, kind = torch.tensor(truth, dtype=torch.float32)[None], torch.tensor([number % len(list_kinds())])
        masked, _ = render(face, landmarks, kind, torch.tensor([number]))
        faces = mtcnn.detect(masked[0].add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy())
        found.append(bool(faces) and float(np.mean(landmark_errors(faces[0].landmarks, truth))) < 0.15)
    assert sum(found) >= 25  # 24 with the published weights, which were not trained on masked faces


def test_mtcnn_finds_faces_cut_by_the_border(mtcnn: Detector) -> None:
    image, truth = orl_face(0, 0, 250, 250)
    left = int(truth[0, 0] - 0.3 * (truth[1, 0] - truth[0, 0]))
    (face,) = mtcnn.detect(image[:, left:])
    assert landmark_errors(face.landmarks, truth - (left, 0)).max() < 0.3


def test_mtcnn_finds_all_faces_of_a_large_photo(mtcnn: Detector) -> None:
    """24 faces of 110 pixels in 12 megapixels."""
    photo = np.full((3000, 4000, 3), 127, np.uint8)
    centres = []
    for number in range(24):
        face, truth = orl_face(number, 0, 200, 200)
        face = np.asarray(cv2.GaussianBlur(face, (0, 0), 1), np.uint8)
        x, y = 150 + 640 * (number % 6), 200 + 700 * (number // 6)
        photo[y : y + 200, x : x + 200] = face
        centres.append(truth.mean(0) + np.array([x, y]))
    found = mtcnn.detect(photo)
    middles = np.array([face.landmarks.mean(0) for face in found])
    assert all(np.linalg.norm(middles - centre, axis=1).min() < 15 for centre in centres)
    assert len(found) == 24


def test_mtcnn_ranks_the_face_above_a_false_alarm(mtcnn: Detector) -> None:
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("scikit-image, which ships astronaut.png, is not installed")
    photo = np.asarray(Image.open(Path(spec.submodule_search_locations[0]) / "data/astronaut.png").convert("RGB"))
    faces = mtcnn.detect(photo)
    assert np.linalg.norm(faces[0].box.reshape(2, 2).mean(0) - (223, 120)) < 30


@pytest.mark.parametrize("change", ["missing", "shape", "other", "truncated"])
def test_mtcnn_refuses_other_weights(tmp_path: Path, change: str) -> None:
    path, weights = tmp_path / "weights.safetensors", load_file(WEIGHTS_FILE)
    message = "does not hold the weights of MTCNN .*: convert them by bench/mtcnn_weights.py"
    if change == "missing":
        del weights["output.head.bias"]
    elif change == "shape":
        weights["output.5.weight"] = torch.zeros(256, 1151)
    elif change == "other":
        weights = {"conv.weight": torch.zeros(3)}
    save_file(weights, path)
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
        message = r"weights\.safetensors is damaged or no safetensors file .*: get it again"
    with pytest.raises(ValueError, match=message) as error:
        create_detector("mtcnn", str(path))
    assert "\n" not in str(error.value)


def test_packaged_mtcnn_weights_are_small_and_licensed() -> None:
    assert WEIGHTS_FILE.stat().st_size < 1 << 20
    assert "MIT License" in WEIGHTS_FILE.with_name("mtcnn_licence.txt").read_text()
