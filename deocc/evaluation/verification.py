"""Verification: scored pairs and their files, ROC curve, equal error rate, and accuracy over folds.

Fold accuracy follows the protocol of LFW [0]: the threshold for the pairs of a fold is chosen on the pairs of the other
folds. The report does not say which of several equally good thresholds to take. Our choice: thresholds are midway
between two neighbouring similarities of the other folds, or plus or minus infinity; of the best thresholds the highest
is used.

[0] Huang et al., "Labeled Faces in the Wild: A Database for Studying Face Recognition in Unconstrained Environments",
    University of Massachusetts, Amherst, Technical Report 07-49, 2007.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from deocc.files import read_npz

FALSE_ACCEPT_RATES = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4}  # at which TAR is reported. Our choice
SCORES = "scores.npz"  # file of pair scores in a run folder, for comparisons of runs pair by pair
CLEAN_SCORES = "clean_scores.npz"  # the same for rows that compare bare faces, whose pairs may differ

_SHARED = ("same", "first_identity", "second_identity", "fold")


class RocCurve(NamedTuple):
    """T = distinct similarities + 1 operating points in order of falling threshold; the first accepts nothing."""

    far: Tensor  # (T,) float64, false accept rate, rising from 0 to 1
    tar: Tensor  # (T,) float64, true accept rate, rising from 0 to 1
    threshold: Tensor  # (T,) float64, falling from infinity


class PairScores(NamedTuple):
    """N compared pairs of faces."""

    similarity: Tensor  # (N,) float32
    same: Tensor  # (N,) bool, True where both faces have the same identity
    first_identity: Tensor  # (N,) int64, identity of the first face: the gallery face, or the first of two probes
    second_identity: Tensor  # (N,) int64, identity of the second face
    fold: Tensor | None = None  # (N,) int64, fold of each pair; None if the protocol has no folds


def check_same_pairs(first: PairScores, second: PairScores) -> None:
    """Raise ValueError if two systems did not score the same pairs in the same order."""
    sides = [torch.stack([pairs.first_identity, pairs.second_identity, pairs.same]) for pairs in (first, second)]
    if not torch.equal(*sides):
        numbers = f"{len(first.same)} and {len(second.same)}"
        raise ValueError(f"the two systems scored different pairs ({numbers}): evaluate both on the same probes")


def roc_curve(similarity: Tensor, same: Tensor, weight: Tensor | None = None) -> RocCurve:
    """Compute the ROC curve of similarities (N,) and bool `same` (N,) in float64.

    `weight` (N,) is that of each pair; None weights all pairs equally. Raises ValueError if a similarity is not finite.
    """
    _check_pairs(similarity, same)
    score, order = similarity.detach().cpu().double().sort(descending=True)
    same = same.cpu()[order]
    weight = torch.ones_like(score) if weight is None else weight.cpu().double()[order]
    last_of_ties = torch.ones_like(same)
    last_of_ties[:-1] = score[1:] != score[:-1]
    zero = torch.zeros(1, dtype=torch.float64)
    false_accepts = torch.cat([zero, (weight * ~same).cumsum(0)[last_of_ties]])
    true_accepts = torch.cat([zero, (weight * same).cumsum(0)[last_of_ties]])
    threshold = torch.cat([zero + torch.inf, score[last_of_ties]])
    return RocCurve(false_accepts / false_accepts[-1], true_accepts / true_accepts[-1], threshold)


def equal_error_rate(similarity: Tensor, same: Tensor) -> float:
    """Compute the rate at which FAR equals 1 - TAR, interpolated linearly between the neighbouring points of the curve.

    >>> equal_error_rate(torch.tensor([0.9, 0.8, 0.7, 0.1]), torch.tensor([True, False, True, False]))
    0.5
    """
    curve = roc_curve(similarity, same)
    return float(curve_equal_error_rate(curve.far, curve.tar))


def curve_equal_error_rate(far: Tensor, tar: Tensor) -> Tensor:
    """Compute the equal error rates (...) of curves (..., T) from (0, 0) to (1, 1)."""
    excess = far + tar - 1  # FAR - (1 - TAR), rising from -1 to 1
    after = _first_nonnegative(excess)
    before = (after - 1).clamp_min(0)
    low, high = excess.gather(-1, before), excess.gather(-1, after)
    far_low, far_high = far.gather(-1, before), far.gather(-1, after)
    return (far_low - low / (high - low) * (far_high - far_low)).squeeze(-1)


def verification_scores(similarity: Tensor, same: Tensor, curve: RocCurve | None = None) -> dict[str, float]:
    """Compute the figures of a set of pairs; NaN where the number of pairs does not support one.

    `curve` is their `roc_curve`, if it has been computed, which takes most of the time.

    Returns:
        `eer`, `auc`, `tar@1e-1` to `tar@1e-4`, `threshold@eer`, the highest threshold at which FAR reaches 1 - TAR, and
        `threshold@1e-2`, that of `tar@1e-2`. The area counts ties as half.
    """
    curve, impostors = curve or roc_curve(similarity, same), int((~same).sum())
    points = {name: operating_point(curve, impostors, far) for name, far in FALSE_ACCEPT_RATES.items()}
    eer = float(curve_equal_error_rate(curve.far, curve.tar))
    crossing = float(curve.threshold[_first_nonnegative(curve.far + curve.tar - 1)])
    return {
        "eer": eer,
        "auc": float(torch.trapezoid(curve.tar, curve.far)) if len(same) else math.nan,
        **{f"tar@{name}": tar for name, (tar, _) in points.items()},
        "threshold@eer": math.nan if math.isnan(eer) else crossing,
        "threshold@1e-2": points["1e-2"][1],
    }


def operating_point(curve: RocCurve, negatives: int, far: float) -> tuple[float, float]:
    """Return TAR and threshold at the lowest threshold whose FAR is at most `far` in (0, 1].

    Both are NaN if `far` of the `negatives`, the impostor pairs that the curve is computed from, is less than a pair.
    """
    if negatives < negatives_needed(far):
        return math.nan, math.nan
    place = int((curve.far <= far * (1 + 1e-12)).sum()) - 1  # the tolerance keeps a FAR that equals `far`
    return float(curve.tar[place]), float(curve.threshold[place])


def negatives_needed(far: float) -> int:
    """Return the number of impostor pairs of which `far` in (0, 1] is one pair."""
    return math.ceil((1 - 1e-9) / far)


class FoldAccuracy(NamedTuple):
    """Share of correct decisions; all NaN for fewer than two folds, where no other fold can provide a threshold."""

    mean: float  # over folds, equally weighted
    standard_error: float  # standard deviation over folds (folds - 1 in the denominator) / square root of folds [0]
    accuracies: Tensor  # (folds,) float64, in order of fold number
    thresholds: Tensor  # (folds,) float64; a pair is accepted if its similarity is at least that of its fold


def fold_accuracy(pairs: PairScores) -> FoldAccuracy:
    """Compute the accuracy on each fold with the threshold that is best on the other folds.

    >>> similarity, same, person = torch.tensor([0.9, 0.1, 0.6, 0.2]), torch.tensor([True, False] * 2), torch.arange(4)
    >>> pairs = PairScores(similarity, same, person, person, fold=torch.tensor([0, 0, 1, 1]))
    >>> scores = fold_accuracy(pairs)
    >>> scores.mean, [round(threshold, 3) for threshold in scores.thresholds.tolist()]
    (1.0, [0.4, 0.5])

    Raises:
        ValueError: the shapes are not all (N,), or a similarity is not finite.
    """
    _check_pairs(pairs.similarity, pairs.same)
    fold = torch.zeros_like(pairs.same, dtype=torch.int64) if pairs.fold is None else pairs.fold
    folds, position = torch.unique(fold, return_inverse=True)
    thresholds = torch.full((len(folds),), torch.nan, dtype=torch.float64)
    if len(folds) < 2:
        return FoldAccuracy(math.nan, math.nan, thresholds, thresholds)
    score, order = pairs.similarity.double().sort(descending=True)
    infinity = torch.full((1,), torch.inf, dtype=torch.float64)
    for held_out in range(len(folds)):
        others = position[order] != held_out
        # gain[n]: correct decisions, up to a constant, if the n most similar pairs are accepted
        gain = torch.cat([torch.zeros(1, dtype=torch.int64), (2 * pairs.same[order][others].long() - 1).cumsum(0)])
        above, below = torch.cat([infinity, score[others]]), torch.cat([score[others], -infinity])
        gain[above == below] = gain.min() - 1  # no threshold separates equal similarities
        accepted = int(gain.argmax())  # the first, so that the threshold is the highest of the best ones
        if 0 < accepted < len(gain) - 1:
            thresholds[held_out] = above[accepted].lerp(below[accepted], 0.5)
        else:
            thresholds[held_out] = infinity if accepted == 0 else -infinity
    correct = ((pairs.similarity >= thresholds[position]) == pairs.same).double()
    accuracies = torch.zeros_like(thresholds).index_add_(0, position, correct) / torch.bincount(position)
    standard_error = float(accuracies.std()) / math.sqrt(len(thresholds))
    return FoldAccuracy(float(accuracies.mean()), standard_error, accuracies, thresholds)


def decisions(pairs: PairScores) -> Tensor:
    """Return (N,) bool, True for pairs that the threshold of their fold decides correctly.

    Raises:
        ValueError: as for `fold_accuracy`, or there are fewer than two folds.
    """
    thresholds = fold_accuracy(pairs).thresholds
    if pairs.fold is None or len(thresholds) < 2:
        raise ValueError(
            f"the pairs have {len(thresholds)} fold: two or more are needed to choose a threshold on other folds"
        )
    _, position = torch.unique(pairs.fold, return_inverse=True)
    return (pairs.similarity >= thresholds[position]) == pairs.same


def write_scores(path: str | Path, scores: Mapping[str, PairScores]) -> None:
    """Write the similarities (N,) of each row, and once the labels, identities and folds, which all rows share."""
    first = next(iter(scores.values()))
    for pairs in scores.values():
        check_same_pairs(first, pairs)
    fold = first.fold if first.fold is not None else torch.zeros_like(first.first_identity)
    arrays = {name: getattr(first, name) for name in _SHARED} | {"fold": fold}
    arrays |= {f"row/{row}": pairs.similarity for row, pairs in scores.items()}
    np.savez_compressed(path, **cast(Any, {name: tensor.numpy() for name, tensor in arrays.items()}))


def read_scores(path: str | Path, rows: Collection[str] | None = None) -> dict[str, PairScores]:
    """Read all rows of a file of `write_scores`, or those of `rows`; raise ValueError if it is no such file."""
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


def _first_nonnegative(excess: Tensor) -> Tensor:
    """Return (..., 1), the first position along the last axis at which `excess` is not negative."""
    return (excess >= 0).int().argmax(-1, keepdim=True)


def _check_pairs(similarity: Tensor, same: Tensor) -> None:
    if similarity.ndim != 1 or similarity.shape != same.shape or same.dtype != torch.bool:
        shapes = f"{tuple(similarity.shape)} and {tuple(same.shape)} of {same.dtype}"
        raise ValueError(f"expected similarity and bool same of one shape (N,), got {shapes}")
    if infinite := int((~similarity.isfinite()).sum()):
        raise ValueError(f"{infinite} of {len(similarity)} similarities are not finite: check the embeddings")
