"""One file of embeddings, which grows while the work goes on: NumPy's .npz, and Parquet for those who ask."""

import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deocc.inference.outputs import check_rows, drafting, read_arrays, write_arrays
from deocc.messages import printable

_MODEL: Final = "model"
_KINDS: Final = {"name": ("U", 1), "photo": ("U", 1), "face": ("i", 1), "mark": ("U", 1), "embedding": ("f", 2)}
_WRITE_EVERY: Final = 30.0  # seconds of work that a killed process may lose: the whole file is written each time


class EmbeddedFace(NamedTuple):
    """What the file holds of a face."""

    name: str
    """What its files are called, without folder and suffix."""
    photo: str
    """The photo's path, as it was given or found."""
    face: int
    """Its number in the photo, from 1, the largest first."""
    mark: str
    """What it was made from: the photo, the model and how faces were found."""
    embedding: NDArray[np.float32]
    """(D,) unit vector."""


class EmbeddingFile:
    """Embeddings by name. Those of an earlier run stay until newer ones of the same name take their place.

    Args:
        path: of the .npz file; it is read where it exists already. No pickle is in it, and none is read.
        model: a hash of the model; embeddings of two models cannot be compared, so that they never share a file.

    Raises:
        ValueError: the file exists and is something else, or another model's.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self._model = path, model
        self._faces: dict[str, EmbeddedFace] = {}
        self._changed, self._written = False, time.monotonic()
        if path.exists():
            self._faces = {face.name: face for face in _read(path, model)}

    @property
    def faces(self) -> list[EmbeddedFace]:
        """All of them, in the order in which they came."""
        return list(self._faces.values())

    def mark(self, name: str) -> str | None:
        """What the face of this name was made from; None where there is none."""
        return self._faces[name].mark if name in self._faces else None

    def put(self, face: EmbeddedFace) -> None:
        """Add a face, or replace the one of its name."""
        self._faces[face.name] = face
        self._changed = True

    def write_when_due(self) -> None:
        """`write`, where the last time is half a minute ago."""
        if time.monotonic() - self._written > _WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Bring the file up to date, replacing it as a whole.

        Raises:
            OutputError: it cannot be written; the former one is still there.
        """
        if self._changed:
            write_arrays(self.path, {**self._columns(), _MODEL: np.array(self._model)})
            self._changed, self._written = False, time.monotonic()

    def write_parquet(self, path: Path) -> None:
        """Write all faces as a Parquet file: name, photo, face, embedding (a list of fixed length); bytes that are no text become escapes.

        Raises:
            ImportError: pyarrow is not installed.
            OutputError: it cannot be written.
        """
        arrow, parquet = import_arrow()
        columns = self._columns()
        embedding = columns["embedding"]
        numbers = arrow.FixedSizeListArray.from_arrays(arrow.array(embedding.ravel()), embedding.shape[1])
        words = {name: [printable(word) for word in columns[name].tolist()] for name in ("name", "photo")}
        with drafting(path) as draft:
            parquet.write_table(arrow.table({**words, "face": columns["face"], "embedding": numbers}), draft)

    def _columns(self) -> dict[str, NDArray[Any]]:
        return {name: np.array([getattr(face, name) for face in self.faces]) for name in EmbeddedFace._fields}


def import_arrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

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
        columns = read_arrays(path, (*EmbeddedFace._fields, _MODEL))
        check_rows(columns, _KINDS)
    except ValueError as error:
        raise ValueError(
            f"{path} exists and holds no embeddings of an earlier run ({error}): choose another --out"
        ) from error
    if str(columns[_MODEL]) != model:
        raise ValueError(f"{path} holds embeddings of another model, which cannot be compared: choose another --out")
    rows = zip(*(columns[name] for name in EmbeddedFace._fields), strict=True)
    return [
        EmbeddedFace(str(name), str(photo), int(face), str(mark), embedding)
        for name, photo, face, mark, embedding in rows
    ]
