"""One item: a face in its canonical crop, with its landmarks, identity, and the kind and seed of its mask."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from deocc.data.augmentation import Augmentation, Augmented
from deocc.data.cache import AlignedCache, AlignedFace
from deocc.data.face_set import FaceSet, Split
from deocc.data.loader import ItemKey, item_seed
from deocc.data.quarantine import UnreadableImageError
from deocc.geometry import align

CLEAN, REAL = (-1, 0), (-2, 0)
"""In place of a kind and a mask seed: the face as it is, taken for bare; the face as it is, under the occluder that it shows."""

MIXED: Final = -3
"""In place of a kind: one that is drawn for each image and mask seed."""

KEPT = 1000
"""Aligned faces that a loader worker keeps in memory: 200 MB at 256 pixels."""

NOTED: Final = 8
"""How many unreadable images an item can name: at the 1 % that a run may have, no item ever meets so many."""


class FaceItem(TypedDict):
    """A `deocc.batch.FaceBatch` of one, without the batch dimension, and what was unreadable, which the loader takes out.

    `unreadable`: (NOTED,) int64, the positions in the face set of the images that could not be read for this item, -1 fills up. An item
    whose own `index` is among them has no face and is left out.
    """

    face: Tensor
    landmarks: Tensor
    identity: Tensor
    other_identity: Tensor
    other_share: Tensor
    index: Tensor
    flipped: Tensor
    kind: Tensor
    seed: Tensor
    unreadable: Tensor


class AlignedFaces:
    """Canonical crops of a face set: from a complete cache, or else cut out when asked for, the last so many kept in memory."""

    def __init__(self, face_set: FaceSet, size: int, kept: int, cache: AlignedCache | None = None) -> None:
        self.face_set, self.size, self.kept, self.cache = face_set, size, kept, cache
        self._face: Callable[[int], AlignedFace] = lru_cache(maxsize=kept)(self._align) if cache is None else cache

    def __call__(self, index: int) -> AlignedFace:
        """The face at `index`, (size, size, 3) RGB, and its landmarks there, (5, 2) in pixels.

        Raises:
            UnreadableImageError: the image cannot be read or its landmarks are unusable; the message names the image.
            ValueError: the cache's file was removed or changed.
        """
        return self._face(index)

    def __getstate__(self) -> dict[str, object]:
        """What a spawned loader worker needs: no faces, and where they are in a cache, nothing of the photographs either."""
        face_set = self.face_set if self.cache is None else None
        return {"face_set": face_set, "size": self.size, "kept": self.kept, "cache": self.cache}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _align(self, index: int) -> AlignedFace:
        try:
            face, landmarks = align(self.face_set.image(index), self.face_set.landmarks[index], self.size)
        except (ValueError, OSError) as error:
            raise UnreadableImageError(f"{self.face_set.names[index]}: {error}") from error
        return face.add(1).mul(127.5).round().byte().permute(1, 2, 0).contiguous().numpy(), landmarks.numpy()


class TrainingFaces(Dataset[FaceItem]):
    """Augmented training faces; what happens to an item follows from the seed, its position and the epoch alone.

    A share of them is blended with the aligned faces of two other images. The teacher can embed such a face like any other, so that the
    student learns its relations on far more identities than the training set holds (OURS, after mixup [0]).

    [0] Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """

    def __init__(
        self,
        face_set: FaceSet,
        size: int,
        augmentation: Augmentation,
        seed: int,
        blend_probability: float = 0.0,
        cache: AlignedCache | None = None,
    ) -> None:
        self.augmentation, self.seed, self.blend_probability = augmentation, seed, blend_probability
        self.indices = face_set.bare("train")
        # Of a shuffled set that does not fit, hardly a face is asked for again in time.
        self.aligned = AlignedFaces(face_set, size, KEPT if len(self.indices) <= KEPT else 0, cache)
        self.identities = _identities(face_set, self.indices)

    def __len__(self) -> int:
        """The number of training images."""
        return len(self.indices)

    def __getitem__(self, key: ItemKey) -> FaceItem:
        """The item of one epoch and position. Its kind is left open (-1): the data module draws it from the seed.

        Where an image cannot be read, its own or a partner's, another training image that follows from the item's seed takes its place.

        Raises:
            UnreadableImageError: nor can all those that were to take its place.
        """
        epoch, position = key
        seed = item_seed(self.seed, epoch, int(self.indices[position]))
        unreadable: list[int] = []
        position, face = self._readable(position, seed, unreadable)
        others, shares = self._partners(position, seed)
        faces = [face]
        if sum(shares) > 0:
            found = [self._readable(other, seed, unreadable) for other in others]
            others, faces = [other for other, _ in found], [face, *(partner for _, partner in found)]
        augmented = self.augmentation(*_blend(faces, (1 - sum(shares), *shares)), seed)
        people = _People(self.identities[position], self.identities[others], shares)
        return _item(augmented, people, int(self.indices[position]), -1, seed, unreadable)

    def _readable(self, position: int, seed: int, unreadable: list[int]) -> tuple[int, AlignedFace]:
        """The face at a position, or at the first one after it, in an order drawn by the seed, that can be read; notes those before."""
        while True:
            index = int(self.indices[position])
            try:
                return position, self.aligned(index)
            except UnreadableImageError:
                unreadable.append(index)
                if len(unreadable) > NOTED:
                    raise
            position = item_seed(seed, "stand-in", len(unreadable)) % len(self)

    def _partners(self, position: int, seed: int) -> tuple[list[int], tuple[float, float]]:
        """The positions of the faces to blend in, and their shares; the item itself and 0 where nothing is blended."""
        generator = np.random.default_rng(item_seed(seed, "blend"))
        if generator.random() >= self.blend_probability:
            return [position] * 2, (0.0, 0.0)
        first, second = generator.uniform(0, 0.5), generator.uniform(0, 1 / 3)
        return generator.integers(len(self), size=2).tolist(), (first * (1 - second), second)


class FixedFaces(Dataset[FaceItem]):
    """Unaugmented faces at `indices`, each under every one of the given (kind, mask seed) pairs; `CLEAN` leaves the face as it is.

    `REAL` in place of a pair names the occluder that the image itself shows. A kind of `MIXED` stands for one of `kinds`, which follows
    from image and mask seed alone; the mask is then the one that this kind has by this seed in any other evaluation. Identities are
    numbered within the split. Of an image that cannot be read the item says so (`FaceItem`); in a test, whose figures must not be those of
    other people, it raises.

    The order is image by image within a pair, so that batches hold one kind where they can; a set of more than `KEPT` images goes in blocks
    of that many, so that an image is read once and not once a mask. Mask seeds are hashed with the image and a word
    that training never uses, so no evaluation mask is ever a training mask.
    """

    def __init__(
        self,
        face_set: FaceSet,
        split: Split,
        size: int,
        masks: list[tuple[int, int]],
        indices: NDArray[np.int64],
        cache: AlignedCache | None = None,
        kinds: Sequence[int] = (),
    ) -> None:
        self.kinds = tuple(kinds)
        self.aligned, self.masks, self.indices = AlignedFaces(face_set, size, KEPT, cache), masks, indices
        self.fails = split == "test"
        people = np.unique(face_set.person[face_set.indices(split)])
        self.identities = np.searchsorted(people, face_set.person[indices]).astype(np.int64)
        self.occluder = face_set.occluder

    def __len__(self) -> int:
        """Images times masks."""
        return len(self.indices) * len(self.masks)

    def __getitem__(self, number: int) -> FaceItem:
        """The item at `number`.

        Raises:
            UnreadableImageError: the image of a test cannot be read.
        """
        position, _ = self._place(number)
        index, identity = int(self.indices[position]), self.identities[position]
        kind, seed = self.mask_of(number)
        (face, landmarks), unreadable = self._readable(index)
        people = _People(identity, np.repeat(identity, 2), (0.0, 0.0))
        return _item(Augmented(face, landmarks, flipped=False), people, index, kind, seed, unreadable)

    def index_of(self, number: int) -> int:
        """The image of the item at `number`, as its position in the face set."""
        return int(self.indices[self._place(number)[0]])

    def mask_of(self, number: int) -> tuple[int, int]:
        """The kind of occluder and the seed of the item at `number`; no image is read."""
        (kind, mask_seed), index = self.masks[self._place(number)[1]], self.index_of(number)
        if kind == MIXED:
            kind = self.kinds[item_seed("evaluation kind", mask_seed, index) % len(self.kinds)]
        elif kind == REAL[0] and self.occluder is not None:
            kind = int(self.occluder[index])
        return kind, item_seed("evaluation", mask_seed, kind, index)

    def _readable(self, index: int) -> tuple[AlignedFace, list[int]]:
        """The face, or a black one and its index where it cannot be read."""
        try:
            return self.aligned(index), []
        except UnreadableImageError:
            if self.fails:
                raise
        size = self.aligned.size
        return (np.zeros((size, size, 3), np.uint8), np.zeros((5, 2), np.float32)), [index]

    def _place(self, number: int) -> tuple[int, int]:
        """The position in `indices` and the number of the mask of an item."""
        block, within = divmod(number, KEPT * len(self.masks))
        size = min(KEPT, len(self.indices) - block * KEPT)
        return block * KEPT + within % size, within // size


def _identities(face_set: FaceSet, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """The people of these images, numbered from 0."""
    return np.unique(face_set.person[indices], return_inverse=True)[1].astype(np.int64)


def _blend(faces: Sequence[AlignedFace], weights: Sequence[float]) -> AlignedFace:
    """The weighted mean of faces and of landmarks; a lone face has the first weight, which is then 1."""
    parts = [(weight, *face) for weight, face in zip(weights, faces, strict=False)]
    face = np.sum([weight * image.astype(np.float32) for weight, image, _ in parts], axis=0)
    return face.round().astype(np.uint8), np.sum(
        [weight * landmarks for weight, _, landmarks in parts], axis=0, dtype=np.float32
    )


class _People(NamedTuple):
    identity: np.int64
    others: NDArray[np.int64]
    shares: tuple[float, float]


def _item(face: Augmented, people: _People, index: int, kind: int, seed: int, unreadable: Sequence[int]) -> FaceItem:
    return FaceItem(
        face=torch.tensor(face.image).permute(2, 0, 1).float() / 127.5 - 1,
        landmarks=torch.tensor(face.landmarks, dtype=torch.float32),
        identity=torch.tensor(int(people.identity)),
        other_identity=torch.tensor(people.others.tolist()),
        other_share=torch.tensor(people.shares, dtype=torch.float32),
        index=torch.tensor(index),
        flipped=torch.tensor(face.flipped),
        kind=torch.tensor(kind),
        seed=torch.tensor(seed),
        unreadable=torch.tensor([*unreadable, *[-1] * (NOTED - len(unreadable))]),
    )
