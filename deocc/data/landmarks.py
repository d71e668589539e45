"""Landmarks of sets that have none: detected once, then read from the cache.

The file is `CACHE/landmarks/HASH.npz`, where CACHE is the environment variable DEOCC_CACHE or `~/.cache/deocc`.
"""

import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from deocc.data.images import read_image
from deocc.detection import Detection, Detector, create_detector
from deocc.detection.detector import given_file
from deocc.files import cache_folder, checksum, hold_lock, replace_file
from deocc.geometry import TEMPLATES
from deocc.messages import describe_error, name_some

_VERSION: Final = 2  # increase when a detector's landmarks change, so that old files are not used
_SAVE_EVERY: Final = 500  # images; an interruption loses seconds of work
SUBSTITUTED: Final = "a mean face's landmarks stand in"
LEFT_OUT: Final = "they are left out of training and validation"


@dataclass
class FoundLandmarks:
    """Landmarks detected in N images."""

    names: Sequence[str]
    """A name for each image."""
    landmarks: NDArray[np.float64]
    """(N, 5, 2) x, y in pixels; NaN without a face."""
    size: NDArray[np.int64]
    """(N, 2) width and height in pixels; 0 for an image that was not read."""

    @property
    def done(self) -> NDArray[np.bool_]:
        """(N,) bool, True for images that have been read."""
        return self.size[:, 0] > 0

    @property
    def found(self) -> NDArray[np.bool_]:
        """(N,) bool, True for images with a face."""
        return np.asarray(np.isfinite(self.landmarks).all((1, 2)))

    @property
    def lost(self) -> list[str]:
        """Names of the images without a face."""
        return [self.names[index] for index in np.flatnonzero(~self.found).tolist()]

    def filled(self) -> NDArray[np.float64]:
        """Return (N, 5, 2) landmarks with a substitute where no face was found.

        The substitute is the mean of the images of the same size, or else the canonical template in the middle of the
        image (our choice).
        """
        landmarks, found = self.landmarks.copy(), self.found
        for size in np.unique(self.size[~found], axis=0):
            same = (self.size == size).all(1)
            known = landmarks[same & found]
            landmarks[same & ~found] = known.mean(0) if len(known) else _template(*size.tolist())
        return landmarks


def find_landmarks(
    names: Sequence[str],
    image: Callable[[int], NDArray[np.uint8]],
    key: str,
    detector: str = "dlib",
    weights: str | None = None,
) -> FoundLandmarks:
    """Detect the five landmarks of every image, or read them from the cache; interrupted work is resumed.

    Of several faces the one with the largest `side * (1 - d)` is used, where d is the distance of the centres of box
    and image in half diagonals (our choice: data sets centre the person they name). A cache that cannot be read or
    written causes a warning, and the work continues.

    Args:
        names: a name for each image.
        image: returns the image at a position, (H, W, 3) RGB.
        key: distinguishes sets with equal names, for example a hash of the files.
        detector: name in `deocc.detection.list_detectors()`.
        weights: weights file of the detector; None for the packaged one.

    Raises:
        ImportError: a package that the detector needs is not installed.
        FileNotFoundError: there is no such weights file.
        ValueError: unknown detector, unusable weights, or an image that cannot be read.
    """
    path = cache_folder() / "landmarks" / f"{_hash(names, key, detector, weights)}.npz"
    state = _read(path, names)
    if not state.done.all():
        with hold_lock(path.parents[1] / "locks" / f"{path.stem}.lock", required=False):
            state = _read(path, names)  # another process may have detected them meanwhile
            if not state.done.all():
                _complete(state, image, create_detector(detector, weights), path)
    return state


def find_file_landmarks(
    root: Path, names: Sequence[str], detector: str = "dlib", weights: str | None = None, skip_unreadable: bool = False
) -> FoundLandmarks:
    """Call `find_landmarks` for image files `root/name`; the cache is valid as long as their names and sizes are equal.

    Args:
        root: folder to which the names are relative.
        names: the files.
        detector: see `find_landmarks`.
        weights: see `find_landmarks`.
        skip_unreadable: treat a file that cannot be read as an image without a face instead of raising an error.

    Raises:
        ImportError, FileNotFoundError, ValueError: see `find_landmarks`.
    """
    sizes = [(root / name).stat().st_size for name in names]
    listed = "".join(f"{name} {size}\n" for name, size in zip(names, sizes, strict=True))
    key = checksum(listed)

    def image(index: int) -> NDArray[np.uint8]:
        try:
            return read_image(root / names[index])
        except (ValueError, OSError):
            if not skip_unreadable:
                raise
            return np.zeros((1, 1, 3), np.uint8)

    return find_landmarks(names, image, key, detector, weights)


def detected_landmarks(
    names: Sequence[str],
    image: Callable[[int], NDArray[np.uint8]],
    key: str,
    detector: str = "dlib",
    weights: str | None = None,
) -> NDArray[np.float64]:
    """Return (N, 5, 2) landmarks of all images; a warning names images without a face, which get a substitute.

    Raises:
        ImportError, FileNotFoundError, ValueError: see `find_landmarks`.
    """
    found = find_landmarks(names, image, key, detector, weights)
    warn_of_lost(found.lost, len(names), SUBSTITUTED)
    return found.filled()


def warn_of_lost(lost: Sequence[str], total: int, consequence: str) -> None:
    """Warn that no face was found in the images `lost` of `total` images; the first three are named."""
    if lost:
        found = f"no face found in {len(lost):,} of {total:,} images ({name_some(lost)})"
        warnings.warn(f"{found}: {consequence}", stacklevel=3)


def _hash(names: Sequence[str], key: str, detector: str, weights: str | None) -> str:
    described = repr((_VERSION, key, detector, list(names)))
    return checksum(described, *([] if weights is None else [given_file(weights)]))[:32]


def _read(path: Path, names: Sequence[str]) -> FoundLandmarks:
    """Read the cached state, or return one in which nothing is known."""
    fresh = FoundLandmarks(names, np.full((len(names), 5, 2), np.nan), np.zeros((len(names), 2), np.int64))
    if not path.is_file():
        return fresh
    try:
        # Opened here, since NumPy leaves a truncated file open if given a path
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            state = FoundLandmarks(names, file["landmarks"], file["size"])
        if (state.landmarks.shape, state.size.shape) != (fresh.landmarks.shape, fresh.size.shape):
            raise ValueError(f"it holds {state.landmarks.shape} landmarks in place of {fresh.landmarks.shape}")
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        reason = describe_error(error)
        warnings.warn(f"cannot read the landmarks in {path} ({reason}): faces are detected again", stacklevel=3)
        return fresh
    return state


def _write(path: Path, state: FoundLandmarks) -> bool:
    """Write the state; return False, with a warning, if that is not possible."""
    try:
        with replace_file(path) as draft, draft.open("wb") as file:
            np.savez(file, landmarks=state.landmarks, size=state.size)
    except OSError as error:
        advice = "set DEOCC_CACHE to a folder that can be written to, or they are detected again next time"
        warnings.warn(f"cannot keep landmarks in {path.parent} ({describe_error(error)}): {advice}", stacklevel=4)
        return False
    return True


def _complete(state: FoundLandmarks, image: Callable[[int], NDArray[np.uint8]], detector: Detector, path: Path) -> None:
    """Detect faces in the images that have not been read, and save the results, also when interrupted."""
    writable = path.is_file() or _write(path, state)  # warns of an unusable folder before hours of work
    pending = np.flatnonzero(~state.done).tolist()
    shown = track(pending, "finding faces", console=Console(stderr=True), transient=True)
    try:
        for number, index in enumerate(shown, 1):
            photo = image(index)
            faces = detector.detect(photo)
            height, width = photo.shape[:2]
            if faces:
                state.landmarks[index] = _main_face(faces, width, height).landmarks
            state.size[index] = width, height
            if writable and number % _SAVE_EVERY == 0:
                writable = _write(path, state)
    finally:
        if writable:
            _write(path, state)


def _main_face(faces: list[Detection], width: int, height: int) -> Detection:
    """Return the face with the largest weight, see `find_landmarks`."""
    centre, half_diagonal = np.array([width - 1, height - 1]) / 2, np.hypot(width, height) / 2

    def weight(face: Detection) -> float:
        corners = face.box.reshape(2, 2)
        distance = np.linalg.norm(corners.mean(0) - centre) / half_diagonal
        return float(np.sqrt(np.prod(corners[1] - corners[0])) * (1 - distance))

    return max(faces, key=weight)


def _template(width: int, height: int) -> NDArray[np.float64]:
    """Return (5, 2) landmarks of the largest canonical crop in the middle of an image of this size."""
    template, side = TEMPLATES["canonical"], min(width, height)
    scaled = (np.array(template.points) + 0.5) * (side / template.size) - 0.5
    return scaled + (np.array([width, height]) - side) / 2
