"""Landmarks of sets that have none: detected once, then read from the cache.

The file is `CACHE/landmarks/HASH.npz`, where CACHE is the environment variable DEOCC_CACHE or `~/.cache/deocc`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deocc.data.face_set import try_to_store
from deocc.data.images import read_image
from deocc.data.loader import MOST
from deocc.detection import Detection, Detector, create_detector
from deocc.detection.detector import given_file
from deocc.files import cache_folder, checksum, hold_lock, read_npz
from deocc.geometry import TEMPLATES
from deocc.messages import describe_error, name_some, one_line, show_progress

ReadImage = Callable[[Path], NDArray[np.uint8]]

_VERSION: Final = 3  # increase when a detector's landmarks change, so that old files are not used
_SAVE_EVERY: Final = 500  # images; an interruption loses seconds of work
SUBSTITUTED: Final = "a mean face's landmarks stand in"
LEFT_OUT: Final = "they are left out of training and validation"


@dataclass
class FoundLandmarks:
    """Landmarks detected in N images.

    Attributes:
        names: a name for each image.
        landmarks: (N, 5, 2) x, y in pixels; NaN without a face.
        size: (N, 2) width and height in pixels; 0 for an image that was not read.
        unreadable: reason by name of each image that could not be read.
    """

    names: Sequence[str]
    landmarks: NDArray[np.float64]
    size: NDArray[np.int64]
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def found(self) -> NDArray[np.bool_]:
        """(N,) bool, True for images with a face."""
        return np.asarray(np.isfinite(self.landmarks).all((1, 2)))

    def warn(self, chosen: NDArray[np.bool_] | None = None, consequence: str = SUBSTITUTED) -> None:
        """Warn of images without a face among the readable `chosen` (N,), by default all, and of the consequence."""
        readable = np.asarray(self.size.all(1))
        chosen = readable if chosen is None else chosen & readable
        lost = [self.names[index] for index in np.flatnonzero(chosen & ~self.found).tolist()]
        if lost:
            warnings.warn(
                f"no face found in {len(lost):,} of {int(chosen.sum()):,} images ({name_some(lost)}): {consequence}",
                stacklevel=3,
            )

    def filled(self) -> NDArray[np.float64]:
        """Return (N, 5, 2) landmarks with a substitute where no face was found.

        It is the mean of the images of the same size, or else the canonical template in the middle (our choice).
        """
        landmarks, found, template = self.landmarks.copy(), self.found, TEMPLATES["canonical"]
        for size in np.unique(self.size[~found], axis=0):
            same, side = (self.size == size).all(1), int(size.min())
            known = landmarks[same & found]
            centred = (np.array(template.points) + 0.5) * (side / template.size) - 0.5 + (size - side) / 2
            landmarks[same & ~found] = known.mean(0) if len(known) else centred
        return landmarks


def find_landmarks(
    root: Path,
    names: Sequence[str],
    detector: str = "dlib",
    weights: str | None = None,
    read: ReadImage = read_image,
    skip_unreadable: bool = False,
) -> FoundLandmarks:
    """Detect the five landmarks of every image, or read them from the cache; interrupted work is resumed.

    The cache is valid as long as names, sizes and times of the files, detector and weights are equal. If it cannot be
    read or written, a warning says so, and the work continues.

    Of several faces the one with the largest `side * (1 - d)` is used, where d is the distance of the centres of box
    and image in half diagonals (our choice: data sets centre the person they name).

    Args:
        root: folder to which the names are relative.
        names: the files.
        detector: name in `deocc.detection.list_detectors()`.
        weights: weights file of the detector; None for the packaged one.
        read: reads a file as (H, W, 3) RGB.
        skip_unreadable: warn of files that cannot be read, and treat them as images without a face, instead of raising
            an error. The next call tries them again.

    Raises:
        ImportError: a package that the detector needs is not installed.
        FileNotFoundError: there is no such weights file.
        ValueError: unknown detector, unusable weights, an image that cannot be read, or too many of them to skip.
    """
    status = ((name, (root / name).stat()) for name in names)
    listed = "".join(f"{name} {file.st_size} {file.st_mtime_ns}\n" for name, file in status)
    described = repr((_VERSION, checksum(listed), detector, list(names)))
    key = checksum(described, *([] if weights is None else [given_file(weights)]))[:32]
    path = cache_folder() / "landmarks" / f"{key}.npz"
    state = _read(path, names)
    if not state.size.all():
        with hold_lock(path.parents[1] / "locks" / f"{path.stem}.lock", required=False):
            state = _read(path, names)  # another process may have detected them meanwhile
            if not state.size.all():
                _complete(state, root, create_detector(detector, weights), read, skip_unreadable, path)
    if state.unreadable:
        lost, first = [*state.unreadable], next(iter(state.unreadable.values()))
        found = f"{len(lost):,} of {len(names):,} images cannot be read ({name_some(lost)}; the first: {first})"
        if len(lost) > MOST * len(names):
            raise ValueError(f"{found}, more than {MOST:.0%}: replace or remove them, then start again")
        warnings.warn(f"{found}: they are treated as images without a face", stacklevel=3)
    return state


def _read(path: Path, names: Sequence[str]) -> FoundLandmarks:
    """Read the cached state, or return one in which nothing is known."""
    fresh = FoundLandmarks(names, np.full((len(names), 5, 2), np.nan), np.zeros((len(names), 2), np.int64))
    if not path.is_file():
        return fresh
    try:
        arrays = read_npz(path, {"landmarks", "size"}.__contains__)
        state = FoundLandmarks(names, arrays["landmarks"], arrays["size"])
        if (state.landmarks.shape, state.size.shape) != (fresh.landmarks.shape, fresh.size.shape):
            raise ValueError(f"it holds {state.landmarks.shape} landmarks in place of {fresh.landmarks.shape}")
        return state
    except (ValueError, KeyError) as error:
        reason = describe_error(error)
        warnings.warn(f"cannot read the landmarks in {path} ({reason}): faces are detected again", stacklevel=3)
        return fresh


def _complete(
    state: FoundLandmarks, root: Path, detector: Detector, read: ReadImage, skip_unreadable: bool, path: Path
) -> None:
    """Detect faces in the images that have not been read, and save the results, also when interrupted."""

    def save() -> bool:
        return try_to_store(path, lambda file: np.savez(file, landmarks=state.landmarks, size=state.size))

    writable = path.is_file() or save()  # warns of an unusable folder before hours of work
    pending = np.flatnonzero(~state.size.all(1)).tolist()
    try:
        for number, index in enumerate(show_progress(pending, "finding faces"), 1):
            try:
                photo = read(root / state.names[index])
            except (ValueError, OSError) as error:
                if not skip_unreadable:
                    raise
                state.unreadable[state.names[index]] = one_line(error)
                continue
            faces = detector.detect(photo)
            size = np.array(photo.shape[1::-1])
            if faces:
                state.landmarks[index] = max(faces, key=lambda face: _weight(face, size)).landmarks
            state.size[index] = size
            if writable and number % _SAVE_EVERY == 0:
                writable = save()
    finally:
        if writable:
            save()


def _weight(face: Detection, size: NDArray[np.int64]) -> float:
    """Return the weight of a face in an image of width and height `size`, see `find_landmarks`."""
    corners = face.box.reshape(2, 2)
    distance = np.linalg.norm(corners.mean(0) - (size - 1) / 2) / (np.hypot(*size) / 2)
    return float(np.sqrt(np.prod(corners[1] - corners[0])) * (1 - distance))
