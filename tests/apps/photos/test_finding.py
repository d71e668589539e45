"""The faces of a photo are found and aligned, or one line says that there is none."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deocc.detection import Detection
from deocc.geometry import TEMPLATES, align, invert_transform, transform_points
from deocc.inference import faces
from deocc.inference.faces import FaceFinder, NoFaceError, list_alignments
from tests.apps.photos.scenes import ONE, TWO, Pasted, draw_scene


class _Stub:
    """A detector that returns given faces."""

    def __init__(self, found: Sequence[Detection]) -> None:
        self.found = list(found)

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        return self.found


def _face(left: float, top: float, side: float, score: float = 1.0) -> Detection:
    landmarks = np.array(TEMPLATES["canonical"].points) / 350 * side + np.array([left, top])
    return Detection(np.array([left, top, left + side, top + side]), landmarks, score)


def _use(monkeypatch: pytest.MonkeyPatch, **stubs: _Stub) -> None:
    def create(name: str, weights: str | None = None) -> Any:
        return stubs[name]

    monkeypatch.setattr(faces, "create_detector", create)


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder(128, every=True)


@pytest.mark.parametrize("pasted", [ONE, TWO, (Pasted(7, 180, 60, 220, -30),)], ids=["one", "two", "turned"])
def test_real_faces_are_found_and_aligned(finder: FaceFinder, pasted: Sequence[Pasted]) -> None:
    found = finder.find(np.asarray(draw_scene(pasted)))
    assert len(found) == len(pasted)
    for face, truth in zip(found, sorted(pasted, key=lambda one: -one.width), strict=True):
        true = truth.landmarks()
        points = transform_points(face.landmarks, invert_transform(face.matrix)).numpy()
        eye_distance = np.linalg.norm(true[1] - true[0])
        assert np.linalg.norm(points - true, axis=1).max() < 0.15 * eye_distance
        assert face.face.shape == (3, 128, 128) and face.detector == "mtcnn"
        assert float((face.landmarks - TEMPLATES["canonical"].tensor(128)).abs().max()) < 12


def test_only_the_first_detection_is_taken_unless_all_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, mtcnn=_Stub([_face(10 + 60 * number, 10, 40, score=1 - number / 10) for number in range(4)]))
    photo = np.zeros((300, 500, 3), np.uint8)
    assert [face.score for face in FaceFinder(64).find(photo)] == [1.0]
    assert [face.score for face in FaceFinder(64, every=True).find(photo)] == [1.0, 0.9, 0.8, 0.7]


def test_a_named_detector_replaces_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, dlib_cnn=_Stub([]), dlib=_Stub([_face(100, 50, 200)]))
    with pytest.raises(NoFaceError, match=r"no face found in the photo by dlib_cnn: "):
        FaceFinder(64, detector="dlib_cnn").find(np.zeros((60, 60, 3), np.uint8))
    assert FaceFinder(64, detector="dlib").find(np.zeros((300, 500, 3), np.uint8))[0].detector == "dlib"


@pytest.mark.parametrize("shape", [(1, 1), (3, 2000), (20, 3000)])
def test_tiny_photos_have_no_face_and_break_no_detector(finder: FaceFinder, shape: tuple[int, int]) -> None:
    with pytest.raises(NoFaceError, match=r"^no face found in dot\.png"):
        finder.find(np.zeros((*shape, 3), np.uint8), "dot.png")


def test_a_face_that_cannot_be_aligned_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    collapsed = Detection(np.array([0.0, 0, 9, 9]), np.full((5, 2), 4.0), 1.0)
    _use(monkeypatch, mtcnn=_Stub([collapsed]))
    with pytest.raises(NoFaceError):
        FaceFinder(64).find(np.zeros((60, 60, 3), np.uint8))


@pytest.mark.parametrize("name", list_alignments())
@pytest.mark.parametrize("factor", [1, 2])
def test_aligned_crops_of_any_size_give_the_canonical_crop_without_a_detector(
    name: str, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch)
    made = {"arcface112": (112, 112), "dlib150": (150, 150), "celeba178": (218, 178), "canonical": (350, 350)}[name]
    photo = np.random.default_rng(0).integers(0, 256, (made[0] * factor, made[1] * factor, 3), dtype=np.uint8)
    points = {
        "celeba178": np.array([(69.0, 111), (108, 111), (88, 136), (72, 152), (105, 152)]),
        "arcface112": np.array(TEMPLATES["arcface"].points),
        "dlib150": np.array(TEMPLATES["dlib"].points),
        "canonical": np.array(TEMPLATES["canonical"].points),
    }[name]
    expected, landmarks = align(photo, (points + 0.5) * factor - 0.5, 350)
    face = FaceFinder(350, aligned=name).find(photo)[0]
    assert face.detector == "aligned" and face.score == 1
    torch.testing.assert_close(face.landmarks, landmarks, atol=1e-3, rtol=0)
    if factor == 1:
        torch.testing.assert_close(face.face, expected, atol=2e-3, rtol=0)


def test_a_crop_of_another_shape_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"x\.jpg is 112 x 112 pixels, celeba178 crops have the shape 178 x 218"):
        FaceFinder(64, aligned="celeba178").find(np.zeros((112, 112, 3), np.uint8), "x.jpg")


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"aligned": "vgg224"}, "'vgg224': choose one of arcface112, dlib150, celeba178, canonical"),
        ({"aligned": "arcface112", "detector": "dlib"}, "not both"),
        ({"weights": "yunet.onnx"}, "give --detector"),
        ({"detector": "retina"}, "'retina': choose one of"),
    ],
)
def test_contradictions_are_refused_at_once(options: dict[str, str], needle: str) -> None:
    with pytest.raises(ValueError, match=needle):
        FaceFinder(64, **options)  # type: ignore[arg-type]
