"""Landmarks of a set that has none of its own: found by a detector once, then read from a file.

The file is `CACHE/landmarks/HASH.npz`, CACHE the environment's DEOCC_CACHE or `~/.cache/deocc`.
"""

import hashlib
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from deocc.data.images import read_image
from deocc.detection import Detection, Detector, create_detector
from deocc.detection.detector import given_file
from deocc.geometry import TEMPLATES
from deocc.runs import cache_folder

_VERSION: Final = 2  # raised when a detector's landmarks change, so that old files are not taken for new ones
_SAVE_EVERY: Final = 500  # images: seconds of work to lose, and at CelebA's size some 16 MB to write each time
_SHOWN: Final = 3
SUBSTITUTED: Final = "a mean face's landmarks stand in"
LEFT_OUT: Final = "they are left out of training and validation"


@dataclass
class FoundLandmarks:
    """What a detector found in N images."""

    names: Sequence[str]
    """One name an image."""
    landmarks: NDArray[np.float64]
    """(N, 5, 2) x, y in pixels; NaN where no face is known."""
    size: NDArray[np.int64]
    """(N, 2) width and height in pixels; 0 for an image that was not read."""

    @property
    def done(self) -> NDArray[np.bool_]:
        """(N,) which images have been read."""
        return self.size[:, 0] > 0

    @property
    def found(self) -> NDArray[np.bool_]:
        """(N,) which images have a face."""
        return np.asarray(np.isfinite(self.landmarks).all((1, 2)))

    @property
    def lost(self) -> list[str]:
        """The names of the images without a face."""
        return [self.names[index] for index in np.flatnonzero(~self.found).tolist()]

    def filled(self) -> NDArray[np.float64]:
        """(N, 5, 2) landmarks with a substitute where no face was found.

        The substitute is the mean landmarks of the images of the same size, else those of the canonical template in the middle of the image
        (our choice).
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
    """Detect the five landmarks of every image, or read them from the file of an earlier call; interrupted work is resumed.

    If an image shows several faces, the one with the largest `side * (1 - d)` counts, where d is the distance of the box's centre from the
    image's centre in half diagonals (our choice: data sets centre the person they name). A file that cannot be read or a folder that cannot
    be written to causes a warning; the work continues.

    Args:
        names: one name an image.
        image: returns the photograph at a position, (H, W, 3) RGB.
        key: distinguishes this set from others with equal names, for example a hash of its files.
        detector: a name of `deocc.detection.list_detectors()`.
        weights: the detector's weights file; None for the packaged one.

    Raises:
        ImportError: a package that the detector needs is not installed, and there is something to detect.
        FileNotFoundError: there is no such weights file.
        ValueError: unknown detector, unusable weights, or an image that cannot be read.
    """
    path = cache_folder() / "landmarks" / f"{_hash(names, key, detector, weights)}.npz"
    state = _read(path, names)
    if not state.done.all():
        with _alone(path):
            state = _read(path, names)  # another process may have found them meanwhile
            if not state.done.all():
                _complete(state, image, create_detector(detector, weights), path)
    return state


def find_file_landmarks(
    root: Path, names: Sequence[str], detector: str = "dlib", weights: str | None = None, skip_unreadable: bool = False
) -> FoundLandmarks:
    """`find_landmarks` of the image files `root/name`; the cache is valid as long as their names and sizes are the same.

    Args:
        root: the folder that the names are relative to.
        names: the files.
        detector: as in `find_landmarks`.
        weights: as in `find_landmarks`.
        skip_unreadable: treat a file that cannot be read as an image without a face instead of raising.

    Raises:
        ImportError, FileNotFoundError, ValueError: as in `find_landmarks`.
    """
    sizes = [(root / name).stat().st_size for name in names]
    listed = "".join(f"{name} {size}\n" for name, size in zip(names, sizes, strict=True))
    key = hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()

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
    """(N, 5, 2) landmarks of every image as `find_landmarks`; a warning names images without a face, which get a substitute.

    Raises:
        ImportError, FileNotFoundError, ValueError: as in `find_landmarks`.
    """
    found = find_landmarks(names, image, key, detector, weights)
    warn_of_lost(found.lost, len(names), SUBSTITUTED)
    return found.filled()


def warn_of_lost(lost: Sequence[str], total: int, consequence: str) -> None:
    """Warn that no face was found in the images named `lost` of `total`; the first three are named."""
    if lost:
        shown = ", ".join([*lost[:_SHOWN], *(["..."] if len(lost) > _SHOWN else [])])
        warnings.warn(f"no face found in {len(lost):,} of {total:,} images ({shown}): {consequence}", stacklevel=3)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time finds what belongs into this file; the others wait. Without, where the folder cannot be written to."""
    lock = FileLock(path.parents[1] / "locks" / f"{path.stem}.lock")
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _hash(names: Sequence[str], key: str, detector: str, weights: str | None) -> str:
    """A hash of all that the landmarks follow from."""
    digest = hashlib.sha256(repr((_VERSION, key, detector, list(names))).encode())
    if weights is not None:
        with given_file(weights).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _read(path: Path, names: Sequence[str]) -> FoundLandmarks:
    """The file's state, or one in which nothing is known."""
    fresh = FoundLandmarks(names, np.full((len(names), 5, 2), np.nan), np.zeros((len(names), 2), np.int64))
    try:
        with (
            path.open("rb") as content,
            np.load(content, allow_pickle=False) as file,
        ):  # given a path, NumPy leaves a cut file open
            state = FoundLandmarks(names, file["landmarks"], file["size"])
        if (state.landmarks.shape, state.size.shape) != (fresh.landmarks.shape, fresh.size.shape):
            raise ValueError(f"it holds {state.landmarks.shape} landmarks in place of {fresh.landmarks.shape}")
    except (FileNotFoundError, NotADirectoryError):
        return fresh
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        warnings.warn(f"cannot read the landmarks in {path} ({_reason(error)}): faces are detected again", stacklevel=3)
        return fresh
    return state


def _write(path: Path, state: FoundLandmarks) -> bool:
    """Replace the file as a whole, so that no process ever reads half of one; False, with a warning, where that is not possible."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                np.savez(file, landmarks=state.landmarks, size=state.size)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        advice = "set DEOCC_CACHE to a folder that can be written to, or they are detected again next time"
        warnings.warn(f"cannot keep landmarks in {path.parent} ({_reason(error)}): {advice}", stacklevel=4)
        return False
    return True


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _complete(state: FoundLandmarks, image: Callable[[int], NDArray[np.uint8]], detector: Detector, path: Path) -> None:
    """Look at the images that have not been looked at, and keep what was found, also when stopped."""
    kept = path.is_file() or _write(path, state)  # so that hours do not pass before an unusable folder is told
    pending = np.flatnonzero(~state.done).tolist()
    try:
        for number, index in enumerate(
            track(pending, "finding faces", console=Console(stderr=True), transient=True), 1
        ):
            photograph = image(index)
            faces = detector.detect(photograph)
            height, width = photograph.shape[:2]
            if faces:
                state.landmarks[index] = _main_face(faces, width, height).landmarks
            state.size[index] = width, height
            if kept and number % _SAVE_EVERY == 0:
                kept = _write(path, state)
    finally:
        if kept:
            _write(path, state)


def _main_face(faces: list[Detection], width: int, height: int) -> Detection:
    """The largest face near the centre of an image of this size."""
    centre, half_diagonal = np.array([width - 1, height - 1]) / 2, np.hypot(width, height) / 2

    def weight(face: Detection) -> float:
        corners = face.box.reshape(2, 2)
        distance = np.linalg.norm(corners.mean(0) - centre) / half_diagonal
        return float(np.sqrt(np.prod(corners[1] - corners[0])) * (1 - distance))

    return max(faces, key=weight)


def _template(width: int, height: int) -> NDArray[np.float64]:
    """(5, 2) landmarks of the canonical crop, as large as fits and in the middle of an image of this size."""
    template, side = TEMPLATES["canonical"], min(width, height)
    scaled = (np.array(template.points) + 0.5) * (side / template.size) - 0.5
    return scaled + (np.array([width, height]) - side) / 2
