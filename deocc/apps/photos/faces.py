"""The faces of a photo, as canonical crops."""

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.apps.photos.aligned import aligned_landmarks, check_alignment
from deocc.apps.photos.cutting import cut
from deocc.detection import Detection, Detector, create_detector
from deocc.detection.detector import enlarge, shrink
from deocc.geometry import TEMPLATES, similarity_transform, transform_points

DEFAULT_ORDER: Final = ("dlib", "dlib_cnn")
"""Best first. Of 80 ORL faces under the eight kinds of occluder the first finds 74 and the second 66, none of them new; bare ones both find
all (`bench/detectors.py --images 80`). The second finds more turned faces: at 60 degrees 3 of 3, the first 2 of 6. OURS."""

_SECOND_LOOK: Final = 1000
"""A longer side is shrunk to this before the second detector looks: it takes 13 s and 2.5 GB at 1600 x 1200. OURS."""

_LEAST: Final = 20
"""No face is looked for in a photo with a side of fewer pixels, on which dlib's network fails. OURS."""


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
        score: of the detector, in its own scale; 1 for crops that were aligned already.
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
        detector: a name of `deocc.detection.list_detectors()`, which then looks alone; None = `DEFAULT_ORDER`, the next one, with a
            warning, where the first finds no face.
        weights: the detector's weights file; None for the packaged one.
        aligned: a name of `list_alignments()`: each photo is such a crop already and holds one face; no detector is used.
        every: all faces of a photo instead of the largest.

    Raises:
        ImportError: a package that the detector needs is not installed.
        FileNotFoundError: there is no such weights file.
        ValueError: unknown detector or alignment, unusable weights, or arguments that contradict each other.
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
        self._aligned, self._weights = aligned, weights
        self._order = DEFAULT_ORDER if detector is None else (detector,)
        self._ready: dict[str, Detector] = {}
        if aligned is None:
            self._detector(self._order[0])

    def find(self, photo: NDArray[np.uint8], name: str = "the photo") -> list[PhotoFace]:
        """The largest face, or all of them, the largest first.

        Args:
            photo: (H, W, 3) RGB, upright.
            name: what errors and warnings call it.

        Raises:
            NoFaceError: there is none.
            ValueError: the photo has not the shape of an aligned crop.
            ImportError: the second detector is needed and not installed.
        """
        height, width = photo.shape[:2]
        if self._aligned is not None:
            points = aligned_landmarks(self._aligned, width, height, name)
            whole = Detection(np.array([0.0, 0.0, width - 1, height - 1]), points, 1.0)
            return [self._cut(photo, whole, "aligned")]
        found, detector = self._look(photo, name)
        found = sorted(found, key=lambda face: -_area(face))
        return [self._cut(photo, face, detector) for face in (found if self.every else found[:1])]

    def _look(self, photo: NDArray[np.uint8], name: str) -> tuple[list[Detection], str]:
        height, width = photo.shape[:2]
        if min(height, width) < _LEAST:
            raise NoFaceError(f"no face found in {name}: it is only {width} x {height} pixels")
        for place, detector in enumerate(self._order):
            found = [face for face in self._detect(photo, detector, place > 0) if _is_usable(face)]
            if found:
                if place:
                    warnings.warn(f"{name}: {self._order[0]} found no face, {detector} did", stacklevel=3)
                return found, detector
        looked = " and ".join(self._order)
        raise NoFaceError(f"no face found in {name} by {looked}: use a larger or more frontal face, or --aligned for crops")

    def _detect(self, photo: NDArray[np.uint8], name: str, again: bool) -> list[Detection]:
        if not again:
            return self._detector(name).detect(photo)
        smaller, factors = shrink(photo, _SECOND_LOOK)
        if min(smaller.shape[:2]) < _LEAST:
            return []
        found = self._detector(name).detect(smaller)
        return [
            Detection(enlarge(face.box.reshape(2, 2), factors).reshape(-1), enlarge(face.landmarks, factors), face.score) for face in found
        ]

    def _detector(self, name: str) -> Detector:
        """The detector called so, made when it is first needed."""
        if name not in self._ready:
            self._ready[name] = create_detector(name, self._weights)
        return self._ready[name]

    def _cut(self, photo: NDArray[np.uint8], found: Detection, detector: str) -> PhotoFace:
        points = torch.from_numpy(found.landmarks).float()
        matrix = similarity_transform(points, TEMPLATES["canonical"].tensor(self.size))
        landmarks = transform_points(points, matrix)
        return PhotoFace(cut(photo, matrix, self.size), landmarks, matrix, found.box, found.score, detector)


def _area(face: Detection) -> float:
    low, high = face.box.reshape(2, 2)
    return float(np.prod(high - low))


def _is_usable(face: Detection) -> bool:
    """Whether its points are finite and span a pixel at least, so that they can be aligned."""
    return bool(np.isfinite(face.landmarks).all()) and float(face.landmarks.std(0).max()) >= 1
