"""A tiny face set in memory: smooth pictures of people who do not exist."""

import numpy as np
import pytest
from numpy.typing import NDArray

from deocc.data import FaceSet
from deocc.geometry import TEMPLATES

_PEOPLE, _IMAGES, _SIDE = 8, 3, 72


class TinyFaces(FaceSet):
    """Eight people x 3 images: 0-3 train, 4-5 validation, 6-7 test, in an order that mixes the splits."""

    credit = "no one"

    def __init__(self) -> None:
        self.identity = np.tile(np.arange(_PEOPLE), _IMAGES).astype(np.int64)
        self.names = [f"p{person}/{number}" for number, person in enumerate(self.identity)]
        self.landmarks = np.stack([TEMPLATES["canonical"].tensor(_SIDE).double().numpy()] * len(self.names))
        self.split_of_identity = {
            person: "train" if person < 4 else "val" if person < 6 else "test" for person in range(_PEOPLE)
        }
        self.brightness = np.random.default_rng(0).integers(60, 200, (len(self.names), 3))

    def image(self, index: int) -> NDArray[np.uint8]:
        ramp = np.linspace(0, 50, _SIDE)[None, :, None] + np.linspace(-50, 0, _SIDE)[:, None, None]
        return np.asarray(self.brightness[index] + ramp).clip(0, 255).astype(np.uint8)


@pytest.fixture
def tiny_faces() -> TinyFaces:
    return TinyFaces()
