"""insightface's training sets: `train.rec` beside `train.idx`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from deocc.data.face_set import FaceSet, Split
from deocc.data.images import read_image_bytes
from deocc.data.record_io import RecordFile, RecordIndex, load_index
from deocc.data.sampler import item_seed
from deocc.geometry import get_template


class _Names(Sequence[str]):
    """`PERSON/KEY` for each image, made when asked for: millions of strings would take as much memory as their images."""

    def __init__(self, index: RecordIndex) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index.key)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "_Names": ...
    def __getitem__(self, place: int | slice) -> "str | _Names":
        if isinstance(place, slice):
            return _Names(RecordIndex(*(column[place] for column in self._index)))
        return f"{self._index.person[place]}/{self._index.key[place]}"


class RecordFaces(FaceSet):
    """Square aligned crops in a record file; a person is the number in the records' labels.

    The labels of all records are collected once and kept (`deocc.data.record_io.load_index`). Which split a person belongs to follows from
    a hash of the number, as in `FolderFaces`; whoever is in neither share is a test person. The shares, their defaults OURS, are kept on
    average only.

    Args:
        rec: the .rec file.
        idx: its index; default the file of the same name that ends in .idx.
        aligned: the template that the crops were made with, a name of `deocc.geometry.TEMPLATES`.
        train: share of the people to train on.
        val: share of the people to validate on; 0 for none.
        seed: another seed splits the people otherwise.

    Raises:
        FileNotFoundError: one of the files is missing, or the index lists fewer images than the file's first record promises.
        ValueError: an unknown template, impossible shares, a split without a person, or files that are damaged, cut short or do not fit
            each other.
    """

    def __init__(
        self,
        rec: str,
        idx: str | None = None,
        aligned: str = "arcface",
        train: float = 0.99,
        val: float = 0.01,
        seed: int = 0,
    ) -> None:
        self._template = get_template(aligned)
        if not (train > 0 and val >= 0 and train + val <= 1):
            raise ValueError(
                f"train={train} and val={val}: choose train above 0, val from 0, and a sum of 1 at most; the rest is for tests"
            )
        self._file = RecordFile(Path(rec))
        self._index = load_index(self._file, Path(idx) if idx is not None else self._file.path.with_suffix(".idx"))
        self.names, self.person = _Names(self._index), self._index.person
        self.split_of_person = _split_people(np.unique(self.person).tolist(), train, val, seed)
        self._size = len(self._decode(0))
        self._set_landmarks()

    def __getstate__(self) -> dict[str, object]:
        """All but the landmarks, which are one row repeated and would be written out for each image."""
        return {name: value for name, value in self.__dict__.items() if name != "landmarks"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._set_landmarks()

    @property
    def credit(self) -> str:
        """The file's name: whose faces they are its owner knows."""
        return f"face crops of the record file {self._file.path.parent.resolve().name}/{self._file.path.name}"

    def image(self, index: int) -> NDArray[np.uint8]:
        """The crop at `index`, (H, H, 3) RGB.

        Raises:
            ValueError: the record is damaged, holds no readable image, or one of another size than the first.
        """
        image = self._decode(index)
        if image.shape != (self._size, self._size, 3):
            shapes = f"{image.shape[1]} x {image.shape[0]} pixels, but the first image {self._size} x {self._size}"
            raise ValueError(f"image {self.names[index]} of {self._file.path} has {shapes}: all crops of a record file must be of one size")
        return image

    def fingerprint(self, split: Split) -> str:
        """A hash of the split's people, of where their images lie in the file, and of the template: millions of images are not read.

        An image's place tells the compressed size of all before it, so that another file with equal places is improbable.
        """
        indices = self.indices(split)
        digest = hashlib.sha256(str((len(self._file.data), self._size, self._template.points)).encode())
        digest.update(self._index.offset[indices].tobytes())
        digest.update(self.person[indices].tobytes())
        return digest.hexdigest()[:16]

    def _decode(self, index: int) -> NDArray[np.uint8]:
        name = f"image {self.names[index]} of {self._file.path}"
        image = read_image_bytes(self._file.image_bytes(int(self._index.offset[index])), name)
        if image.shape[0] != image.shape[1]:
            raise ValueError(f"{name} has {image.shape[1]} x {image.shape[0]} pixels: aligned crops are square, so choose another file")
        return image

    def _set_landmarks(self) -> None:
        """One row for all images: a copy for each of millions would take hundreds of megabytes. Torch warns of `broadcast_to`'s result."""
        points = self._template.tensor(self._size).double().numpy()
        self.landmarks = as_strided(points, (len(self.names), 5, 2), (0, *points.strides))


def _split_people(people: list[int], train: float, val: float, seed: int) -> dict[int, Split]:
    """The split of each person, or an error where nobody is left to train or validate on."""
    places = [item_seed(seed, "split", person) / 2**63 for person in people]
    splits: list[Split] = ["train" if place < train else "val" if place < train + val else "test" for place in places]
    empty = [split for split, share in (("train", train), ("val", val)) if share > 0 and split not in splits]
    if empty:
        found = f"of {len(people)} people none falls into {' and '.join(empty)} (train {train:g}, val {val:g}, seed {seed})"
        raise ValueError(f"{found}: raise that share, choose another seed, or set val to 0")
    return dict(zip(people, splits, strict=True))
