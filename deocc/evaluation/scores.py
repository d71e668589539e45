"""Pair scores of a test in `scores.npz`, for comparisons of runs pair by pair, and bounded reading of `.npz` files."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from deocc.evaluation.verification import PairScores
from deocc.files import read_npz

SCORES = "scores.npz"
"""Name of the file in a run folder."""

CLEAN_SCORES = "clean_scores.npz"
"""The same for rows that compare bare faces, whose pairs may differ."""

_SHARED = ("same", "first_identity", "second_identity", "fold")


def write_scores(path: str | Path, scores: Mapping[str, PairScores]) -> None:
    """Write the similarities (N,) of each row, and once the labels, identities and folds of the pairs.

    Raises:
        ValueError: the rows scored different pairs.
    """
    first = next(iter(scores.values()))
    for row, pairs in scores.items():
        if len(pairs.same) != len(first.same) or not bool((pairs.same == first.same).all()):
            raise ValueError(f"row {row} scored other pairs than the first row: evaluate all rows on the same probes")
    fold = first.fold if first.fold is not None else torch.zeros_like(first.first_identity)
    arrays = dict(zip(_SHARED, (first.same, first.first_identity, first.second_identity, fold), strict=True))
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
