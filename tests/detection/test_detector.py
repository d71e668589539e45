"""The order of detections, the checks of all detectors, and the registry."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deocc.detection import Detection, Detector, create_detector


class _Stub(Detector):
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


def _scores(*faces: tuple[float, float]) -> list[float]:
    return [face.score for face in _Stub(*faces).detect(np.zeros((9, 9, 3), np.uint8))]


def test_detections_rank_by_size_and_score() -> None:
    assert _scores((87, 0.99), (104, 0.75)) == [0.99, 0.75]  # a large false alarm and a face
    assert _scores((40, 0.99), (120, 0.85)) == [0.85, 0.99]  # a bystander and a masked face in front


def test_unsure_detections_only_alone() -> None:
    assert _scores((200, 0.6), (50, 0.7), (60, 0.69)) == [0.7]
    assert _scores((50, 0.65), (200, 0.6)) == [0.6, 0.65]
    assert _scores() == []


@pytest.mark.parametrize("box", [(0, 0, -5, 10), (3, 3, 3, 3)])
def test_empty_box_has_no_prominence(box: tuple[float, ...]) -> None:
    assert Detection(np.array(box, float), np.zeros((5, 2)), 1.0).prominence == 0


@pytest.mark.parametrize(
    "image", [np.zeros((20, 20), np.uint8), np.zeros((20, 20, 4), np.uint8), np.zeros((20, 20, 3), np.float32)]
)
def test_detect_refuses_other_images(image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"expected an RGB image of shape \(H, W, 3\) and type uint8, got \(20, 20"):
        _Stub().detect(image)


@pytest.mark.parametrize("name", ["dlib", "dlib_cnn", "mtcnn", "yunet"])
def test_missing_weights_are_named(tmp_path: Path, name: str) -> None:
    if name.startswith("dlib"):
        pytest.importorskip("dlib")
    with pytest.raises(FileNotFoundError, match=r"no detector weights at .*absent") as error:
        create_detector(name, str(tmp_path / "absent"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("retina", {}, "unknown face detector 'retina': choose one of dlib, dlib_cnn, mtcnn, yunet"),
        ("dlib", {"size": 3}, "face detector 'dlib' has no option size: it takes threshold"),
        ("dlib_cnn", {"size": 3}, "face detector 'dlib_cnn' has no option size: it takes none"),
    ],
)
def test_registry_lists_the_choices(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        create_detector(name, **options)
    assert "\n" not in str(error.value)


def test_detection_needs_no_torch() -> None:
    code = "import sys, deocc.detection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
