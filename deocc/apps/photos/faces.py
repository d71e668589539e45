"""Finds the faces of a photo and cuts them out as canonical crops."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.apps.photos.aligned import aligned_landmarks, check_alignment
from deocc.apps.photos.cutting import cut
from deocc.detection import Detection, Detector, create_detector
from deocc.geometry import TEMPLATES, similarity_transform, transform_points

DEFAULT_DETECTOR: Final = "mtcnn"
"""Of 327 photographs of really masked people MTCNN finds a face in 74 %, dlib's detector in 21 %
(`python -m bench.detectors --photos FOLDER`)."""

_LEAST: Final = 20
"""Photos with a shorter side of fewer pixels are not searched: MTCNN looks for no smaller face and dlib's network fails. Our choice."""


class NoFaceError(ValueError):
    """No face was found in a photo."""


@dataclass(frozen=True, eq=False)
class PhotoFace:
    """One face of a photo.

    Attributes:
        face: (3, S, S) canonical crop in [-1, 1].
        landmarks: (5, 2) x, y in pixels of the crop.
        matrix: (2, 3) photo pixels to crop pixels.
        box: (4,) x0, y0, x1, y1 in pixels of the photo.
        score: confidence of the detector in [0, 1]; 1 for crops that were aligned already.
        detector: its name, or "aligned".
    """

    face: Tensor
    landmarks: Tensor
    matrix: Tensor
    box: NDArray[np.float64]
    score: float
    detector: str


class FaceFinder:
    """Finds and aligns faces.

    Args:
        size: side of the canonical crops in pixels.
        detector: a name of `deocc.detection.list_detectors()`; None for `DEFAULT_DETECTOR`.
        weights: weights file of the detector; None for the packaged one.
        aligned: a name of `list_alignments()`: each photo is already such a crop with one face, and no detector is used.
        every: return all faces of a photo instead of the most prominent one.

    Raises:
        ImportError: a package that the detector needs is not installed.
        FileNotFoundError: there is no such weights file.
        ValueError: unknown detector or alignment, unusable weights, or contradicting arguments.
    """

    def __init__(
        self, size: int, detector: str | None = None, weights: str | None = None, aligned: str | None = None, every: bool = False
    ) -> None:
        if aligned is not None:
            check_alignment(aligned)
            if detector is not None or weights is not None:
                raise ValueError("aligned crops need no detector: give --aligned, or --detector and its weights, not both")
        if weights is not None and detector is None:
            raise ValueError("weights need the name of their detector: give --detector with --detector-weights")
        self.size, self.every = size, every
        self._aligned = aligned
        self._name = detector or DEFAULT_DETECTOR
        self._detector: Detector | None = create_detector(self._name, weights) if aligned is None else None

    def find(self, photo: NDArray[np.uint8], name: str = "the photo") -> list[PhotoFace]:
        """Find the most prominent face, or all faces, most prominent first (see `deocc.detection.Detection.prominence`).

        Args:
            photo: (H, W, 3) RGB, upright.
            name: of the photo in error messages.

        Raises:
            NoFaceError: there is no face.
            ValueError: the photo does not have the shape of an aligned crop.
        """
        height, width = photo.shape[:2]
        if self._detector is None:
            points = aligned_landmarks(str(self._aligned), width, height, name)
            return [self._cut(photo, Detection(np.array([0.0, 0.0, width - 1, height - 1]), points, 1.0), "aligned")]
        if min(height, width) < _LEAST:
            raise NoFaceError(f"no face found in {name}: it is only {width} x {height} pixels")
        faces = [face for face in self._detector.detect(photo) if _is_usable(face)]
        if not faces:
            raise NoFaceError(f"no face found in {name} by {self._name}: use a larger or more frontal face, or --aligned for crops")
        return [self._cut(photo, face, self._name) for face in (faces if self.every else faces[:1])]

    def _cut(self, photo: NDArray[np.uint8], found: Detection, detector: str) -> PhotoFace:
        points = torch.from_numpy(found.landmarks).float()
        matrix = similarity_transform(points, TEMPLATES["canonical"].tensor(self.size))
        landmarks = transform_points(points, matrix)
        return PhotoFace(cut(photo, matrix, self.size), landmarks, matrix, found.box, found.score, detector)


def _is_usable(face: Detection) -> bool:
    """Landmarks can be aligned if they are finite and spread over a pixel at least."""
    return bool(np.isfinite(face.landmarks).all()) and float(face.landmarks.std(0).max()) >= 1
