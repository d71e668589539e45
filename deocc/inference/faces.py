"""Find the faces of a photo, cut them out as canonical crops, and paste crops back."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.detection import Detection, Detector, create_detector
from deocc.geometry import TEMPLATES, invert_transform, similarity_transform, transform_points, warp

DEFAULT_DETECTOR: Final = "mtcnn"
"""On 327 photos of people who really wear masks MTCNN finds a face in 74 %, dlib's detector in 21 %
(`python -m bench.detectors --photos FOLDER`)."""

_CELEBA: Final = ((69.0, 111.0), (108.0, 111.0), (88.0, 136.0), (72.0, 152.0), (105.0, 152.0))
_ASPECT_TOLERANCE: Final = 0.01  # relative: aligned crops may have been scaled to whole pixels
_MIN_SIDE: Final = 20  # pixels: MTCNN finds no smaller face, and dlib's network fails
_MARGIN: Final = 3.0  # crop pixels around the crop, so that antialiasing sees the neighbours
_MAX_REFINEMENT: Final = 1.5  # crops that are finer than the photo by more are averaged first, as in `geometry.warp`
_BAND: Final = 256  # rows pasted at once: a face may fill a photo of 100 million pixels


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
        score: confidence of the detector in [0, 1]; 1 for aligned crops.
        detector: name of the detector, or "aligned".
    """

    face: Tensor
    landmarks: Tensor
    matrix: Tensor
    box: NDArray[np.float64]
    score: float
    detector: str


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
    """Finds and aligns faces.

    Args:
        size: side of the canonical crops in pixels.
        detector: a name of `deocc.detection.list_detectors()`; None for `DEFAULT_DETECTOR`.
        weights: weights file of the detector; None for the packaged one.
        aligned: a name of `list_alignments()`: each photo is such a crop of one face, and no detector is used.
        every: return all faces of a photo instead of the most prominent one.

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
    ) -> None:
        if aligned is not None and aligned not in _ALIGNMENTS:
            raise ValueError(f"unknown alignment {aligned!r}: choose one of {', '.join(_ALIGNMENTS)}")
        if aligned is not None and (detector is not None or weights is not None):
            raise ValueError("aligned crops need no detector: give --aligned, or --detector and its weights, not both")
        if weights is not None and detector is None:
            raise ValueError("weights need the name of their detector: give --detector with --detector-weights")
        self.size, self.every = size, every
        self._aligned = aligned
        self._name = detector or DEFAULT_DETECTOR
        self._detector: Detector | None = create_detector(self._name, weights) if aligned is None else None

    def find(self, photo: NDArray[np.uint8], name: str = "the photo") -> list[PhotoFace]:
        """Find the most prominent face, or all faces, most prominent first (`deocc.detection.Detection.prominence`).

        Args:
            photo: (H, W, 3) RGB, upright.
            name: name of the photo in error messages.

        Raises:
            NoFaceError: there is no face.
            ValueError: the photo does not have the shape of an aligned crop.
        """
        height, width = photo.shape[:2]
        if self._detector is None:
            points = _aligned_landmarks(str(self._aligned), width, height, name)
            return [self._cut(photo, Detection(np.array([0.0, 0.0, width - 1, height - 1]), points, 1.0), "aligned")]
        if min(height, width) < _MIN_SIDE:
            raise NoFaceError(f"no face found in {name}: it is only {width} x {height} pixels")
        faces = [face for face in self._detector.detect(photo) if _is_usable(face)]
        if not faces:
            raise NoFaceError(
                f"no face found in {name} by {self._name}: use a larger or more frontal face, or --aligned for crops"
            )
        return [self._cut(photo, face, self._name) for face in (faces if self.every else faces[:1])]

    def _cut(self, photo: NDArray[np.uint8], found: Detection, detector: str) -> PhotoFace:
        points = torch.from_numpy(found.landmarks).float()
        matrix = similarity_transform(points, TEMPLATES["canonical"].tensor(self.size))
        landmarks = transform_points(points, matrix)
        return PhotoFace(cut(photo, matrix, self.size), landmarks, matrix, found.box, found.score, detector)


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


def _is_usable(face: Detection) -> bool:
    """Check that the landmarks are finite and not all in one pixel, so that the face can be aligned."""
    return bool(np.isfinite(face.landmarks).all()) and float(face.landmarks.std(0).max()) >= 1


def cut(photo: NDArray[np.uint8], matrix: Tensor, size: int) -> Tensor:
    """Cut a crop out of a photo; outside the photo its edge pixels are repeated.

    Args:
        photo: (H, W, 3) RGB.
        matrix: (2, 3) photo pixels to crop pixels.
        size: side of the crop in pixels.

    Returns:
        (3, size, size) in [-1, 1].
    """
    rows, columns = _crop_window(matrix, size, photo.shape, _MARGIN)
    window, matrix = _reduce(photo[rows, columns], _shift_origin(matrix, columns.start, rows.start))
    pixels = torch.tensor(window).permute(2, 0, 1)[None].float() / 127.5 - 1
    return warp(pixels, matrix, size)[0].clamp(-1, 1)


def paste_back(photo: NDArray[np.uint8], crop: Tensor, matrix: Tensor, weight: Tensor) -> NDArray[np.uint8]:
    """Return a copy of the photo with the crop in its place, unchanged wherever `weight_in_photo` is 0.

    Args:
        photo: (H, W, 3) RGB.
        crop: (3, S, S) in [-1, 1].
        matrix: (2, 3) photo pixels to crop pixels.
        weight: (1, S, S) opacity of the crop in [0, 1], such as a mask.

    Returns:
        (H, W, 3) RGB.
    """
    rows, columns = _crop_window(matrix, crop.shape[-1], photo.shape)
    pasted = photo.copy()
    for top in range(rows.start, rows.stop, _BAND):
        band = slice(top, min(top + _BAND, rows.stop)), columns
        colours = (_sample(crop, matrix, band, cv2.BORDER_REPLICATE) + 1) * 127.5
        opacity = _sample(weight, matrix, band, cv2.BORDER_CONSTANT)[..., None]
        mixed = photo[band] * (1 - opacity) + colours * opacity
        pasted[band] = np.where(opacity > 0, mixed.round().clip(0, 255).astype(np.uint8), photo[band])
    return pasted


def weight_in_photo(weight: Tensor, matrix: Tensor, height: int, width: int) -> NDArray[np.float32]:
    """Return the opacity of a crop, (1, S, S) in [0, 1], at each pixel of a photo, (height, width); 0 outside it."""
    rows, columns = _crop_window(matrix, weight.shape[-1], (height, width))
    opacity = np.zeros((height, width), np.float32)
    opacity[rows, columns] = _sample(weight, matrix, (rows, columns), cv2.BORDER_CONSTANT)
    return opacity


def _crop_window(matrix: Tensor, size: int, shape: tuple[int, ...], margin: float = 0.0) -> tuple[slice, slice]:
    """Return the rows and columns of a photo that a crop with a margin touches, at least one of each."""
    low, high = -1.0 - margin, size + margin
    corners = torch.tensor([(low, low), (high, low), (low, high), (high, high)])
    points = transform_points(corners, invert_transform(matrix))
    window = []
    first, last = points.amin(0).floor().tolist(), points.amax(0).ceil().tolist()
    for axis, length in ((1, shape[0]), (0, shape[1])):
        start = int(min(max(first[axis], 0), length - 1))
        window.append(slice(start, int(max(min(last[axis] + 1, length), start + 1))))
    return window[0], window[1]


def _shift_origin(matrix: Tensor, left: int, top: int) -> Tensor:
    """Return the matrix for a window of the photo that starts at (left, top)."""
    shift = torch.tensor([left, top], dtype=torch.float32)
    return torch.cat([matrix[:, :2], (matrix[:, 2] + matrix[:, :2] @ shift)[:, None]], 1)


def _reduce(window: NDArray[np.uint8], matrix: Tensor) -> tuple[NDArray[np.uint8], Tensor]:
    """Average a window that is much finer than the crop down to twice the crop's resolution, to save memory."""
    factor = int(0.5 / max(float(torch.linalg.det(matrix[:, :2]).abs().sqrt()), 1e-6))
    height, width = (side // max(factor, 1) for side in window.shape[:2])
    if factor < 2 or height < 2 or width < 2:
        return window, matrix
    factors = torch.tensor([window.shape[1] / width, window.shape[0] / height])
    small = np.asarray(cv2.resize(window, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    # Pixel centres: old = factor * new + (factor - 1) / 2.
    shift = matrix[:, 2] + matrix[:, :2] @ ((factors - 1) / 2)
    return small, torch.cat([matrix[:, :2] * factors, shift[:, None]], 1)


def _sample(crop: Tensor, matrix: Tensor, window: tuple[slice, slice], border: int) -> NDArray[np.float32]:
    """Sample a crop (C, S, S) at the pixels of a window of the photo: (h, w, C), or (h, w) if C is 1."""
    rows, columns = window
    pixels = crop.detach().cpu().float().permute(1, 2, 0).numpy()
    matrix = matrix.float()
    size = len(pixels)
    scale = float(torch.linalg.det(invert_transform(matrix)[:, :2]).abs().sqrt())  # photo pixels per crop pixel
    side = max(2, round(size * scale))
    if scale < 1 / _MAX_REFINEMENT and side < size:
        pixels = np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), dtype=np.float32)
        centre = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5]])
        matrix = (matrix + centre) * (side / size) - centre  # pixel centres: new = (old + 0.5) * factor - 0.5
    to_crop = _shift_origin(matrix, columns.start, rows.start).double().numpy()
    return np.asarray(
        cv2.warpAffine(
            pixels,
            to_crop,
            (columns.stop - columns.start, rows.stop - rows.start),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=border,
        ),
        dtype=np.float32,
    )
