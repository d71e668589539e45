"""Arrays by name from NumPy's .npz files, which nobody vouches for: no pickle is run, and no more is unpacked than is sensible."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MOST_BYTES: Final = 2**31
"""A file may unpack to so many bytes, or to as many as it has itself, as uncompressed files do: the pair scores of a hundred million pairs.
OURS."""

_PACKINGS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others are unpacked without a limit, whatever size the entry claims


def read_npz(path: Path, wanted: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    """The arrays whose names are wanted.

    Raises:
        ValueError: the file cannot be read, is something else, or unpacks to too much; the message is the reason alone.
    """
    try:
        with path.open("rb") as file:
            sizes = _sizes(file, path.stat().st_size)
            with np.load(file, allow_pickle=False) as content:
                arrays = {name: np.asarray(content[name]) for name in content.files if wanted(name)}
    except Exception as error:  # a damaged file makes zipfile and NumPy fail in any way
        raise ValueError(" ".join(str(error).split())[:120] or type(error).__name__) from error
    for name, array in arrays.items():
        if array.size > sizes[name]:  # elements of no bytes cost nothing here, and everything where they become a list
            raise ValueError(f"{name} announces {array.size:,} numbers in {sizes[name]:,} bytes")
    return arrays


def _sizes(file: Any, own: int) -> dict[str, int]:
    """The bytes of each array, unpacked."""
    with zipfile.ZipFile(file) as content:
        entries = content.infolist()
    total = sum(entry.file_size for entry in entries)
    if total > max(MOST_BYTES, own):
        raise ValueError(f"it unpacks to {total:,} bytes, at most {max(MOST_BYTES, own):,} are allowed")
    if any(entry.compress_type not in _PACKINGS for entry in entries):
        raise ValueError("it is packed otherwise than NumPy packs")
    file.seek(0)
    return {entry.filename.removesuffix(".npy"): entry.file_size for entry in entries}
