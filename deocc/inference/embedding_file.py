"""The file of embeddings that `deocc predict` writes: NumPy's .npz, and Parquet on request."""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deocc.inference.outputs import check_rows, read_arrays, replace_output, write_arrays
from deocc.messages import printable

_KINDS: Final = {"name": ("U", 1), "photo": ("U", 1), "face": ("i", 1), "mark": ("U", 1), "embedding": ("f", 2)}
_WRITE_INTERVAL: Final = 30.0  # seconds of work that a killed process may lose: the whole file is written each time


class EmbeddedFace(NamedTuple):
    """One face of the file.

    Attributes:
        name: name of its image files, without folder and suffix.
        photo: path of the photo.
        face: number of the face in the photo, from 1, the largest first.
        mark: identifies the photo, the model and the detector settings it was made from.
        embedding: (D,) unit vector.
    """

    name: str
    photo: str
    face: int
    mark: str
    embedding: NDArray[np.float32]


class EmbeddingFile:
    """Embeddings by name. Those of an earlier run stay until they are replaced or removed by `keep`.

    Args:
        path: the .npz file; an existing one is read. It contains no pickles.
        model: hash of the model. Embeddings of two models cannot be compared, so they never share a file.

    Raises:
        ValueError: the existing file is something else, or belongs to another model.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self._model = path, model
        self._changed, self._written = False, time.monotonic()
        self._faces = {face.name: face for face in _read(path, model)} if path.exists() else {}

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
        kept = {name: face for name, face in self._faces.items() if name in names}
        self._changed |= len(kept) < len(self._faces)
        self._faces = kept

    def write_when_due(self) -> None:
        """Write the file if the last time was more than 30 seconds ago."""
        if time.monotonic() - self._written > _WRITE_INTERVAL:
            self.write()

    def write(self) -> None:
        """Write the file if anything changed; without a face there is no file.

        Raises:
            OutputError: it cannot be written; the earlier file is unchanged.
        """
        if self._changed and not self._faces:
            self.path.unlink(missing_ok=True)
        elif self._changed:
            write_arrays(self.path, {**self._columns(), "model": np.array(self._model)})
            self._changed, self._written = False, time.monotonic()

    def write_parquet(self, path: Path) -> None:
        """Write all faces to a Parquet file with the columns name, photo, face and embedding (fixed-size list).

        Raises:
            ImportError: pyarrow is not installed.
            OutputError: the file cannot be written.
        """
        arrow, parquet = import_arrow()
        columns = self._columns()
        embedding = columns["embedding"]
        table = arrow.table(
            {
                "name": [printable(text) for text in columns["name"].tolist()],
                "photo": [printable(text) for text in columns["photo"].tolist()],
                "face": columns["face"],
                "embedding": arrow.FixedSizeListArray.from_arrays(arrow.array(embedding.ravel()), embedding.shape[1]),
            }
        )
        with replace_output(path) as draft:
            parquet.write_table(table, draft)

    def _columns(self) -> dict[str, NDArray[Any]]:
        return {name: np.array([getattr(face, name) for face in self.faces]) for name in _KINDS}


def import_arrow() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError('--parquet needs the package pyarrow: pip install "deocc[parquet]"') from None
    return pyarrow, pyarrow.parquet


def _read(path: Path, model: str) -> list[EmbeddedFace]:
    try:
        columns = read_arrays(path, (*_KINDS, "model"))
        check_rows(columns, _KINDS)
    except ValueError as error:
        raise ValueError(
            f"{path} exists and holds no embeddings of an earlier run ({error}): choose another --out"
        ) from error
    if str(columns["model"]) != model:
        raise ValueError(f"{path} holds embeddings of another model, which cannot be compared: choose another --out")
    rows = zip(*(columns[name] for name in _KINDS), strict=True)
    return [
        EmbeddedFace(str(name), str(photo), int(face), str(mark), embedding)
        for name, photo, face, mark, embedding in rows
    ]
