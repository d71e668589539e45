"""The embedded ORL faces on the page: the gallery of its 40 people, and examples to begin with."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deocc.apps.photos.cutting import cut
from deocc.apps.pipeline import Pipeline
from deocc.data import OrlFaces
from deocc.evaluation.calibration import covered_share
from deocc.geometry import TEMPLATES, similarity_transform

_ENLARGED = 4  # the pictures are 92 x 112 pixels


class Example(NamedTuple):
    """Two photos and what to do with the first."""

    title: str
    photo: tuple[int, int]
    """Person 1-40 and image 1-10 of the database."""
    second: tuple[int, int]
    kind: str
    seed: int


EXAMPLES = (
    Example("One person, surgical mask", (21, 4), (21, 7), "surgical", 0),
    Example("Two people, scarf", (22, 2), (24, 5), "scarf", 1),
    Example("One person, sunglasses", (23, 3), (23, 9), "sunglasses", 2),
)
"""Validation people of the usual split only; its test people are for `deocc test` alone. Images other than the gallery's first."""


class Match(NamedTuple):
    """A person of the gallery."""

    name: str
    picture: NDArray[np.uint8]
    """(112, 92, 3) RGB."""
    similarity: float
    """Of the embeddings, in [-1, 1]."""
    covered: float
    """The covered share of the gallery's face, by its predicted mask."""


class OrlGallery:
    """The first image of each of the 40 people, embedded once.

    Args:
        pipeline: what embeds.

    Raises:
        FileNotFoundError: the package that ships the faces is not installed, or is incomplete.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._faces = OrlFaces()
        self._indices = np.unique(self._faces.person, return_index=True)[1].tolist()
        crops = torch.stack([self._crop(index, pipeline.size) for index in self._indices])
        output = pipeline.process_faces(crops)
        self._embeddings, self._covered = output.embedding.cpu(), covered_share(output.mask).tolist()

    def __len__(self) -> int:
        """How many people it holds."""
        return len(self._indices)

    @property
    def credit(self) -> str:
        """Whom to credit for the images."""
        return self._faces.credit

    def nearest(self, embedding: Tensor, most: int = 5) -> list[Match]:
        """The people most similar to a unit embedding (D,), the best first."""
        similarity, order = (self._embeddings @ embedding.cpu()).topk(min(most, len(self)))
        return [self._match(place, value) for place, value in zip(order.tolist(), similarity.tolist(), strict=True)]

    def photo(self, person: int, image: int) -> NDArray[np.uint8]:
        """An image of the database, both numbers from 1, enlarged for the page: (448, 368, 3) RGB."""
        picture = Image.fromarray(self._faces.image(self._faces.names.index(f"s{person}/{image}")))
        larger = (picture.width * _ENLARGED, picture.height * _ENLARGED)
        return np.asarray(picture.resize(larger, Image.Resampling.BICUBIC))

    def _match(self, place: int, similarity: float) -> Match:
        index = self._indices[place]
        name = f"ORL person {int(self._faces.person[index]) + 1}"
        return Match(name, self._faces.image(index), similarity, self._covered[place])

    def _crop(self, index: int, size: int) -> Tensor:
        points = torch.from_numpy(self._faces.landmarks[index]).float()
        return cut(self._faces.image(index), similarity_transform(points, TEMPLATES["canonical"].tensor(size)), size)
