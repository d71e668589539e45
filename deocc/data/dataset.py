"""Datasets of aligned faces with landmarks, identity, and the kind and seed of their mask, and their augmentation."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from deocc.batch import FaceBatch
from deocc.data.cache import AlignedCache, AlignedFace
from deocc.data.face_set import FaceSet, Split
from deocc.data.loader import ItemKey, UnreadableImageError, item_seed
from deocc.geometry import align

CLEAN, REAL = (-1, 0), (-2, 0)
"""Instead of (kind, mask seed): an unmasked bare face, and an unmasked face with a real occluder."""

MIXED: Final = -3
"""Instead of a kind: a kind drawn for each image and mask seed."""
KEPT = 1000
"""Aligned faces that each loader worker keeps in memory, 200 MB at 256 pixels."""
NOTED: Final = 8
"""Unreadable images that an item can report; with the 1 % that a run may have, no item has as many."""
NODES, DEVIATION = 5, 0.015
"""Nodes per side of the grid of the elastic warp, and standard deviation as a share of the crop's side. Our choice."""

Strength = Literal["none", "flip", "light", "strong"]


class Augmented(NamedTuple):
    """An augmented crop with its landmarks."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    landmarks: NDArray[np.float32]  # (5, 2) in pixels
    flipped: bool  # True if left and right were swapped


class FaceItem(FaceBatch):
    """One item of a batch, without the batch dimension, and `unreadable`, which the loader removes."""

    unreadable: Tensor
    """(NOTED,) int64, the images that could not be read for this item, padded with -1. If `index` is among them, the
    item has no face and is left out."""


class AlignedFaces:
    """Canonical crops of a face set, from a complete cache, or aligned on access with the last `kept` in memory."""

    def __init__(self, face_set: FaceSet, size: int, kept: int, cache: AlignedCache | None = None) -> None:
        self.face_set, self.size, self.kept, self.cache = face_set, size, kept, cache
        self._face: Callable[[int], AlignedFace] = lru_cache(maxsize=kept)(self._align) if cache is None else cache

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out the faces in memory, and the face set if a cache replaces it."""
        return AlignedFaces, (self.face_set if self.cache is None else None, self.size, self.kept, self.cache)

    def __call__(self, index: int) -> AlignedFace:
        """Return the face at `index`, (size, size, 3) RGB, and its landmarks (5, 2) in pixels of the crop.

        Raises UnreadableImageError, with the image's name, if the image or its landmarks are unusable, and ValueError
        if the cache file was removed or changed.
        """
        return self._face(index)

    def _align(self, index: int) -> AlignedFace:
        try:
            face, landmarks = align(self.face_set.image(index), self.face_set.landmarks[index], self.size)
        except (ValueError, OSError) as error:
            raise UnreadableImageError(f"{self.face_set.names[index]}: {error}") from error
        return face.add(1).mul(127.5).round().byte().permute(1, 2, 0).contiguous().numpy(), landmarks.numpy()


class Augmentation:
    """Augments a crop together with its landmarks. Not known from the paper; our choice.

    `flip` mirrors half of the crops. `light` adds brightness, contrast and a jitter of the alignment within the
    differences of landmark detectors. `strong` adds blur, noise, gamma, compression, more jitter, and an elastic warp
    that changes the proportions of a face, and so its identity for a recogniser.
    """

    def __init__(self, strength: Strength) -> None:
        self._elastic = strength == "strong"
        self._compose = A.Compose(_transforms(strength), keypoint_params=A.KeypointParams("xy", remove_invisible=False))

    def __call__(self, image: NDArray[np.uint8], landmarks: NDArray[np.float32], seed: int) -> Augmented:
        """Augment a crop (H, W, 3) RGB and its landmarks (5, 2) in pixels; `seed` determines all random choices."""
        if self._elastic:
            image, landmarks = _warp_elastically(image, landmarks, np.random.default_rng(seed))
        self._compose.set_random_seed(seed % 2**32)
        result = self._compose(image=image, keypoints=landmarks)
        points = np.asarray(result["keypoints"], dtype=np.float32)
        swapped = bool(points[0, 0] > points[1, 0])  # a flip exchanges the eyes
        if swapped:
            points = points[[1, 0, 2, 4, 3]]
        return Augmented(result["image"], points, swapped != bool(landmarks[0, 0] > landmarks[1, 0]))


class TrainingFaces(Dataset[FaceItem]):
    """Augmented training faces. An item depends on seed, epoch and position only.

    A share of the faces is blended with the aligned faces of two other images. The teacher can embed blended faces, so
    that the student learns relations of more identities than the training set has (our choice, after mixup [0]).

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
        # A shuffled set that does not fit into memory would rarely find a face there
        self.aligned = AlignedFaces(face_set, size, KEPT if len(self.indices) <= KEPT else 0, cache)
        self.identities = np.unique(face_set.identity[self.indices], return_inverse=True)[1].astype(np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: ItemKey) -> FaceItem:
        """Return the item of an (epoch, position). Its kind is -1; the data module draws it from the seed.

        An image that cannot be read, of the item or of a blended face, is replaced by another one that depends on the
        seed; UnreadableImageError is raised if that fails several times.
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
        weighted = list(zip((1 - sum(shares), *shares), faces, strict=False))  # a single face has weight 1
        image = np.stack([weight * pixels.astype(np.float32) for weight, (pixels, _) in weighted]).sum(0)
        landmarks = np.stack([weight * points for weight, (_, points) in weighted]).sum(0, dtype=np.float32)
        augmented = self.augmentation(image.round().astype(np.uint8), landmarks, seed)
        identities = self.identities[[position, *others]].tolist()
        return _item(augmented, int(self.indices[position]), identities, shares, -1, seed, unreadable)

    def _readable(self, position: int, seed: int, unreadable: list[int]) -> tuple[int, AlignedFace]:
        """Return the face at a position, or the first readable one of a seeded sequence; record the unreadable ones."""
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
        """Draw the positions and weights of two faces to blend in; weights are 0 if the item is not blended."""
        generator = np.random.default_rng(item_seed(seed, "blend"))
        if generator.random() >= self.blend_probability:
            return [position] * 2, (0.0, 0.0)
        first, second = generator.uniform(0, 0.5), generator.uniform(0, 1 / 3)
        return generator.integers(len(self), size=2).tolist(), (first * (1 - second), second)


class FixedFaces(Dataset[FaceItem]):
    """Unaugmented faces at `indices`, each with all of the given (kind, mask seed) pairs.

    A kind of `MIXED` is replaced by one of `kinds` that depends on image and mask seed; the mask equals that of this
    kind and seed in any other evaluation. Identities are numbered within the split. Images that cannot be read are
    reported (`FaceItem`), but raise an error in a test.

    The order is image by image within a pair, so that batches have one kind where possible, in blocks of `KEPT` images,
    so that an image is read once and not once per mask. Mask seeds are hashed with the image and a word that training
    does not use, so no evaluation mask is ever a training mask.
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
        self.aligned = AlignedFaces(face_set, size, KEPT, cache)
        self.masks, self.indices, self.kinds, self.occluder = masks, indices, tuple(kinds), face_set.occluder
        self.fails = split == "test"
        people = np.unique(face_set.identity[face_set.indices(split)])
        self.identities = np.searchsorted(people, face_set.identity[indices]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.indices) * len(self.masks)

    def __getitem__(self, number: int) -> FaceItem:
        """Return the item at `number`, or raise UnreadableImageError for an image of a test that cannot be read."""
        position, kind, seed = self.mask_of(number)
        index, identities = int(self.indices[position]), [int(self.identities[position])] * 3
        unreadable: list[int] = []
        try:
            face, landmarks = self.aligned(index)
        except UnreadableImageError:
            if self.fails:
                raise
            size, unreadable = self.aligned.size, [index]
            face, landmarks = np.zeros((size, size, 3), np.uint8), np.zeros((5, 2), np.float32)
        return _item(Augmented(face, landmarks, False), index, identities, (0.0, 0.0), kind, seed, unreadable)

    def mask_of(self, number: int) -> tuple[int, int, int]:
        """Return the position in `indices`, and the kind and seed of the mask, of an item; no image is read."""
        block, within = divmod(number, KEPT * len(self.masks))
        size = min(KEPT, len(self.indices) - block * KEPT)
        position = block * KEPT + within % size
        (kind, mask_seed), index = self.masks[within // size], int(self.indices[position])
        if kind == MIXED:
            kind = self.kinds[item_seed("evaluation kind", mask_seed, index) % len(self.kinds)]
        elif kind == REAL[0] and self.occluder is not None:
            kind = int(self.occluder[index])
        return position, kind, item_seed("evaluation", mask_seed, kind, index)


def _item(
    face: Augmented,
    index: int,
    identities: Sequence[int],
    shares: tuple[float, float],
    kind: int,
    seed: int,
    unreadable: Sequence[int],
) -> FaceItem:
    """Return an item; `identities` are that of the face and those of the two blended into it."""
    return FaceItem(
        face=torch.tensor(face.image).permute(2, 0, 1).float() / 127.5 - 1,
        landmarks=torch.tensor(face.landmarks, dtype=torch.float32),
        identity=torch.tensor(identities[0]),
        mixup_identity=torch.tensor(identities[1:]),
        mixup_weight=torch.tensor(shares, dtype=torch.float32),
        index=torch.tensor(index),
        flipped=torch.tensor(face.flipped),
        kind=torch.tensor(kind),
        seed=torch.tensor(seed),
        unreadable=torch.tensor([*unreadable, *[-1] * (NOTED - len(unreadable))]),
    )


def _warp_elastically(
    image: NDArray[np.uint8], landmarks: NDArray[np.float32], generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Shift the pixels of an image (H, W, 3) and landmarks (P, 2) by a smooth random field."""
    # The transform of albumentations rounds key points to whole pixels and loses some
    height, width = image.shape[:2]
    nodes = generator.normal(0, DEVIATION * width, (NODES, NODES, 2)).astype(np.float32)
    field = cv2.resize(nodes, (width, height), interpolation=cv2.INTER_CUBIC)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    warped = cv2.remap(
        image, columns + field[..., 0], rows + field[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    moved = landmarks.astype(np.float32)
    for _ in range(5):  # invert the field, which gives the origin of a pixel, by fixed-point iteration
        column, row = (moved[:, axis].round().astype(int).clip(0, side - 1) for axis, side in ((0, width), (1, height)))
        moved = landmarks.astype(np.float32) - field[row, column]
    return np.asarray(warped, dtype=np.uint8), moved


def _transforms(strength: Strength) -> list[A.BasicTransform]:
    if strength == "none":
        return [A.NoOp()]  # an empty list causes a warning
    if strength == "flip":
        return [A.HorizontalFlip(p=0.5)]
    edge = {"border_mode": cv2.BORDER_REPLICATE}  # as in `geometry.warp`
    if strength == "light":
        jitter = A.Affine(scale=(0.96, 1.04), translate_percent=(-0.02, 0.02), rotate=(-4, 4), p=0.8, **edge)
        return [A.HorizontalFlip(p=0.5), jitter, A.RandomBrightnessContrast(0.2, 0.2, p=0.8)]
    # The default, nearest neighbours, would shift pixels relative to the landmarks
    coarser = A.Downscale((0.5, 0.9), interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR})
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(scale=(0.92, 1.08), translate_percent=(-0.03, 0.03), rotate=(-8, 8), shear=(-4, 4), p=0.9, **edge),
        A.RandomBrightnessContrast(0.3, 0.3, p=0.8),
        A.RandomGamma((70, 140), p=0.5),
        A.OneOf(
            [A.GaussianBlur((3, 5)), coarser, A.ImageCompression(quality_range=(40, 95)), A.GaussNoise((0.01, 0.05))],
            p=0.4,
        ),
    ]
