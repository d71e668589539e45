"""Arrays by name in NumPy's .npz files: written whole or not at all, and read without ever running a pickle."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deocc.apps.photos.writing import writing_to
from deocc.evaluation.npz import read_npz


@contextmanager
def drafting(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end, or goes away after an error.

    Raises:
        OutputError: anything that the system refuses.
    """
    draft = path.with_name(f".{uuid.uuid4().hex}.tmp")
    with writing_to(path, draft):
        yield draft


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the file, in place of a former one.

    Raises:
        OutputError: it cannot be written; the former one is still there.
    """
    with drafting(path) as draft, draft.open("wb") as file:
        np.savez(file, **cast(Any, arrays))


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of these names.

    Raises:
        ValueError: the file cannot be read, is something else, or lacks one; the message is the reason alone.
    """
    arrays = read_npz(path, lambda name: name in names)
    if len(arrays) < len(names):
        raise ValueError(f"it lacks {', '.join(name for name in names if name not in arrays)}")
    return arrays


def check_rows(arrays: Mapping[str, NDArray[Any]], kinds: Mapping[str, tuple[str, int]]) -> None:
    """Check that arrays are columns of one table: as many rows in each, at least one, and finite numbers.

    Args:
        arrays: by name.
        kinds: the columns' NumPy kinds ("U", "i", "f") and numbers of dimensions.

    Raises:
        ValueError: they are not; the message is the reason alone.
    """
    rows = {name: arrays[name].shape[:1] for name in kinds}
    for name, (kind, dimensions) in kinds.items():
        array = arrays[name]
        if array.dtype.kind != kind or array.ndim != dimensions or array.size == 0 or len(set(rows.values())) > 1:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, no column of such a table")
        if kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite")
