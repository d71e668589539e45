"""A small AR database with ORL's faces: file names, two sessions of 13 shots, sunglasses and scarves."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.fake_sets.faces import IMAGES, orl_face

CROPPED, ORIGINAL = (120, 165), (768, 576)
_SUNGLASSES, _SCARF = (8, 9, 10), (11, 12, 13)


def write_ar(
    root: Path,
    people: Iterable[str] = ("m-001", "m-002", "w-001"),
    shots: Iterable[int] = range(1, 27),
    size: tuple[int, int] = CROPPED,
    suffix: str = ".bmp",
) -> Path:
    """Draw the shots of each person; ORL's first people stand in for them.

    Args:
        root: where, created if need be.
        people: `m-NUMBER` or `w-NUMBER`, as the files are to be called.
        shots: which of 1-26.
        size: width and height in pixels; .raw files must be `ORIGINAL`.
        suffix: of the files, with its dot; .raw gives the planes of the original release.

    Returns:
        The folder to give to `ArFaces`.
    """
    root.mkdir(parents=True, exist_ok=True)
    for place, person in enumerate(people):
        for shot in shots:
            image = _shot(place, shot, *size)
            path = root / f"{person}-{shot:02d}{suffix}"
            if suffix == ".raw":
                path.write_bytes(b"".join(np.ascontiguousarray(image[..., plane]).tobytes() for plane in range(3)))
            else:
                Image.fromarray(image).save(path)
    return root


def _shot(person: int, shot: int, width: int, height: int) -> NDArray[np.uint8]:
    face, landmarks = orl_face(person, (shot - 1) % IMAGES, width, height)
    image, condition = face.copy(), (shot - 1) % 13 + 1
    eye_row, mouth_row = round(landmarks[:2, 1].mean()), round(landmarks[3:, 1].mean())
    unit = round(float(np.ptp(landmarks[:2, 0])) / 4)
    if condition in _SUNGLASSES:
        image[eye_row - unit : eye_row + unit] = 20
    if condition in _SCARF:
        image[mouth_row - 2 * unit :] = (150, 60, 60)
    return image
