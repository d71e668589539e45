"""Occluders on the faces of one photo, drawn as finely as the photo shows each face."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.apps.photos import PhotoFace, paste_back, weight_in_photo
from deocc.apps.photos.cutting import cut
from deocc.geometry import TEMPLATES, invert_transform, similarity_transform, transform_points
from deocc.masking import draw_kinds, list_kinds, render

RANDOM: Final = "random"

_FINEST, _COARSEST = 1024, 32
"""Bounds on the side of the canonical crop at the photo's own resolution: finer faces get an enlarged occluder, which bounds
memory. OURS."""

_WIDE: Final = 1.6
"""The part of the photo that an occluder may cover, in canonical crops: ear loops, a hand's arm and a scarf reach beyond one; what reaches
beyond 1.6 is cut off there. OURS."""


class MaskedPhoto(NamedTuple):
    """A photo with its faces covered."""

    photo: NDArray[np.uint8]
    """(H, W, 3) RGB, bit-equal to the clean one wherever `mask` is 0."""
    mask: NDArray[np.uint8]
    """(H, W), 1 = covered."""
    kinds: tuple[str, ...]
    """Which occluder each face has."""
    covered: tuple[int, ...]
    """How many pixels each occluder covers."""


def mask_photo(photo: NDArray[np.uint8], faces: Sequence[PhotoFace], kind: str, seeds: Sequence[int]) -> MaskedPhoto:
    """Put an occluder on every given face.

    Args:
        photo: (H, W, 3) RGB.
        faces: of this photo, from `FaceFinder.find`.
        kind: a name of `deocc.masking.list_kinds()`, or "random": each face's seed chooses.
        seeds: one a face, from which everything random follows.

    Raises:
        ValueError: no such kind, or an occluder would lie outside the photo.
    """
    mask = np.zeros(photo.shape[:2], np.uint8)
    kinds, covered = [], []
    for face, seed in zip(faces, seeds, strict=True):
        chosen = list_kinds()[int(draw_kinds(torch.tensor([seed])))] if kind == RANDOM else kind
        photo, added = _cover(photo, face, chosen, seed)
        mask |= added
        kinds.append(chosen)
        covered.append(int(added.sum()))
    return MaskedPhoto(photo, mask, tuple(kinds), tuple(covered))


def _cover(photo: NDArray[np.uint8], face: PhotoFace, kind: str, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The photo with one more occluder, and where that lies, (H, W), 1 = covered."""
    landmarks, matrix, size = _wide_crop(face)
    masked_face, mask = render(cut(photo, matrix, size)[None], landmarks[None], kind, torch.tensor([seed]))
    covered = weight_in_photo(mask[0], matrix, *photo.shape[:2]) > 0
    if not covered.any():
        raise ValueError(f"the {kind} would lie outside the photo: too little of the face is in it")
    return paste_back(photo, masked_face[0], matrix, mask[0]), covered.astype(np.uint8)


def _wide_crop(face: PhotoFace) -> tuple[Tensor, Tensor, int]:
    """Landmarks (5, 2) in a crop around the canonical one, the matrix (2, 3) from photo to it, and its side in pixels."""
    points = transform_points(face.landmarks, invert_transform(face.matrix))
    scale = float(torch.linalg.det(face.matrix[:, :2]).abs().sqrt())
    inner = round(min(max(face.face.shape[-1] / scale, _COARSEST), _FINEST))
    template = TEMPLATES["canonical"].tensor(inner) + inner * (_WIDE - 1) / 2
    matrix = similarity_transform(points, template)
    return transform_points(points, matrix), matrix, round(inner * _WIDE)
