"""A million images are a few arrays to a loader's worker, not a million Python objects."""

import pickle
import pickletools
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deocc.data import FaceSet
from deocc.data.cache import AlignedCache
from deocc.data.dataset import Augmentation, FixedFaces, TrainingFaces
from deocc.data.face_set import NameTable
from deocc.data.loader import EpochSampler

_IMAGES, _PEOPLE = 1_000_000, 1000


class _ManyFaces(FaceSet):
    credit = "no one"

    def __init__(self) -> None:
        self.names = NameTable(map(str, range(_IMAGES)))
        self.identity = np.arange(_IMAGES) % _PEOPLE
        self.split_of_identity = dict.fromkeys(range(_PEOPLE), "train")
        self.landmarks = np.zeros((_IMAGES, 5, 2))

    def image(self, index: int) -> NDArray[np.uint8]:
        raise ValueError("there is none")


@pytest.fixture(scope="module")
def faces() -> FaceSet:
    return _ManyFaces()


def _objects(state: bytes) -> int:
    """Largest number of objects that a pickle makes."""
    return sum(1 for _ in pickletools.genops(state))


@pytest.mark.parametrize("cached", [False, True])
def test_what_a_worker_gets_is_bounded(faces: FaceSet, cached: bool) -> None:
    cache = AlignedCache(Path("/faces.lmdb"), 112, _IMAGES) if cached else None
    indices = np.arange(_IMAGES)
    training = TrainingFaces(faces, 112, Augmentation("none"), 0, cache=cache)
    for dataset in (training, FixedFaces(faces, "train", 112, [(0, 0)], indices, cache)):
        state = pickle.dumps(dataset)
        assert _objects(state) < 10 * _PEOPLE
        # Index and identity take 16 bytes an image; without a cache landmarks, identity and name come on top.
        assert len(state) < _IMAGES * (16.1 if cached else 125)


def test_an_epoch_is_given_out_without_a_list_of_it() -> None:
    sampler = EpochSampler(_IMAGES, seed=0)
    tracemalloc.start()  # which sees what Python and NumPy take, not torch's order of 8 bytes an image
    keys = list(islice(iter(sampler), 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(keys)) == 1000
    assert peak < 1_000_000
