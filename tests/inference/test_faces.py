from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deocc.detection import Detection, Detector
from deocc.geometry import TEMPLATES, align, invert_transform, similarity_transform, transform_points
from deocc.inference import faces
from deocc.inference.faces import ALIGNMENTS, FaceFinder, NoFaceError, cut, paste_back, weight_in_photo
from tests.scenes import ONE, ROTATED, TWO, Pasted, draw_scene

PHOTO = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)


class FakeDetector(Detector):
    """A detector that returns given faces of photos whose first pixel has a given value."""

    def __init__(self, found: Sequence[Detection], first_pixel: int = 0) -> None:
        self.found, self.first_pixel = list(found), first_pixel

    def smallest_face(self, height: int, width: int) -> int:
        return 24

    def _find(self, image: NDArray[np.uint8]) -> list[Detection]:
        return self.found if image[0, 0, 0] == self.first_pixel else []


def detection(left: float, top: float, side: float, score: float = 1.0) -> Detection:
    landmarks = np.array(TEMPLATES["canonical"].points) / 350 * side + np.array([left, top])
    return Detection(np.array([left, top, left + side, top + side]), landmarks, score)


def use(monkeypatch: pytest.MonkeyPatch, **detectors: FakeDetector) -> None:
    def create(name: str, weights: str | None = None) -> Any:
        return detectors[name]

    monkeypatch.setattr(faces, "create_detector", create)


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder(128, every=True)


@pytest.mark.parametrize("pasted", [ONE, TWO, ROTATED], ids=["one", "two", "rotated"])
def test_finder_aligns_real_faces(finder: FaceFinder, pasted: Sequence[Pasted]) -> None:
    found = finder.find(np.asarray(draw_scene(pasted)))
    assert len(found) == len(pasted)
    for face, truth in zip(found, sorted(pasted, key=lambda one: -one.width), strict=True):
        expected = truth.landmarks()
        points = transform_points(face.landmarks, invert_transform(face.matrix)).numpy()
        eye_distance = np.linalg.norm(expected[1] - expected[0])
        assert np.linalg.norm(points - expected, axis=1).max() < 0.15 * eye_distance
        assert face.face.shape == (3, 128, 128)
        assert face.detector == "mtcnn"
        assert float((face.landmarks - TEMPLATES["canonical"].tensor(128)).abs().max()) < 12


def test_finder_takes_the_first_face(monkeypatch: pytest.MonkeyPatch) -> None:
    detections = [detection(10 + 60 * number, 10, 40, score=1 - number / 10) for number in range(4)]
    use(monkeypatch, mtcnn=FakeDetector(detections))
    photo = np.zeros((300, 500, 3), np.uint8)
    assert [face.score for face in FaceFinder(64).find(photo)] == [1.0]
    assert [face.score for face in FaceFinder(64, every=True).find(photo)] == [1.0, 0.9, 0.8, 0.7]


def test_finder_uses_the_named_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, dlib_cnn=FakeDetector([]), dlib=FakeDetector([detection(100, 50, 200)]))
    with pytest.raises(NoFaceError, match="photo by dlib_cnn, which looks for faces from 24 pixels"):
        FaceFinder(64, detector="dlib_cnn").find(np.zeros((60, 60, 3), np.uint8))
    assert FaceFinder(64, detector="dlib").find(np.zeros((300, 500, 3), np.uint8))[0].detector == "dlib"


@pytest.mark.parametrize("shape", [(1, 1), (3, 2000), (20, 3000)])
def test_finder_of_tiny_photos(finder: FaceFinder, shape: tuple[int, int]) -> None:
    with pytest.raises(NoFaceError, match=r"^no face found in dot\.png"):
        finder.find(np.zeros((*shape, 3), np.uint8), "dot.png")


@pytest.mark.parametrize("name", ALIGNMENTS)
@pytest.mark.parametrize("factor", [1, 2])
def test_finder_of_aligned_crops(name: str, factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch)
    celeba = ((69.0, 111), (108, 111), (88, 136), (72, 152), (105, 152))
    (height, width), points = {
        "arcface112": ((112, 112), TEMPLATES["arcface"].points),
        "dlib150": ((150, 150), TEMPLATES["dlib"].points),
        "celeba178": ((218, 178), celeba),
        "canonical": ((350, 350), TEMPLATES["canonical"].points),
    }[name]
    photo = np.random.default_rng(0).integers(0, 256, (height * factor, width * factor, 3), dtype=np.uint8)
    expected, landmarks = align(photo, (np.array(points) + 0.5) * factor - 0.5, 350)
    face = FaceFinder(350, aligned=name).find(photo)[0]
    assert (face.detector, face.score) == ("aligned", 1)
    torch.testing.assert_close(face.landmarks, landmarks, atol=1e-3, rtol=0)
    if factor == 1:
        torch.testing.assert_close(face.face, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"aligned": "vgg224"}, "'vgg224': choose one of arcface112, dlib150, celeba178, canonical"),
        ({"aligned": "arcface112", "detector": "dlib"}, "not both"),
        ({"weights": "yunet.onnx"}, "give --detector"),
        ({"detector": "retina"}, "'retina': choose one of"),
    ],
)
def test_finder_of_bad_options(options: dict[str, str], needle: str) -> None:
    with pytest.raises(ValueError, match=needle):
        FaceFinder(64, **options)  # type: ignore[arg-type]


def make_matrix(scale: float, angle: float, x: float, y: float) -> torch.Tensor:
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return torch.tensor([[cos, -sin, x], [sin, cos, y]], dtype=torch.float32)


def interpolate(weight: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear interpolation pixel by pixel at the pixels of `PHOTO`, zero outside the crop."""
    padded = np.pad(weight.astype(np.float64), 2)
    shown = np.zeros((60, 90))
    for row in range(60):
        for column in range(90):
            x, y = matrix @ np.array([column, row, 1.0])
            if -1 < x < len(weight) and -1 < y < len(weight):
                left, top = int(np.floor(x)), int(np.floor(y))
                across, down = x - left, y - top
                corners = padded[top + 2 : top + 4, left + 2 : left + 4]
                shown[row, column] = np.array([1 - down, down]) @ corners @ np.array([1 - across, across])
    return shown


@pytest.mark.parametrize(
    "matrix", [make_matrix(1.0, 0.0, -20, -10), make_matrix(0.8, 0.5, -5.3, -21.7), make_matrix(0.3, -0.2, 2.5, 9)]
)
def test_weight_in_photo_is_interpolated(matrix: torch.Tensor) -> None:
    weight = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0))
    expected = interpolate(weight[0].numpy(), matrix.double().numpy())
    # OpenCV rounds positions to 1/32 pixel.
    np.testing.assert_allclose(weight_in_photo(weight, matrix, 60, 90), expected, atol=0.05)


def test_paste_back_of_whole_pixels() -> None:
    crop = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weight = torch.zeros(1, 16, 16)
    weight[:, 3:9, 5:16] = 1
    expected = PHOTO.copy()
    expected[23:29, 35:46] = ((crop[:, 3:9, 5:16].permute(1, 2, 0).numpy() + 1) * 127.5).round()
    np.testing.assert_array_equal(paste_back(PHOTO, crop, make_matrix(1.0, 0.0, -30, -20), weight), expected)


def test_paste_back_inverts_cut() -> None:
    smooth = np.linspace(0, 200, 60)[:, None, None] + np.linspace(0, 50, 90)[None, :, None] + np.zeros(3)
    photo = smooth.round().astype(np.uint8)
    matrix = make_matrix(0.9, 0.4, 10, -12)
    pasted = paste_back(photo, cut(photo, matrix, 40), matrix, torch.ones(1, 40, 40))
    assert np.abs(pasted.astype(int) - photo).max() <= 2


def test_paste_back_has_no_seams() -> None:
    ramp = torch.linspace(-1, 1, 64)[:, None].expand(3, 64, 64)
    matrix = make_matrix(0.1, 0.0, 4.0, -2.0)
    pasted = paste_back(np.zeros((700, 40, 3), np.uint8), ramp, matrix, torch.ones(1, 64, 64))
    expected = (np.arange(30, 640) * 0.1 - 2) / 63 * 255
    assert np.abs(pasted[30:640, 20, 0] - expected).max() < 1


def test_paste_back_outside_the_photo() -> None:
    pasted = paste_back(PHOTO, torch.ones(3, 8, 8), make_matrix(1.0, 0.0, 500, 500), torch.ones(1, 8, 8))
    np.testing.assert_array_equal(pasted, PHOTO)


def test_paste_back_averages_fine_crops() -> None:
    stripes = (torch.arange(64) % 2).float().expand(3, 64, 64) * 2 - 1
    pasted = paste_back(PHOTO, stripes, make_matrix(8.0, 0.0, -80.0, -80.0), torch.ones(1, 64, 64))
    assert np.abs(pasted[12:16, 12:16].astype(int) - 128).max() <= 1


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_cut_equals_align(scale: float) -> None:
    landmarks = (TEMPLATES["canonical"].tensor(40) * scale + torch.tensor([9.0, 4.0])).numpy()
    photo = np.kron(PHOTO, np.ones((3, 3, 1), np.uint8))
    expected, _ = align(photo, landmarks, 40)
    matrix = similarity_transform(torch.from_numpy(landmarks), TEMPLATES["canonical"].tensor(40))
    tolerance = 1e-4 if scale == 1 else 0.12  # a window is averaged on another grid than the whole photo
    assert float((cut(photo, matrix, 40) - expected).abs().mean()) < tolerance


def test_cut_of_a_fine_photo_keeps_positions() -> None:
    landmarks = TEMPLATES["canonical"].tensor(40) * 20 + torch.tensor([30.0, 50.0])
    matrix = similarity_transform(landmarks, TEMPLATES["canonical"].tensor(40))
    rows, columns = np.mgrid[:900, :900]
    photo = np.stack([columns / 4, rows / 4, 0 * rows], 2).clip(0, 255).astype(np.uint8)
    crop = (cut(photo, matrix, 40) + 1) * 127.5
    positions = torch.arange(40) * 20.0
    assert float((crop[0, 20] - (positions + 30) / 4).abs().max()) < 1
    assert float((crop[1, :, 20] - (positions + 50) / 4).abs().max()) < 1
