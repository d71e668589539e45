"""Verification accuracy over folds, the protocol of LFW [0]: the threshold for a fold's pairs is chosen on the pairs of the other folds.

[0] Huang et al., "Labeled Faces in the Wild: A Database for Studying Face Recognition in Unconstrained Environments", University of
    Massachusetts, Amherst, Technical Report 07-49, 2007: the mean over ten folds, and its standard error with folds - 1 under the root.

The report leaves open which of equally good thresholds is meant. OURS: thresholds lie midway between two neighbouring similarities of the
other folds, or at plus or minus infinity, which accepts no pair or every one; among the best the highest, which accepts fewest.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deocc.evaluation.verification import PairScores, check_pairs


class FoldAccuracy(NamedTuple):
    """The share of right decisions; NaN throughout where there are fewer than two folds, so that no other fold could give a threshold."""

    mean: float
    """Over folds, each counting the same."""
    standard_error: float
    """The standard deviation over folds, with folds - 1 under the root, over the square root of folds."""
    accuracies: Tensor
    """(folds,) float64, by ascending fold number."""
    thresholds: Tensor
    """(folds,) float64: a pair of this fold is accepted where its similarity is at least that."""


def fold_accuracy(pairs: PairScores) -> FoldAccuracy:
    """The accuracy on each fold under the threshold that is best on the other folds; exact, over all thresholds that differ.

    >>> similarity, same, person = torch.tensor([0.9, 0.1, 0.6, 0.2]), torch.tensor([True, False] * 2), torch.arange(4)
    >>> pairs = PairScores(similarity, same, person, person, fold=torch.tensor([0, 0, 1, 1]))
    >>> scores = fold_accuracy(pairs)
    >>> scores.mean, [round(threshold, 3) for threshold in scores.thresholds.tolist()]
    (1.0, [0.4, 0.5])

    Raises:
        ValueError: the shapes are not all (N,), or a similarity is not finite.
    """
    fold, folds = _folds(pairs)
    if len(folds) < 2:
        unknown = torch.full((len(folds),), torch.nan, dtype=torch.float64)
        return FoldAccuracy(math.nan, math.nan, unknown, unknown)
    thresholds = _thresholds(pairs, fold, len(folds))
    right = ((pairs.similarity >= thresholds[fold]) == pairs.same).double()
    accuracies = torch.zeros_like(thresholds).index_add_(0, fold, right) / torch.bincount(fold)
    return FoldAccuracy(float(accuracies.mean()), float(accuracies.std()) / math.sqrt(len(folds)), accuracies, thresholds)


def decisions(pairs: PairScores) -> Tensor:
    """(N,) bool: whether each pair is decided rightly under its fold's threshold, as `mcnemar` compares it between two systems.

    Raises:
        ValueError: as in `fold_accuracy`, or there are fewer than two folds.
    """
    fold, folds = _folds(pairs)
    if len(folds) < 2:
        raise ValueError(f"the pairs lie in {len(folds)} fold: two or more are needed, so that others can give a fold's threshold")
    return (pairs.similarity >= _thresholds(pairs, fold, len(folds))[fold]) == pairs.same


def _folds(pairs: PairScores) -> tuple[Tensor, Tensor]:
    """(N,) the position of each pair's fold in (folds,), the fold numbers; one fold where the pairs have none."""
    check_pairs(pairs.similarity, pairs.same)
    fold = torch.zeros_like(pairs.same, dtype=torch.int64) if pairs.fold is None else pairs.fold
    if fold.shape != pairs.same.shape:
        raise ValueError(f"expected a fold for each of {len(pairs.same)} pairs, got shape {tuple(fold.shape)}")
    folds, position = torch.unique(fold, return_inverse=True)
    return position, folds


def _thresholds(pairs: PairScores, fold: Tensor, folds: int) -> Tensor:
    """(folds,) float64: for each fold the threshold that is best on the others."""
    score, order = pairs.similarity.double().sort(descending=True)
    same, fold = pairs.same[order], fold[order]
    return torch.stack([_best_threshold(score[fold != held_out], same[fold != held_out]) for held_out in range(folds)])


def _best_threshold(score: Tensor, same: Tensor) -> Tensor:
    """The highest of the best thresholds for pairs in falling order of similarity."""
    gain = torch.cat([torch.zeros(1, dtype=torch.int64), (2 * same.long() - 1).cumsum(0)])  # right decisions once n pairs are accepted
    infinity = torch.full((1,), torch.inf, dtype=torch.float64)
    above, below = torch.cat([infinity, score]), torch.cat([score, -infinity])
    gain[above == below] = gain.min() - 1  # equal similarities cannot be told apart
    accepted = gain.argmax()
    return above[accepted].lerp(below[accepted], 0.5) if 0 < accepted < len(score) else (below if accepted else above)[accepted]
