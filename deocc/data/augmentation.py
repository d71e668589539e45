"""Ordinary photometric and geometric augmentation of the clean face, by albumentations, seeded per item."""

from typing import Literal

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

Strength = Literal["none", "light", "strong"]

# Of the crop's side: displacements vary over a ninth of it, about the distance from nose to mouth, and deviate by about 1 % of it. OURS.
ELASTIC_SIGMA, ELASTIC_ALPHA = 1 / 9, 1.8


class Augmentation:
    """Augments a crop and moves its landmarks along.

    `light` is a flip, a shift of brightness and contrast and a jitter of the alignment within what landmark detectors differ by; `strong`
    adds blur, noise, gamma, compression, a wider jitter, and an elastic warp that changes a face's proportions, and so whose face it is to
    a recogniser. OURS: the paper does not tell.
    """

    def __init__(self, strength: Strength, size: int) -> None:
        """`size`: side of the crops in pixels."""
        self._compose = A.Compose(_transforms(strength, size), keypoint_params=A.KeypointParams("xy", remove_invisible=False))

    def __call__(
        self, image: NDArray[np.uint8], landmarks: NDArray[np.float32], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Augment one crop.

        Args:
            image: (H, W, 3) RGB.
            landmarks: (5, 2) in pixels of the crop.
            seed: everything random follows from it.
        """
        self._compose.set_random_seed(seed % 2**32)
        result = self._compose(image=image, keypoints=landmarks)
        points = np.asarray(result["keypoints"], dtype=np.float32)
        if points[0, 0] > points[1, 0]:  # after a flip the left eye is the right one
            points = points[[1, 0, 2, 4, 3]]
        return result["image"], points


def _transforms(strength: Strength, size: int) -> list[A.BasicTransform]:
    if strength == "none":
        return [A.NoOp()]  # an empty list would warn that nothing moves the landmarks
    edge = {"border_mode": cv2.BORDER_REPLICATE}  # as in `geometry.warp`
    if strength == "light":
        jitter = A.Affine(scale=(0.96, 1.04), translate_percent=(-0.02, 0.02), rotate=(-4, 4), p=0.8, **edge)
        return [A.HorizontalFlip(p=0.5), jitter, A.RandomBrightnessContrast(0.2, 0.2, p=0.8)]
    # Nearest neighbours, albumentations' default, would shift the pixels against the landmarks.
    coarser = A.Downscale((0.5, 0.9), interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR})
    return [
        A.HorizontalFlip(p=0.5),
        A.ElasticTransform(alpha=ELASTIC_ALPHA * size, sigma=ELASTIC_SIGMA * size, p=0.8, **edge),
        A.Affine(scale=(0.92, 1.08), translate_percent=(-0.03, 0.03), rotate=(-8, 8), shear=(-4, 4), p=0.9, **edge),
        A.RandomBrightnessContrast(0.3, 0.3, p=0.8),
        A.RandomGamma((70, 140), p=0.5),
        A.OneOf([A.GaussianBlur((3, 5)), coarser, A.ImageCompression(quality_range=(40, 95)), A.GaussNoise((0.01, 0.05))], p=0.4),
    ]
