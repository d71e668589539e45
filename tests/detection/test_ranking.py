"""The order in which detections are reported, and which of low confidence are left out."""

from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from deocc.detection import Detection, Detector


class _Stub(Detector):
    """Finds faces of given sides and scores."""

    name = "stub"
    _sure_score = 0.7

    def __init__(self, *faces: tuple[float, float]) -> None:
        self._faces = faces

    def _find(self, image: NDArray[np.uint8]) -> Iterable[Detection]:
        for side, score in self._faces:
            yield Detection(np.array([5.0, 5, 5 + side, 5 + side]), np.zeros((5, 2)), score)


def _scores(*faces: tuple[float, float]) -> list[float]:
    return [face.score for face in _Stub(*faces).detect(np.zeros((9, 9, 3), np.uint8))]


def test_detections_rank_by_size_and_score() -> None:
    assert _scores((87, 0.99), (104, 0.75)) == [0.99, 0.75]  # a large false alarm and a face
    assert _scores((40, 0.99), (120, 0.85)) == [0.85, 0.99]  # a bystander and a masked face in front


def test_unsure_detections_are_reported_only_alone() -> None:
    assert _scores((200, 0.6), (50, 0.7), (60, 0.69)) == [0.7]
    assert _scores((50, 0.65), (200, 0.6)) == [0.6, 0.65]
    assert _scores() == []


@pytest.mark.parametrize("box", [(0, 0, -5, 10), (3, 3, 3, 3)])
def test_empty_box_has_no_prominence(box: tuple[float, ...]) -> None:
    assert Detection(np.array(box, float), np.zeros((5, 2)), 1.0).prominence == 0
