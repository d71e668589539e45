"""The pair scores behind a results file, kept so that runs can be compared pair by pair: McNemar and paired bootstrap need them."""

import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray

from deocc.evaluation.verification import PairScores

MOST_BYTES: Final = 2**31
"""A file may unpack to so many bytes, or to as many as it has itself, as uncompressed files do: the pair scores of a hundred million pairs.
OURS."""

_PACKINGS: Final = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
)  # the others are unpacked without a limit, whatever size the entry claims


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


SCORES = "scores.npz"
"""The file's name in a run folder."""
CLEAN_SCORES = "clean_scores.npz"
"""The same of the rows that compare bare faces with bare faces, whose pairs can be others."""

_SHARED = ("same", "first_person", "second_person", "fold")


def write_scores(path: str | Path, scores: Mapping[str, PairScores]) -> None:
    """Write each row's similarities (N,) float32, and once what the rows have in common: `same`, the persons and the folds of the pairs.

    Raises:
        ValueError: the rows scored different pairs.
    """
    first = next(iter(scores.values()))
    for row, pairs in scores.items():
        if len(pairs.same) != len(first.same) or not bool((pairs.same == first.same).all()):
            raise ValueError(f"row {row} scored other pairs than the first row: evaluate all rows on the same probes")
    fold = first.fold if first.fold is not None else torch.zeros_like(first.first_person)
    shared = dict(zip(_SHARED, (first.same, first.first_person, first.second_person, fold), strict=True))
    arrays = {**shared, **{f"row/{row}": pairs.similarity for row, pairs in scores.items()}}
    np.savez_compressed(path, **cast(Any, {name: tensor.numpy() for name, tensor in arrays.items()}))


def read_scores(path: str | Path, rows: Collection[str] | None = None) -> dict[str, PairScores]:
    """What `write_scores` wrote, by row; of `rows` only those that are there, where they are given.

    Raises:
        FileNotFoundError: no file there.
        ValueError: it is not such a file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no pair scores at {path}: `deocc test` writes them into its run folder")
    try:
        arrays = read_npz(Path(path), lambda name: rows is None or name in _SHARED or name.removeprefix("row/") in rows)
        _check(arrays)
    except ValueError as error:
        raise ValueError(f"cannot read {path} as pair scores ({error}): run `deocc test` again") from error
    same, first, second, fold = (torch.from_numpy(arrays[name]) for name in _SHARED)
    found = {name.removeprefix("row/"): values for name, values in arrays.items() if name.startswith("row/")}
    return {
        row: PairScores(torch.from_numpy(similarity), same, first, second, fold) for row, similarity in found.items()
    }


def _check(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError where the arrays are not those of `write_scores`."""
    missing = [name for name in _SHARED if name not in arrays]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    pairs = arrays["same"].shape
    for name, array in arrays.items():
        kind = "b" if name == "same" else "f" if name.startswith("row/") else "i"
        if array.dtype.kind != kind or array.ndim != 1 or array.shape != pairs or not array.dtype.isnative:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, where {pairs} of kind {kind!r} are expected")
