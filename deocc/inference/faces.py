"""Find the faces of a photo, cut them out as canonical crops, and paste crops back."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.detection import Detection, Detector, create_detector
from deocc.geometry import TEMPLATES, Points, invert_transform, similarity_transform, transform_points, warp

DEFAULT_DETECTOR: Final = "mtcnn"
"""On 327 photos of people who really wear masks MTCNN finds a face in 84 %, dlib's detector in 21 %
(`python -m bench.detectors --photos FOLDER`)."""

ALIGNMENTS: Final[dict[str, tuple[int, int, Points]]] = {
    "arcface112": (112, 112, TEMPLATES["arcface"].points),
    "dlib150": (150, 150, TEMPLATES["dlib"].points),
    "celeba178": (178, 218, ((69.0, 111.0), (108.0, 111.0), (88.0, 136.0), (72.0, 152.0), (105.0, 152.0))),
    "canonical": (350, 350, TEMPLATES["canonical"].points),
}
"""Width, height and landmarks of aligned crops in pixels."""

_ASPECT_TOLERANCE: Final = 0.01  # relative: aligned crops may have been scaled to whole pixels
_MIN_SIDE: Final = 20  # pixels: MTCNN finds no smaller face, and dlib's network fails
# Our choices.
_RIVAL: Final = 0.5  # share of the first face's prominence from which another face makes the choice unclear
_CERTAIN: Final = 0.99  # score from which a face that overlaps the first one is another person's
_TURNED_DOUBT: Final = 0.25  # highest 1 - score there, as a share of that in the upright photo
_MAX_DEVIATION: Final = 0.15  # of a landmark from the canonical template, in sides of the crop
_MARGIN: Final = 3.0  # crop pixels around the crop, so that antialiasing sees the neighbours
_MAX_REFINEMENT: Final = 1.5  # crops that are finer than the photo by more are averaged first, as in `geometry.warp`
_BAND: Final = 256  # rows pasted at once: a face may fill a photo of 100 million pixels


class NoFaceError(ValueError):
    """No face was found in a photo, or not as many as the number of the chosen one."""


class SeveralFacesError(ValueError):
    """A photo shows several faces of similar prominence, and none was chosen."""


@dataclass(frozen=True, eq=False)
class PhotoFace:
    """One face of a photo."""

    face: Tensor  # (3, S, S) canonical crop in [-1, 1]
    landmarks: Tensor  # (5, 2) x, y in pixels of the crop
    matrix: Tensor  # (2, 3) photo pixels to crop pixels
    box: NDArray[np.float64]  # (4,) x0, y0, x1, y1 in pixels of the photo
    score: float  # confidence of the detector in [0, 1]; 1 for aligned crops
    detector: str  # its name, or "aligned"
    number: int = 1  # of the face in the photo, from 1, most prominent first
    count: int = 1  # number of faces found in the photo
    turned: int = 0  # degrees counter-clockwise by which the photo was turned to find it: 0, 90, 180 or 270

    @property
    def details(self) -> dict[str, object]:
        """Columns of tables: how many faces the photo shows, and how and where this one was found."""
        box = dict(zip(("left", "top", "right", "bottom"), self.box.round(1).tolist(), strict=True))
        found = {"faces": self.count, "detector": self.detector, "score": round(self.score, 3)}
        return {**found, **({"turned": self.turned} if self.turned else {}), **box}


class FaceFinder:
    """Finds and aligns faces, also in photos that are turned by a multiple of 90 degrees.

    Args:
        size: side of the canonical crops in pixels.
        detector: a name of `deocc.detection.list_detectors()`; None for `DEFAULT_DETECTOR`.
        weights: weights file of the detector; None for the packaged one.
        aligned: a name in `ALIGNMENTS`: each photo is such a crop of one face, and no detector is used.
        every: return all faces of a photo instead of the most prominent one.
        number: return this face of photos that show several, counted from 1, most prominent first.

    Raises:
        ValueError: unknown alignment, or contradicting arguments. Others as `create_detector`.
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
        if aligned is not None and aligned not in ALIGNMENTS:
            raise ValueError(f"unknown alignment {aligned!r}: choose one of {', '.join(ALIGNMENTS)}")
        if aligned is not None and (detector is not None or weights is not None):
            raise ValueError("aligned crops need no detector: give --aligned, or --detector and its weights, not both")
        if weights is not None and detector is None:
            raise ValueError("weights need the name of their detector: give --detector with --detector-weights")
        if number is not None and (number < 1 or every):
            raise ValueError(f"--face {number}: give a number from 1, and not together with --all")
        self.size, self.every, self.number = size, every, number
        self._aligned = aligned
        self._name = "aligned" if aligned is not None else detector or DEFAULT_DETECTOR
        self._detector: Detector | None = create_detector(self._name, weights) if aligned is None else None

    def find(self, photo: NDArray[np.uint8], name: str = "the photo") -> list[PhotoFace]:
        """Find the most prominent face, the chosen one or all, most prominent first, of a photo (H, W, 3) RGB.

        Warns if the photo had to be turned; `name` is the photo's name in messages.

        Raises:
            NoFaceError: there is no face, or none of the chosen number.
            ValueError: the photo does not have the shape of an aligned crop.
        """
        found, turned = self._detect(photo, name)
        numbers = range(1, len(found) + 1) if self.every else [self._choose(found, name)]
        return [self._cut(photo, found, number, turned) for number in numbers]

    def find_single(self, photo: NDArray[np.uint8], name: str = "the photo", may_choose: bool = True) -> PhotoFace:
        """Find the face of a photo that shows one person, or, if `may_choose`, the chosen face; errors as `find`.

        Raises:
            SeveralFacesError: no face was chosen, and others are at least half as prominent as the first one.
        """
        found, turned = self._detect(photo, name)
        chosen = may_choose and self.number is not None
        if not chosen and (rivals := find_rivals(found)):
            boxes = {number: face.box.round().astype(int).tolist() for number, face in rivals.items()}
            listed = ", ".join(f"{n} at {x0}, {y0}, {x1 - x0} x {y1 - y0}" for n, (x0, y0, x1, y1) in boxes.items())
            remedy = "choose one with --face N, or crop the photo" if may_choose else "crop the photo"
            raise SeveralFacesError(f"{name} shows {len(rivals)} faces (left, top, width x height: {listed}): {remedy}")
        return self._cut(photo, found, self._choose(found, name) if chosen else 1, turned)

    def _choose(self, found: Sequence[Detection], name: str) -> int:
        """Return the number of the chosen face; a single face needs no choice."""
        if self.number is None or len(found) == 1:
            return 1
        if self.number > len(found):
            raise NoFaceError(f"{name} shows {len(found)} faces: choose a lower --face than {self.number}")
        return self.number

    def _detect(self, photo: NDArray[np.uint8], name: str) -> tuple[list[Detection], int]:
        """Return the plausible faces, most prominent first, and the degrees by which the photo was turned."""
        height, width = photo.shape[:2]
        if self._detector is None:
            full_width, full_height, template = ALIGNMENTS[str(self._aligned)]
            if abs(width * full_height / (height * full_width) - 1) > _ASPECT_TOLERANCE:
                raise ValueError(
                    f"{name} is {width} x {height} pixels, {self._aligned} crops have the shape "
                    f"{full_width} x {full_height}: leave --aligned out for photos"
                )
            scale = np.array([width / full_width, height / full_height])  # crops may be scaled
            points = (np.array(template) + 0.5) * scale - 0.5
            return [Detection(np.array([0.0, 0.0, width - 1, height - 1]), points, 1.0)], 0
        if min(height, width) < _MIN_SIDE:
            raise NoFaceError(f"no face found in {name}: it is only {width} x {height} pixels")
        detector, upright_score = self._detector, self._detector.upright_score

        def search(quarters: int) -> tuple[list[Detection], float]:
            found = [face for face in detector.detect(np.rot90(photo, quarters)) if is_plausible(face)]
            return found, max((face.score for face in found), default=0.0)

        faces, best = search(0)
        turned = 0
        if best < upright_score:
            for quarters in (1, 3, 2):
                others, score = search(quarters)
                # Lower scores are upright masked faces that the detector misreads.
                if score >= max(upright_score, 1 - _TURNED_DOUBT * (1 - best)):
                    faces, best = [_turn_back(face, quarters, width, height) for face in others], score
                    turned = 90 * quarters
        if not faces:
            smallest = detector.smallest_face(height, width)
            raise NoFaceError(
                f"no face found in {name} by {self._name}, which looks for faces from {smallest} pixels in upright "
                "and turned photos: use a larger or more frontal face, or --aligned for crops"
            )
        if turned:
            warnings.warn(f"{name}: found the face after turning the photo by {turned} degrees", stacklevel=2)
        return faces, turned

    def _cut(self, photo: NDArray[np.uint8], found: Sequence[Detection], number: int, turned: int) -> PhotoFace:
        face = found[number - 1]
        points = torch.from_numpy(face.landmarks).float()
        matrix = similarity_transform(points, TEMPLATES["canonical"].tensor(self.size))
        crop, landmarks = cut(photo, matrix, self.size), transform_points(points, matrix)
        return PhotoFace(crop, landmarks, matrix, face.box, face.score, self._name, number, len(found), turned)


def find_rivals(found: Sequence[Detection]) -> dict[int, Detection]:
    """Return the faces among which a photo leaves the choice open, by number from 1; none if one stands out.

    The faces are given most prominent first, at least one. A detector may read the lower edge of a mask, with chin and
    neck, as another face. Such a face is less certain, overlaps the first one and is centred below it; it is left out.
    `python -m bench.detectors --photos FOLDER` counts the photos that leave the choice open.
    """
    first = found[0]
    left, top, right, bottom = first.box.tolist()
    rivals = {1: first}
    for number, face in enumerate(found[1:], 2):
        below = left <= face.box[[0, 2]].mean() <= right and top < face.box[1] <= bottom
        if face.prominence >= _RIVAL * first.prominence and not (below and face.score < _CERTAIN):
            rivals[number] = face
    return rivals if len(rivals) > 1 else {}


def is_plausible(face: Detection) -> bool:
    """Return whether the five points have the shape of a face, up to rotation and scale."""
    if not np.isfinite(face.landmarks).all() or face.landmarks.std(0).max() < 1:  # all in one pixel
        return False
    points, template = torch.from_numpy(face.landmarks).float(), TEMPLATES["canonical"].tensor(1)
    fitted = transform_points(points, similarity_transform(points, template))
    return float((fitted - template).norm(dim=1).max()) <= _MAX_DEVIATION


def _turn_back(face: Detection, quarters: int, width: int, height: int) -> Detection:
    """Map a face found in `np.rot90(photo, quarters)` to the photo, which is `width` x `height` pixels."""
    x, y = np.concatenate([face.box.reshape(2, 2), face.landmarks]).T
    right, bottom = width - 1, height - 1
    points = np.stack([(right - y, x), (right - x, bottom - y), (y, bottom - x)][quarters - 1], 1)
    return Detection(np.concatenate([points[:2].min(0), points[:2].max(0)]), points[2:], face.score)


def cut(photo: NDArray[np.uint8], matrix: Tensor, size: int) -> Tensor:
    """Cut a crop (3, size, size) in [-1, 1] out of a photo (H, W, 3); outside the photo its edge pixels are repeated.

    The matrix (2, 3) maps photo pixels to crop pixels. To save memory, photos that are much finer than the crop are
    first averaged down to twice its resolution.
    """
    rows, columns = _crop_window(matrix, size, photo.shape, _MARGIN)
    window, matrix = photo[rows, columns], _shift_origin(matrix, columns.start, rows.start)
    factor = max(1, int(0.5 / max(float(torch.linalg.det(matrix[:, :2]).abs().sqrt()), 1e-6)))
    height, width = (side // factor for side in window.shape[:2])
    if factor > 1 and height > 1 and width > 1:
        factors = torch.tensor([window.shape[1] / width, window.shape[0] / height])
        window = np.asarray(cv2.resize(window, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        # Pixel centres: old = factor * new + (factor - 1) / 2.
        shift = matrix[:, 2] + matrix[:, :2] @ ((factors - 1) / 2)
        matrix = torch.cat([matrix[:, :2] * factors, shift[:, None]], 1)
    pixels = torch.tensor(window).permute(2, 0, 1)[None].float() / 127.5 - 1
    return warp(pixels, matrix, size)[0].clamp(-1, 1)


def paste_back(photo: NDArray[np.uint8], crop: Tensor, matrix: Tensor, weight: Tensor) -> NDArray[np.uint8]:
    """Return a copy of a photo (H, W, 3) with a crop (3, S, S) in its place, unchanged where `weight_in_photo` is 0.

    The matrix (2, 3) maps photo pixels to crop pixels; `weight`, (1, S, S) in [0, 1], is the opacity, such as a mask.
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
    lengths = torch.tensor([shape[1], shape[0]])
    start = points.amin(0).floor().clamp(min=0).minimum(lengths - 1)
    stop = (points.amax(0).ceil() + 1).minimum(lengths).maximum(start + 1)
    (left, top), (right, bottom) = start.int().tolist(), stop.int().tolist()
    return slice(top, bottom), slice(left, right)


def _shift_origin(matrix: Tensor, left: int, top: int) -> Tensor:
    """Return the matrix for a window of the photo that starts at (left, top)."""
    shift = torch.tensor([left, top], dtype=torch.float32)
    return torch.cat([matrix[:, :2], (matrix[:, 2] + matrix[:, :2] @ shift)[:, None]], 1)


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
    shape = columns.stop - columns.start, rows.stop - rows.start
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(pixels, to_crop, shape, flags=flags, borderMode=border), dtype=np.float32)
