"""Photometric and geometric augmentation of the clean face by albumentations, seeded per item."""

from typing import Literal, NamedTuple

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

Strength = Literal["none", "flip", "light", "strong"]

# Nodes per side of the grid of the elastic warp, and standard deviation as a share of the crop's side. Our choice.
NODES, DEVIATION = 5, 0.015


class Augmented(NamedTuple):
    """An augmented crop."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    landmarks: NDArray[np.float32]
    """(5, 2) in pixels of the crop, left to right in the image."""
    flipped: bool
    """True if left and right were swapped."""


class Augmentation:
    """Augments a crop together with its landmarks.

    `flip` mirrors half of the crops. `light` adds brightness, contrast and a jitter of the alignment within the
    differences of landmark detectors. `strong` adds blur, noise, gamma, compression, more jitter, and an elastic warp
    that changes the proportions of a face, and so its identity for a recogniser. Not known from the paper; our
    choice.
    """

    def __init__(self, strength: Strength) -> None:
        self._elastic = strength == "strong"
        self._compose = A.Compose(_transforms(strength), keypoint_params=A.KeypointParams("xy", remove_invisible=False))

    def __call__(self, image: NDArray[np.uint8], landmarks: NDArray[np.float32], seed: int) -> Augmented:
        """Augment one crop.

        Args:
            image: (H, W, 3) RGB.
            landmarks: (5, 2) in pixels of the crop.
            seed: determines all random choices.
        """
        if self._elastic:
            image, landmarks = warp_elastically(image, landmarks, np.random.default_rng(seed))
        self._compose.set_random_seed(seed % 2**32)
        result = self._compose(image=image, keypoints=landmarks)
        points = np.asarray(result["keypoints"], dtype=np.float32)
        swapped = bool(points[0, 0] > points[1, 0])  # a flip exchanges the eyes
        if swapped:
            points = points[[1, 0, 2, 4, 3]]
        return Augmented(result["image"], points, swapped != bool(landmarks[0, 0] > landmarks[1, 0]))


def warp_elastically(
    image: NDArray[np.uint8], landmarks: NDArray[np.float32], generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Shift pixels and landmarks by a smooth random field.

    The transform of albumentations rounds key points to whole pixels and loses some.

    Args:
        image: (H, W, 3).
        landmarks: (P, 2) in pixels.
        generator: source of the field.
    """
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
