"""Find the faces of a photo and cut them out as canonical crops."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.detection import Detection, Detector, create_detector
from deocc.geometry import TEMPLATES, similarity_transform, transform_points
from deocc.inference.crops import cut

DEFAULT_DETECTOR: Final = "mtcnn"
"""On 327 photos of people who really wear masks MTCNN finds a face in 82 %, dlib's detector in 21 %
(`python -m bench.detectors --photos FOLDER`)."""

_CELEBA: Final = ((69.0, 111.0), (108.0, 111.0), (88.0, 136.0), (72.0, 152.0), (105.0, 152.0))
_ASPECT_TOLERANCE: Final = 0.01  # relative: aligned crops may have been scaled to whole pixels
_MIN_SIDE: Final = 20  # pixels: MTCNN finds no smaller face, and dlib's network fails
# Our choices.
_RIVAL: Final = 0.5  # share of the first face's prominence from which another face makes the choice unclear
_TURNED_DOUBT: Final = 0.25  # highest 1 - score there, as a share of that in the upright photo
_MAX_DEVIATION: Final = 0.15  # of a landmark from the canonical template, in sides of the crop


class NoFaceError(ValueError):
    """No face was found in a photo, or not as many as the number of the chosen one."""


class SeveralFacesError(ValueError):
    """A photo shows several faces of similar prominence, and none was chosen."""


@dataclass(frozen=True, eq=False)
class PhotoFace:
    """One face of a photo.

    Attributes:
        face: (3, S, S) canonical crop in [-1, 1].
        landmarks: (5, 2) x, y in pixels of the crop.
        matrix: (2, 3) photo pixels to crop pixels.
        box: (4,) x0, y0, x1, y1 in pixels of the photo.
        score: confidence of the detector in [0, 1]; 1 for aligned crops.
        detector: name of the detector, or "aligned".
        number: number of the face in the photo, from 1, most prominent first.
        count: number of faces found in the photo.
        turned: degrees counter-clockwise by which the photo was turned to find it: 0, 90, 180 or 270.
    """

    face: Tensor
    landmarks: Tensor
    matrix: Tensor
    box: NDArray[np.float64]
    score: float
    detector: str
    number: int = 1
    count: int = 1
    turned: int = 0

    @property
    def details(self) -> dict[str, object]:
        """Columns of tables: how many faces the photo shows, and how and where this one was found."""
        box = dict(zip(("left", "top", "right", "bottom"), self.box.round(1).tolist(), strict=True))
        found = {"faces": self.count, "detector": self.detector, "score": round(self.score, 3)}
        return {**found, **({"turned": self.turned} if self.turned else {}), **box}


class _Alignment(NamedTuple):
    width: int
    height: int
    points: tuple[tuple[float, float], ...]


_ALIGNMENTS: Final = {
    "arcface112": _Alignment(112, 112, TEMPLATES["arcface"].points),
    "dlib150": _Alignment(150, 150, TEMPLATES["dlib"].points),
    "celeba178": _Alignment(178, 218, _CELEBA),
    "canonical": _Alignment(350, 350, TEMPLATES["canonical"].points),
}


def list_alignments() -> tuple[str, ...]:
    """Return the names of the alignments that face crops can have."""
    return tuple(_ALIGNMENTS)


class FaceFinder:
    """Finds and aligns faces, also in photos that are turned by a multiple of 90 degrees.

    Args:
        size: side of the canonical crops in pixels.
        detector: a name of `deocc.detection.list_detectors()`; None for `DEFAULT_DETECTOR`.
        weights: weights file of the detector; None for the packaged one.
        aligned: a name of `list_alignments()`: each photo is such a crop of one face, and no detector is used.
        every: return all faces of a photo instead of the most prominent one.
        number: return this face of photos that show several, counted from 1, most prominent first.

    Raises:
        ImportError: a package that the detector needs is not installed.
        FileNotFoundError: there is no such weights file.
        ValueError: unknown detector or alignment, unusable weights, or contradicting arguments.
    """

    def __init__(
        self,
        size: int,
        detector: str | None = None,
        weights: str | None = None,
        aligned: str | None = None,
        every: bool = False,
        number: int | None = None,
    ) -> None:
        if aligned is not None and aligned not in _ALIGNMENTS:
            raise ValueError(f"unknown alignment {aligned!r}: choose one of {', '.join(_ALIGNMENTS)}")
        if aligned is not None and (detector is not None or weights is not None):
            raise ValueError("aligned crops need no detector: give --aligned, or --detector and its weights, not both")
        if weights is not None and detector is None:
            raise ValueError("weights need the name of their detector: give --detector with --detector-weights")
        if number is not None and (number < 1 or every):
            raise ValueError(f"--face {number}: give a number from 1, and not together with --all")
        self.size, self.every, self.number = size, every, number
        self._aligned = aligned
        self._name = detector or DEFAULT_DETECTOR
        self._detector: Detector | None = create_detector(self._name, weights) if aligned is None else None

    def find(self, photo: NDArray[np.uint8], name: str = "the photo") -> list[PhotoFace]:
        """Find the most prominent face, the chosen one or all (`deocc.detection.Detection.prominence`).

        Warns if the photo had to be turned.

        Args:
            photo: (H, W, 3) RGB, upright.
            name: name of the photo in error messages.

        Returns:
            At least one face, most prominent first.

        Raises:
            NoFaceError: there is no face, or none of the chosen number.
            ValueError: the photo does not have the shape of an aligned crop.
        """
        found, turned = self._detect(photo, name)
        numbers = range(len(found)) if self.every else [self._chosen(len(found), name)]
        return [self._cut(photo, found, number, turned) for number in numbers]

    def find_single(self, photo: NDArray[np.uint8], name: str = "the photo") -> PhotoFace:
        """Find the face of a photo that shows one person, or the chosen face.

        Raises:
            SeveralFacesError: no face was chosen, and others are at least half as prominent as the first one.
            NoFaceError, ValueError: as `find`.
        """
        found, turned = self._detect(photo, name)
        rivals = [face for face in found if face.prominence >= _RIVAL * found[0].prominence]
        if self.number is None and len(rivals) > 1:
            places = ", ".join(f"{number} at {_place(face)}" for number, face in enumerate(rivals, 1))
            raise SeveralFacesError(
                f"{name} shows {len(rivals)} faces (left, top, width x height: {places}): "
                "choose one with --face N, or crop the photo"
            )
        return self._cut(photo, found, self._chosen(len(found), name), turned)

    def _chosen(self, count: int, name: str) -> int:
        """Return the index of the chosen face; a single face needs no choice."""
        if self.number is None or count == 1:
            return 0
        if self.number > count:
            raise NoFaceError(f"{name} shows {count} faces: choose a lower --face than {self.number}")
        return self.number - 1

    def _detect(self, photo: NDArray[np.uint8], name: str) -> tuple[list[Detection], int]:
        """Return the plausible faces, most prominent first, and the degrees by which the photo was turned."""
        height, width = photo.shape[:2]
        if self._detector is None:
            points = _aligned_landmarks(str(self._aligned), width, height, name)
            return [Detection(np.array([0.0, 0.0, width - 1, height - 1]), points, 1.0)], 0
        if min(height, width) < _MIN_SIDE:
            raise NoFaceError(f"no face found in {name}: it is only {width} x {height} pixels")
        faces, turned = _plausible(self._detector.detect(photo)), 0
        if _best_score(faces) < self._detector.upright_score:
            for quarters in (1, 3, 2):
                others = _plausible(self._detector.detect(np.ascontiguousarray(np.rot90(photo, quarters))))
                needed = max(self._detector.upright_score, 1 - _TURNED_DOUBT * (1 - _best_score(faces)))
                if _best_score(others) >= needed:  # lower ones are upright masked faces that the detector misreads
                    faces, turned = [_turn_back(face, quarters, width, height) for face in others], 90 * quarters
        if not faces:
            smallest = self._detector.smallest_face(height, width)
            raise NoFaceError(
                f"no face found in {name} by {self._name}, which looks for faces from {smallest} pixels in upright and "
                "turned photos: use a larger or more frontal face, or --aligned for crops"
            )
        if turned:
            warnings.warn(f"{name}: found the face after turning the photo by {turned} degrees", stacklevel=2)
        return faces, turned

    def _cut(self, photo: NDArray[np.uint8], found: Sequence[Detection], index: int, turned: int) -> PhotoFace:
        face = found[index]
        points = torch.from_numpy(face.landmarks).float()
        matrix = similarity_transform(points, TEMPLATES["canonical"].tensor(self.size))
        crop, landmarks = cut(photo, matrix, self.size), transform_points(points, matrix)
        detector = "aligned" if self._detector is None else self._name
        return PhotoFace(crop, landmarks, matrix, face.box, face.score, detector, index + 1, len(found), turned)


def _aligned_landmarks(alignment: str, width: int, height: int, name: str) -> NDArray[np.float64]:
    """Return the landmarks (5, 2) of an aligned crop of this size; crops may be scaled."""
    template = _ALIGNMENTS[alignment]
    if abs(width * template.height / (height * template.width) - 1) > _ASPECT_TOLERANCE:
        raise ValueError(
            f"{name} is {width} x {height} pixels, {alignment} crops have the shape "
            f"{template.width} x {template.height}: leave --aligned out for photos"
        )
    scale = np.array([width / template.width, height / template.height])
    return np.asarray((np.array(template.points) + 0.5) * scale - 0.5)


def _plausible(faces: Sequence[Detection]) -> list[Detection]:
    """Keep faces whose five points have the shape of a face, up to rotation and scale."""
    template = TEMPLATES["canonical"].tensor(1)
    kept = []
    for face in faces:
        if not np.isfinite(face.landmarks).all() or face.landmarks.std(0).max() < 1:  # all in one pixel
            continue
        points = torch.from_numpy(face.landmarks).float()
        fitted = transform_points(points, similarity_transform(points, template))
        if float((fitted - template).norm(dim=1).max()) <= _MAX_DEVIATION:
            kept.append(face)
    return kept


def _best_score(faces: Sequence[Detection]) -> float:
    return max((face.score for face in faces), default=0.0)


def _turn_back(face: Detection, quarters: int, width: int, height: int) -> Detection:
    """Map a face found in `np.rot90(photo, quarters)` to the photo, which is `width` x `height` pixels."""

    def turn(points: NDArray[np.float64]) -> NDArray[np.float64]:
        for earlier in reversed(range(quarters)):
            before = height if earlier % 2 else width  # width of the image before this quarter turn
            points = np.stack([before - 1 - points[:, 1], points[:, 0]], 1)
        return points

    corners = turn(face.box.reshape(2, 2))
    return Detection(np.concatenate([corners.min(0), corners.max(0)]), turn(face.landmarks), face.score)


def _place(face: Detection) -> str:
    """Describe where a face is."""
    left, top, right, bottom = face.box.round().astype(int).tolist()
    return f"{left}, {top}, {right - left} x {bottom - top}"
