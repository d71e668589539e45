"""Faces to mask: smooth noise, so that a change of any covered pixel shows, in the canonical crop."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.masking import registry

MakeFaces = Callable[..., Tensor]


@pytest.fixture
def make_faces() -> MakeFaces:
    """A function (count, size=64, grey=False) -> (count, 3, size, size) faces in [-1, 1]."""

    def make(count: int, size: int = 64, grey: bool = False) -> Tensor:
        coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(count)) * 1.6 - 0.8
        faces = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)
        return faces[:, :1].repeat(1, 3, 1, 1) if grey else faces

    return make


@pytest.fixture
def own_kinds() -> Iterator[None]:
    """Forgets, after the test, what it registered."""
    before = dict(registry._KINDS)
    yield
    registry._KINDS.clear()
    registry._KINDS.update(before)
