"""Turned photos, detections that are no faces, and pixels that are no photo."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deocc.detection import Detection, Detector
from deocc.geometry import TEMPLATES, invert_transform, transform_points
from deocc.inference import faces
from deocc.inference.faces import FaceFinder, NoFaceError
from deocc.inference.pipeline import Pipeline
from tests.fake_sets.faces import orl_face
from tests.scenes import ONE, draw_scene


class SideDetector(Detector):
    """Finds one face of a given score by the position of a white pixel's corner: the photo's upright top left."""

    upright_score = 0.99

    def __init__(self, scores: Sequence[float], landmarks: NDArray[np.float64]) -> None:
        self.scores, self.landmarks, self.calls = scores, landmarks, 0

    def smallest_face(self, height: int, width: int) -> int:
        return 20

    def _find(self, image: NDArray[np.uint8]) -> list[Detection]:
        self.calls += 1
        corners = [image[0, 0, 0], image[-1, 0, 0], image[-1, -1, 0], image[0, -1, 0]]
        score = self.scores[corners.index(255)]
        return [Detection(np.array([10.0, 10, 50, 50]), self.landmarks, score)] if score else []


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    pixels = np.zeros((100, 140, 3), np.uint8)
    pixels[0, 0] = 255
    return pixels


def finder_of(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> FaceFinder:
    def create(name: str, weights: str | None = None) -> Any:
        return detector

    monkeypatch.setattr(faces, "create_detector", create)
    return FaceFinder(64)


LANDMARKS = np.array(TEMPLATES["canonical"].points) / 350 * 40 + 10


@pytest.mark.parametrize(
    ("scores", "turned", "calls"),
    [
        ((0.995, 1, 1, 1), 0, 1),  # surely upright
        ((0.95, 0.9, 0.97, 0.96), 0, 4),  # doubtful everywhere: as it is
        ((0.95, 0.999, 0, 0), 90, 4),
        ((0.95, 0, 0.999, 0), 180, 4),
        ((0, 0, 0.92, 0.995), 270, 4),
        ((0, 0.98, 0, 0), None, 4),
    ],
)
def test_orientation_follows_scores(
    photo: NDArray[np.uint8], scores: Sequence[float], turned: int | None, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = SideDetector(scores, LANDMARKS)
    finder = finder_of(detector, monkeypatch)
    if turned is None:
        with pytest.raises(NoFaceError, match=r"faces from 20 pixels in upright and turned photos"):
            finder.find(photo)
    elif turned:
        with pytest.warns(UserWarning, match=rf"x\.jpg: found the face after turning the photo by {turned} degrees"):
            assert finder.find(photo, "x.jpg")[0].turned == turned
    else:
        assert finder.find(photo)[0].turned == 0
    assert detector.calls == calls


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turned_detection_maps_to_photo(
    photo: NDArray[np.uint8], quarters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [0.0] * 4
    scores[quarters] = 1.0
    finder = finder_of(SideDetector(scores, LANDMARKS), monkeypatch)
    with pytest.warns(UserWarning, match="turning"):
        (face,) = finder.find(photo)
    grid = np.stack(np.meshgrid(np.arange(140), np.arange(100)), 2)  # x, y of each pixel
    turned = np.rot90(grid, quarters)
    points = transform_points(face.landmarks, invert_transform(face.matrix)).numpy()
    expected = [turned[round(y), round(x)] for x, y in LANDMARKS.tolist()]
    assert np.abs(points - np.array(expected)).max() <= 0.51  # the grid holds whole pixels
    corners = turned[[10, 50], [10, 50]]
    assert face.box.tolist() == [*corners.min(0), *corners.max(0)]


@pytest.mark.usefixtures("shared_detector")
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turned_real_face_gives_the_same_crop(quarters: int) -> None:
    finder, photo = FaceFinder(112), np.asarray(draw_scene(ONE))
    upright = finder.find(photo)[0]
    with pytest.warns(UserWarning, match="turning"):
        turned = finder.find(np.ascontiguousarray(np.rot90(photo, quarters)))[0]
    assert turned.turned == 360 - 90 * quarters
    assert float((turned.face - upright.face).abs().mean()) < 0.03


@pytest.mark.parametrize("change", ["nose on the forehead", "collapsed", "not finite", "upside down mouth"])
def test_landmarks_without_the_shape_of_a_face(
    photo: NDArray[np.uint8], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    landmarks = LANDMARKS.copy()
    if change == "nose on the forehead":
        landmarks[2, 1] -= 30
    elif change == "collapsed":
        landmarks[:] = 20
    elif change == "not finite":
        landmarks[0] = np.nan
    else:
        landmarks[3:, 1] -= 35
    finder = finder_of(SideDetector((1, 0, 0, 0), landmarks), monkeypatch)
    with pytest.raises(NoFaceError):
        finder.find(photo)


def test_pipeline_refuses_what_is_no_face(pipeline: Pipeline) -> None:
    face = torch.zeros(2, 3, 112, 112)
    for bad in (face + float("nan"), face + 255, face - 1.5):
        with pytest.raises(ValueError, match=r"expected faces in \[-1, 1\], got values from"):
            pipeline.embed_faces(bad)
    with pytest.raises(ValueError, match=r"expected masks in \[0, 1\], got values from 0 to 255"):
        pipeline.complete_faces(face, torch.eye(112).expand(2, 1, 112, 112) * 255)
    for photo in (b"\xff\xd8", 7, torch.zeros(3, 112, 112)):
        with pytest.raises(ValueError, match=r"photo 1 is a \w+: give a path, a Pillow image or an RGB array"):
            pipeline.embed([photo])  # type: ignore[list-item]


@pytest.mark.usefixtures("shared_detector")
def test_paths_and_images_are_equal(pipeline: Pipeline, tmp_path: Any) -> None:
    image = Image.fromarray(orl_face(20, 0, 276, 336)[0])
    image.save(tmp_path / "a.png")
    by_path, by_image = pipeline.embed([tmp_path / "a.png", image])
    assert torch.equal(by_path, by_image)
