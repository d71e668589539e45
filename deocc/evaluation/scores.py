"""Pair scores of a test in `scores.npz`, for comparisons of runs pair by pair, and bounded reading of `.npz` files."""

import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray

from deocc.evaluation.verification import PairScores
from deocc.messages import describe_error

SCORES = "scores.npz"
"""Name of the file in a run folder."""

CLEAN_SCORES = "clean_scores.npz"
"""The same for rows that compare bare faces, whose pairs may differ."""

MOST_BYTES: Final = 2**31
"""Limit of the unpacked size of a file, unless the file itself is larger;

enough for a hundred million pairs. Our choice.
"""

_SHARED = ("same", "first_person", "second_person", "fold")
_COMPRESSIONS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack beyond the size that an entry claims


def write_scores(path: str | Path, scores: Mapping[str, PairScores]) -> None:
    """Write the similarities (N,) of each row, and once the labels, identities and folds of the pairs.

    Raises:
        ValueError: the rows scored different pairs.
    """
    first = next(iter(scores.values()))
    for row, pairs in scores.items():
        if len(pairs.same) != len(first.same) or not bool((pairs.same == first.same).all()):
            raise ValueError(f"row {row} scored other pairs than the first row: evaluate all rows on the same probes")
    fold = first.fold if first.fold is not None else torch.zeros_like(first.first_person)
    arrays = dict(zip(_SHARED, (first.same, first.first_person, first.second_person, fold), strict=True))
    arrays |= {f"row/{row}": pairs.similarity for row, pairs in scores.items()}
    np.savez_compressed(path, **cast(Any, {name: tensor.numpy() for name, tensor in arrays.items()}))


def read_scores(path: str | Path, rows: Collection[str] | None = None) -> dict[str, PairScores]:
    """Read the rows of a file of `write_scores`.

    Args:
        path: the file.
        rows: rows to read, if present; None for all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no pair scores at {path}: `deocc test` writes them into its run folder")
    try:
        arrays = read_npz(Path(path), lambda name: rows is None or name in _SHARED or name.removeprefix("row/") in rows)
        if missing := [name for name in _SHARED if name not in arrays]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        for name, array in arrays.items():
            kind = "b" if name == "same" else "f" if name.startswith("row/") else "i"
            pairs = arrays["same"].shape
            if array.dtype.kind != kind or array.ndim != 1 or array.shape != pairs or not array.dtype.isnative:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {pairs} of kind {kind!r}")
    except ValueError as error:
        raise ValueError(f"cannot read {path} as pair scores ({error}): run `deocc test` again") from error
    same, first, second, fold = (torch.from_numpy(arrays[name]) for name in _SHARED)
    return {
        name.removeprefix("row/"): PairScores(torch.from_numpy(similarity), same, first, second, fold)
        for name, similarity in arrays.items()
        if name.startswith("row/")
    }


def read_npz(path: Path, wanted: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    """Read the arrays of an untrusted `.npz` file whose names are wanted.

    Raises:
        ValueError: the file cannot be read, is something else, or unpacks to too much; the message is the reason only.
    """
    try:
        own_size = path.stat().st_size
        with zipfile.ZipFile(path) as content:
            entries = content.infolist()
        total, most = sum(entry.file_size for entry in entries), max(MOST_BYTES, own_size)
        if total > most:
            raise ValueError(f"it unpacks to {total:,} bytes, at most {most:,} are allowed")
        if any(entry.compress_type not in _COMPRESSIONS for entry in entries):
            raise ValueError("it is packed otherwise than NumPy packs")
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: np.asarray(content[name]) for name in content.files if wanted(name)}
    except Exception as error:  # a damaged file makes zipfile and NumPy raise any error
        raise ValueError(describe_error(error)) from error
    sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in entries}
    for name, array in arrays.items():
        if array.size > sizes[name]:  # elements of zero bytes cost nothing here, but everything as a list
            raise ValueError(f"{name} announces {array.size:,} numbers in {sizes[name]:,} bytes")
    return arrays
