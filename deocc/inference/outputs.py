"""Result files of photo commands: PNG images with a mark of their origin, and embeddings in .npz and Parquet files.

All that is written replaces an earlier file completely, or raises OutputError and leaves it unchanged.
"""

import errno
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deocc.data.images import open_image
from deocc.files import cache_folder, checksum, hold_lock, read_npz, replace_file
from deocc.messages import printable

_MARK: Final = "deocc"  # key of the mark in a PNG file
_COLUMNS: Final = {"name": ("U", 1), "photo": ("U", 1), "face": ("i", 1), "mark": ("U", 1), "embedding": ("f", 2)}
_WRITE_INTERVAL: Final = 30.0  # seconds of work that a killed process may lose: the whole file is written each time
_PAUSE: Final = 20  # a large file is next written after so many times the seconds that this took; our choice

_Row = TypeVar("_Row", bound=tuple[Any, ...])


class OutputError(OSError):
    """A result cannot be written, for example because the disk is full. The message is one line."""


@contextmanager
def replace_output(path: Path, durable: bool = False) -> Iterator[Path]:
    """Write a result completely or not at all, as `deocc.files.replace_file`, or raise OutputError.

    A file name that is too long is a ValueError, since it concerns one photo only.
    """
    try:
        with replace_file(path, durable) as draft:
            yield draft
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"the name {path.name} is too long for this disk: rename the photo") from error
        reason = error.strerror or error
        raise OutputError(f"cannot write {path} ({reason}): make room or choose another place") from error


def check_out(out: Path, photos: Collection[Path]) -> None:
    """Raise ValueError if the output folder is a file, or is one of the photo folders."""
    if any(photo.resolve() == out.resolve() for photo in photos):
        raise ValueError(f"--out {out} is the folder of the photos: choose a folder of its own, which may be inside it")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: choose a folder")
    check_writable(out, f"--out {out}")


def check_writable(folder: Path, option: str) -> None:
    """Raise ValueError, beginning with `option`, if nothing can be written into a folder, which may still be missing.

    The methods of paths would raise other errors for a folder in a closed one.
    """
    existing = next((path for path in (folder, *folder.parents) if os.path.exists(path)), folder)  # noqa: PTH110
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK):  # noqa: PTH112
        raise ValueError(f"{option}: nothing can be written into {existing.absolute()}: choose another folder")


class WriteTimer:
    """Decides when a growing file, which is written as a whole each time, is written again.

    Args:
        interval: least number of seconds between two writes; after a slow write it is 20 times as long as that took.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._due = time.monotonic() + interval

    def call_when_due(self, write: Callable[[], None]) -> None:
        """Call `write` if enough time has passed since it was last called."""
        start = time.monotonic()
        if start > self._due:
            write()
            end = time.monotonic()
            self._due = end + max(self._interval, _PAUSE * (end - start))


@contextmanager
def lock_out(out: Path) -> Iterator[None]:
    """Keep other commands of this machine from writing to an output folder or file; ValueError if one holds the lock.

    The lock file is in the cache folder, not among the results; if it cannot be created, there is no lock.
    """
    path = cache_folder() / "locks" / f"out-{checksum(str(out.resolve()))[:16]}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(path, wait=False, required=False))
        except TimeoutError:
            raise ValueError(f"another deocc writes to {out}: wait for it, or choose another --out") from None
        yield


def save_png(path: Path, image: NDArray[np.uint8], mark: str = "") -> None:
    """Write an image, (H, W, 3) in sRGB or (H, W) grey, as PNG, replacing an existing file.

    The mark is a text in the file that identifies what the image was made from; `read_mark` returns it.
    """
    note = PngInfo()
    note.add_text(_MARK, mark)
    if image.ndim == 3:
        note.add(b"sRGB", b"\0")  # the standard's tag for colours in sRGB, with the perceptual rendering intent
    with replace_output(path) as draft:
        Image.fromarray(image).save(draft, format="PNG", pnginfo=note)


def read_mark(path: Path) -> str | None:
    """Return the mark that `save_png` stored in a file; None if there is no mark or no readable file."""
    try:
        with open_image(path, ("PNG",)) as image:
            mark = image.info.get(_MARK)
    except Exception:  # Pillow raises almost anything for a damaged file
        return None
    return mark if isinstance(mark, str) else None


def save_marked(out: Path, images: Mapping[str, NDArray[np.uint8]], mark: str, conflict: str) -> None:
    """Write images by file name below `out`, in this order.

    Raises:
        ValueError: a file with another mark exists, and nothing is written; the message contains the text `conflict`.
    """
    for name in images:
        if (out / name).exists() and read_mark(out / name) != mark:
            raise ValueError(f"{out / name} exists and was made {conflict}: choose another --out")
    for name, image in images.items():
        save_png(out / name, image, mark)


def write_rows(path: Path, columns: Collection[str], rows: Sequence[tuple[Any, ...]], key: str, value: str) -> None:
    """Write rows, at least one, to an .npz file with an array for each column, and the text `value` as `key`."""
    arrays: dict[str, Any] = dict(zip(columns, map(np.array, zip(*rows, strict=True)), strict=True))
    with replace_output(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays | {key: np.array(value)})


def read_rows(
    path: Path, columns: Mapping[str, tuple[str, int]], kind: Callable[..., _Row], key: str
) -> tuple[list[_Row], str]:
    """Read what `write_rows` wrote: at least one row of finite numbers, and the text `key`; pickles are refused.

    The columns are given by NumPy kind ("U", "i", "f") and number of dimensions. `kind` makes a row of its values, of
    which the embedding stays an array; others become plain values and lists. The message of a ValueError is only the
    reason why the file cannot be read.
    """
    names = (*columns, key)
    arrays = read_npz(path, lambda name: name in names)
    if len(arrays) < len(names):
        raise ValueError(f"it lacks {', '.join(name for name in names if name not in arrays)}")
    lengths = {arrays[name].shape[:1] for name in columns}
    for name, (letter, dimensions) in columns.items():
        array = arrays[name]
        if array.dtype.kind != letter or array.ndim != dimensions or array.size == 0 or len(lengths) > 1:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, no column of such a table")
        if letter == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    values = [arrays[name] if name == "embedding" else arrays[name].tolist() for name in columns]
    return [kind(*row) for row in zip(*values, strict=True)], str(arrays[key])


class EmbeddedFace(NamedTuple):
    """One face of an `EmbeddingFile`."""

    name: str  # of its image files, without folder and suffix
    photo: str  # path of the photo
    face: int  # its number in the photo, from 1, the largest first
    mark: str  # identifies the photo, the model and the detector settings it was made from
    embedding: NDArray[np.float32]  # (D,) unit vector


class EmbeddingFile:
    """Embeddings by name in an .npz file without pickles, as `deocc predict` writes them.

    Those of an earlier run stay until they are replaced or removed by `keep`. Embeddings of two models cannot be
    compared: ValueError if the file belongs to a model with another hash, or is something else.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self._model = path, model
        self._changed, self._timer = False, WriteTimer(_WRITE_INTERVAL)
        self._faces: dict[str, EmbeddedFace] = {}
        if not path.exists():
            return
        try:
            rows, found = read_rows(path, _COLUMNS, EmbeddedFace, "model")
        except ValueError as error:
            raise ValueError(
                f"{path} exists and holds no embeddings of an earlier run ({error}): choose another --out"
            ) from error
        if found != model:
            raise ValueError(
                f"{path} holds embeddings of another model, which cannot be compared: choose another --out"
            )
        self._faces = {row.name: row for row in rows}

    @property
    def faces(self) -> list[EmbeddedFace]:
        """All faces, in the order in which they were added."""
        return list(self._faces.values())

    def mark(self, name: str) -> str | None:
        """Return the mark of a face; None if there is no face of this name."""
        return self._faces[name].mark if name in self._faces else None

    def put(self, face: EmbeddedFace) -> None:
        """Add a face, or replace the one with the same name."""
        self._faces[face.name] = face
        self._changed = True

    def keep(self, names: Collection[str]) -> None:
        """Remove all other faces."""
        before, self._faces = self._faces, {name: face for name, face in self._faces.items() if name in names}
        self._changed |= len(self._faces) < len(before)

    def write_when_due(self) -> None:
        """Write the file if the last time was more than 30 seconds ago, or longer for a large file."""
        self._timer.call_when_due(self.write)

    def write(self) -> None:
        """Write the file if anything changed; without a face there is no file."""
        if self._changed and not self._faces:
            self.path.unlink(missing_ok=True)
        elif self._changed:
            write_rows(self.path, _COLUMNS, self.faces, "model", self._model)
            self._changed = False

    def write_parquet(self, path: Path) -> None:
        """Write all faces to a Parquet file with the columns name, photo, face and embedding (fixed-size list)."""
        arrow, parquet = import_arrow()
        embedding = np.stack([face.embedding for face in self.faces])
        columns = {
            "name": [printable(face.name) for face in self.faces],
            "photo": [printable(face.photo) for face in self.faces],
            "face": [face.face for face in self.faces],
            "embedding": arrow.FixedSizeListArray.from_arrays(arrow.array(embedding.ravel()), embedding.shape[1]),
        }
        with replace_output(path) as draft:
            parquet.write_table(arrow.table(columns), draft)


def import_arrow() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet, or raise ImportError if they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError('--parquet needs the package pyarrow: pip install "deocc[parquet]"') from None
    return pyarrow, pyarrow.parquet
