"""Crops back into their photos."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.detection import Detection, Detector, create_detector
from deocc.geometry import TEMPLATES, invert_transform, similarity_transform, transform_points, warp

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
        raise ValueError(
            f"{name} is {width} x {height} pixels, {alignment} crops have the shape {shape}: leave --aligned out for photos"
        )
    factors = np.array([width / made.width, height / made.height])
    return np.asarray((np.array(made.points) + 0.5) * factors - 0.5)


_MARGIN = 3.0
"""Pixels of the crop that the window of the photo is wider on every side, so that smoothing sees the neighbours."""


def cut(photo: NDArray[np.uint8], matrix: Tensor, size: int) -> Tensor:
    """The crop of a photo; what lies beyond the photo's border repeats its edge.

    Args:
        photo: (H, W, 3) RGB.
        matrix: (2, 3) photo pixels to crop pixels.
        size: side of the crop in pixels.

    Returns:
        (3, size, size) in [-1, 1].
    """
    rows, columns = crop_window(matrix, size, photo.shape, _MARGIN)
    window = photo[rows, columns]
    shift = torch.tensor([columns.start, rows.start], dtype=torch.float32)
    window, matrix = _halved(window, moved(matrix, shift))
    pixels = torch.tensor(window).permute(2, 0, 1)[None].float() / 127.5 - 1
    return warp(pixels, matrix, size)[0].clamp(-1, 1)


def crop_window(matrix: Tensor, size: int, shape: tuple[int, ...], margin: float = 0.0) -> tuple[slice, slice]:
    """Rows and columns of a photo (H, W, ...) that a crop and `margin` of its pixels around it touch, at least one of each."""
    low, high = -1.0 - margin, size + margin
    corners = torch.tensor([(low, low), (high, low), (low, high), (high, high)])
    points = transform_points(corners, invert_transform(matrix))
    (left, top), (right, bottom) = points.amin(0).floor().tolist(), points.amax(0).ceil().tolist()
    return _within(top, bottom, shape[0]), _within(left, right, shape[1])


def _within(low: float, high: float, length: int) -> slice:
    start = int(min(max(low, 0), length - 1))
    return slice(start, int(max(min(high + 1, length), start + 1)))


def moved(matrix: Tensor, shift: Tensor) -> Tensor:
    """The (2, 3) matrix for a photo's window whose first pixel lies at `shift`, (2,) x, y."""
    return torch.cat([matrix[:, :2], (matrix[:, 2] + matrix[:, :2] @ shift)[:, None]], 1)


def _halved(window: NDArray[np.uint8], matrix: Tensor) -> tuple[NDArray[np.uint8], Tensor]:
    """A window several times finer than its crop, averaged down to about twice as fine before it becomes floating-point numbers."""
    factor = int(0.5 / max(float(torch.linalg.det(matrix[:, :2]).abs().sqrt()), 1e-6))
    height, width = (side // max(factor, 1) for side in window.shape[:2])
    if factor < 2 or height < 2 or width < 2:
        return window, matrix
    factors = torch.tensor([window.shape[1] / width, window.shape[0] / height])
    small = np.asarray(cv2.resize(window, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    shifted = moved(matrix, (factors - 1) / 2)
    return small, torch.cat([shifted[:, :2] * factors, shifted[:, 2:]], 1)


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
        self,
        size: int,
        detector: str | None = None,
        weights: str | None = None,
        aligned: str | None = None,
        every: bool = False,
    ) -> None:
        if aligned is not None:
            check_alignment(aligned)
            if detector is not None or weights is not None:
                raise ValueError(
                    "aligned crops need no detector: give --aligned, or --detector and its weights, not both"
                )
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
            raise NoFaceError(
                f"no face found in {name} by {self._name}: use a larger or more frontal face, or --aligned for crops"
            )
        return [self._cut(photo, face, self._name) for face in (faces if self.every else faces[:1])]

    def _cut(self, photo: NDArray[np.uint8], found: Detection, detector: str) -> PhotoFace:
        points = torch.from_numpy(found.landmarks).float()
        matrix = similarity_transform(points, TEMPLATES["canonical"].tensor(self.size))
        landmarks = transform_points(points, matrix)
        return PhotoFace(cut(photo, matrix, self.size), landmarks, matrix, found.box, found.score, detector)


def _is_usable(face: Detection) -> bool:
    """Landmarks can be aligned if they are finite and spread over a pixel at least."""
    return bool(np.isfinite(face.landmarks).all()) and float(face.landmarks.std(0).max()) >= 1


_FINEST = 1.5
"""A crop more than so many times finer than the photo is averaged first, since sampling alone would alias; as in `deocc.geometry.warp`."""

_BAND = 256
"""Rows of the photo that are pasted at once: a face may fill a photo of 100 million pixels."""


def paste_back(photo: NDArray[np.uint8], crop: Tensor, matrix: Tensor, weight: Tensor) -> NDArray[np.uint8]:
    """A copy of the photo with the crop in its place, bit-equal to the photo wherever `weight_in_photo` is 0.

    Args:
        photo: (H, W, 3) RGB.
        crop: (3, S, S) in [-1, 1].
        matrix: (2, 3) photo pixels to crop pixels.
        weight: (1, S, S) in [0, 1], how much of the crop shows: a mask, or a soft one.

    Returns:
        (H, W, 3) RGB.
    """
    rows, columns = crop_window(matrix, crop.shape[-1], photo.shape)
    pasted = photo.copy()
    for top in range(rows.start, rows.stop, _BAND):
        band = slice(top, min(top + _BAND, rows.stop)), columns
        colours = _in_window(crop, matrix, band, cv2.BORDER_REPLICATE)
        shown = _in_window(weight, matrix, band, cv2.BORDER_CONSTANT)[..., None]
        mixed = photo[band] * (1 - shown) + (colours + 1) * 127.5 * shown
        pasted[band] = np.where(shown > 0, mixed.round().clip(0, 255).astype(np.uint8), photo[band])
    return pasted


def weight_in_photo(weight: Tensor, matrix: Tensor, height: int, width: int) -> NDArray[np.float32]:
    """How much of a crop shows at each pixel of a photo of this size, (height, width) in [0, 1]; 0 beyond the crop.

    Args:
        weight: (1, S, S) in [0, 1].
        matrix: (2, 3) photo pixels to crop pixels.
        height: of the photo.
        width: of the photo.
    """
    rows, columns = crop_window(matrix, weight.shape[-1], (height, width))
    shown = np.zeros((height, width), np.float32)
    shown[rows, columns] = _in_window(weight, matrix, (rows, columns), cv2.BORDER_CONSTANT)
    return shown


def _in_window(crop: Tensor, matrix: Tensor, window: tuple[slice, slice], border: int) -> NDArray[np.float32]:
    """The crop (C, S, S), sampled at the pixels of a photo's window: (h, w, C), or (h, w) where C is 1."""
    rows, columns = window
    pixels, matrix = _coarser(crop.detach().cpu().float().permute(1, 2, 0).numpy(), matrix.float())
    to_crop = moved(matrix, torch.tensor([columns.start, rows.start], dtype=torch.float32)).double().numpy()
    size = (columns.stop - columns.start, rows.stop - rows.start)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(pixels, to_crop, size, flags=flags, borderMode=border), dtype=np.float32)


def _coarser(pixels: NDArray[np.float32], matrix: Tensor) -> tuple[NDArray[np.float32], Tensor]:
    size = len(pixels)
    scale = float(torch.linalg.det(invert_transform(matrix)[:, :2]).abs().sqrt())
    side = max(2, round(size * scale))
    if scale >= 1 / _FINEST or side >= size:
        return pixels, matrix
    small = np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), dtype=np.float32)
    factor = side / size
    centre = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5]])
    return small, (matrix + centre) * factor - centre  # pixel centres: new = (old + 0.5) * factor - 0.5
