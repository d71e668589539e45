"""What takes long to find out about a data set, kept below `DEOCC_CACHE` for the next time."""

import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deocc.runs import cache_folder


def kept_array(room: str, key: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """The array of an earlier call with the same key, else a new one, which is kept; a warning tells where it cannot be.

    Args:
        room: the folder below the cache's.
        key: a hash of all that the array follows from.
        compute: makes the array; numbers or strings, no objects.
    """
    path = cache_folder() / room / f"{key}.npy"
    try:
        with path.open("rb") as file:
            return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError):  # not there, or damaged: either way it is computed and written
        array = compute()
    _write(path, array)
    return array


def _write(path: Path, array: NDArray[Any]) -> None:
    """Replace the file as a whole, so that no process ever reads half of one."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        advice = "set DEOCC_CACHE to a folder that can be written to, or it is found out again next time"
        warnings.warn(f"cannot keep {path.parent.name} in {path.parent} ({error.strerror}): {advice}", stacklevel=4)
