"""What a set of faces is to the data module: images, landmarks, people, and who belongs to which split."""

import hashlib
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class FaceSet(ABC):
    """Images with five landmarks and an identity each; no identity lies in two splits.

    A new data set is one subclass: fill the attributes in `__init__`, read one image in `image`.

    Attributes:
        names: one name an image, unique, for messages and reports.
        landmarks: (N, 5, 2) x, y in pixels of the image.
        person: (N,) int64, the identity of each image.
        split_of_person: the split of each identity.
    """

    names: list[str]
    landmarks: NDArray[np.float64]
    person: NDArray[np.int64]
    split_of_person: dict[int, Split]

    @abstractmethod
    def image(self, index: int) -> NDArray[np.uint8]:
        """The photograph at `index`: (H, W, 3) RGB.

        Raises:
            ValueError: the file is not a readable image.
        """

    @property
    @abstractmethod
    def credit(self) -> str:
        """Whom to credit, in one line for reports."""

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    def indices(self, split: Split) -> NDArray[np.int64]:
        """The positions of the images of one split, ascending."""
        people = [person for person, its_split in self.split_of_person.items() if its_split == split]
        return np.flatnonzero(np.isin(self.person, people)).astype(np.int64)

    def fingerprint(self, split: Split) -> str:
        """A hash of the split's names, landmarks, identities and pixels: two runs with equal hashes saw the same data."""
        digest = hashlib.sha256()
        for index in self.indices(split):
            digest.update(self.names[index].encode())
            digest.update(np.round(self.landmarks[index], 2).tobytes())
            digest.update(np.int64(self.person[index]).tobytes())
            digest.update(self.image(int(index)).tobytes())
        return digest.hexdigest()[:16]
