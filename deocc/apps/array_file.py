"""Arrays by name in NumPy's .npz files: written whole or not at all, and read without ever running a pickle."""

import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deocc.apps.photos.writing import writing_to


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
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(" ".join(str(error).split())[:120]) from error
