"""A gallery's embeddings in a file, so that an unchanged photo is not looked at again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deocc.apps.array_file import check_rows, read_arrays, write_arrays

_KINDS: Final = {"photo": ("U", 1), "stamp": ("i", 2), "embedding": ("f", 2), "covered": ("f", 1)}
_COLUMNS: Final = tuple(_KINDS)


class KeptFace(NamedTuple):
    """What is kept of a photo."""

    stamp: tuple[int, int]
    """The file's size in bytes and its time of change in nanoseconds."""
    embedding: NDArray[np.float32]
    """(D,) unit vector."""
    covered: float
    """The covered share of the face, in [0, 1]."""


class KeptFaces:
    """Embeddings by photo, in an .npz file without pickles.

    Args:
        path: of the file; it is read where it exists already.
        key: what the embeddings depend on besides the photo: model and search for faces. Those of another key are forgotten.

    Raises:
        ValueError: the file exists and is something else.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self._key = path, key
        self._faces = _read(path, key) if path.exists() else {}
        self._changed = False

    def find(self, photo: Path) -> KeptFace | None:
        """What is kept of a photo that has not changed since; else None."""
        face = self._faces.get(str(photo.resolve()))
        try:
            return face if face is not None and face.stamp == stamp_of(photo) else None
        except OSError:
            return None

    def replace(self, faces: Mapping[Path, KeptFace]) -> None:
        """Keep these, and no others."""
        resolved = {str(path.resolve()): face for path, face in faces.items()}
        same = resolved.keys() == self._faces.keys() and all(resolved[name].stamp == face.stamp for name, face in self._faces.items())
        self._changed = self._changed or not same
        self._faces = resolved

    def write(self) -> None:
        """Bring the file up to date, replacing it as a whole, where anything changed.

        Raises:
            OutputError: it cannot be written; the former one is still there.
        """
        if not self._changed:
            return
        columns = dict(zip(_COLUMNS[1:], (np.array(column) for column in zip(*self._faces.values(), strict=True)), strict=True))
        write_arrays(self.path, {"photo": np.array(list(self._faces)), **columns, "key": np.array(self._key)})
        self._changed = False


def stamp_of(photo: Path) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds; raises OSError where the file cannot be looked at."""
    status = photo.stat()
    return status.st_size, status.st_mtime_ns


def _read(path: Path, key: str) -> dict[str, KeptFace]:
    try:
        content = read_arrays(path, (*_COLUMNS, "key"))
        check_rows(content, _KINDS)
    except ValueError as error:
        raise ValueError(f"{path} exists and holds no gallery ({error}): choose another --save-index") from error
    if str(content["key"]) != key:
        return {}
    photos, stamps, embeddings, covered = (content[name] for name in _COLUMNS)
    rows = zip(photos.tolist(), stamps.tolist(), embeddings, covered.tolist(), strict=True)
    return {photo: KeptFace((stamp[0], stamp[1]), embedding, share) for photo, stamp, embedding, share in rows}
