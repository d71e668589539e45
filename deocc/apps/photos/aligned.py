"""Crops that are aligned already: where their five points lie, without a detector.

[0] Pidhorskyi, Adjeroh and Doretto, "Adversarial Latent Autoencoders", CVPR 2020: the published code aligns photos to CelebA's crops by
    these five points of the set's own list, `list_landmarks_align_celeba.txt`; single images differ by some pixels.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deocc.geometry import TEMPLATES

_CELEBA: Final = ((69.0, 111.0), (108.0, 111.0), (88.0, 136.0), (72.0, 152.0), (105.0, 152.0))  # [0]
_TOLERANCE: Final = 0.01  # of the ratio of sides: crops that were scaled to whole pixels. OURS


class _Alignment(NamedTuple):
    width: int
    height: int
    points: tuple[tuple[float, float], ...]


def _square(name: str) -> _Alignment:
    template = TEMPLATES[name]
    return _Alignment(template.size, template.size, template.points)


_ALIGNMENTS: Final = {
    "arcface112": _square("arcface"),
    "dlib150": _square("dlib"),
    "celeba178": _Alignment(178, 218, _CELEBA),
    "canonical": _square("canonical"),
}


def list_alignments() -> tuple[str, ...]:
    """Names of the alignments that crops can have."""
    return tuple(_ALIGNMENTS)


def check_alignment(name: str) -> None:
    """Raise ValueError for a name that `list_alignments` does not have."""
    if name not in _ALIGNMENTS:
        raise ValueError(f"unknown alignment {name!r}: choose one of {', '.join(_ALIGNMENTS)}")


def aligned_landmarks(alignment: str, width: int, height: int, name: str) -> NDArray[np.float64]:
    """The five points of a crop of this size, (5, 2) x, y in pixels; crops of another size and the same shape are scaled.

    Raises:
        ValueError: the crop has another shape; `name` is what the message calls it.
    """
    made = _ALIGNMENTS[alignment]
    if abs(width * made.height / (height * made.width) - 1) > _TOLERANCE:
        shape = f"{made.width} x {made.height}"
        raise ValueError(f"{name} is {width} x {height} pixels, {alignment} crops have the shape {shape}: leave --aligned out for photos")
    factors = np.array([width / made.width, height / made.height])
    return np.asarray((np.array(made.points) + 0.5) * factors - 0.5)
