"""Faces for the fake data sets: ORL images on a frame of any size, which detectors can find."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deocc.data import OrlFaces

PEOPLE, IMAGES = 40, 10


@cache
def _faces() -> OrlFaces:
    return OrlFaces()


def orl_face(
    person: int, image: int, width: int, height: int, share: float = 0.9
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """One ORL picture in the middle of a grey frame.

    Args:
        person: 0-39.
        image: 0-9.
        width: of the frame in pixels.
        height: of the frame in pixels.
        share: how much of the frame the picture fills, along the side that limits it.

    Returns:
        (height, width, 3) RGB, and the five landmarks (5, 2) in pixels of the frame.
    """
    index = person * IMAGES + image
    picture = Image.fromarray(_faces().image(index))
    scale = share * min(width / picture.width, height / picture.height)
    small = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (width - small.width) // 2, (height - small.height) // 2
    frame = Image.new("RGB", (width, height), (127, 127, 127))
    frame.paste(small, (left, top))
    factors = np.array([small.width / picture.width, small.height / picture.height])
    landmarks = (_faces().landmarks[index] + 0.5) * factors - 0.5 + np.array([left, top])
    return np.asarray(frame), landmarks


def save_face(path: Path, person: int, image: int, width: int, height: int, share: float = 0.9) -> NDArray[np.float64]:
    """Write `orl_face` to `path` by its suffix, folders included; returns the landmarks."""
    face, landmarks = orl_face(person, image, width, height, share)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(face).save(path)
    return landmarks


def landmark_errors(found: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distances (5,) of landmarks as shares of the distance between the eyes."""
    return np.asarray(np.linalg.norm(found - truth, axis=1) / np.linalg.norm(truth[1] - truth[0]), np.float64)
