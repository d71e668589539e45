"""How sure is a difference between two systems? A paired bootstrap over people.

Pairs of faces are not independent: each person enters many. So people are drawn with replacement, and both systems are scored on the same
draws. Where person i was drawn w_i times, a pair of i's own faces counts w_i times and a pair of faces of i and j counts w_i w_j times.

A replicate needs no sort: the similarities are put into bins once, and a replicate is the product of a sparse table (bins x people, or
bins x pairs of people) with the weights. Either kind of pair is cut into some 4096 bins of equal numbers; where it has fewer pairs than
twice that, each similarity has its own bin and the result is exact. Else a rate is interpolated within a bin, which can shift it by no
more than the share of the pairs in that bin; `tests/evaluation/test_bootstrap.py` holds the interval to the exact one within 1e-4.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.evaluation.folds import decisions
from deocc.evaluation.verification import PairScores, curve_equal_error_rate, equal_error_rate

_BINS = 4096  # for either kind of pair
_CELLS = 4_000_000  # numbers of a table that are held at a time, 32 MB
_LOW, _HIGH = 0.025, 0.975  # a 95 % percentile interval


class Interval(NamedTuple):
    """A difference and the range in which 95 % of its bootstrap replicates lie."""

    estimate: float
    """The difference on the people as they are."""
    mean: float
    """The mean of the replicates."""
    low: float
    """Their 2.5th percentile."""
    high: float
    """Their 97.5th percentile."""


def paired_bootstrap_eer(first: PairScores, second: PairScores, replicates: int = 1000, seed: int = 0) -> Interval:
    """The equal error rate of `first` minus that of `second`, which scored the same pairs in the same order.

    Replicates that drew one person only have no pair of different people and are left out. Needs at least two people.

    Raises:
        ValueError: the pairs differ, `replicates` is below 1, or there are fewer than two people.
    """
    return paired_bootstrap_mean_eer([first], [second], replicates, seed)


def paired_bootstrap_accuracy(first: PairScores, second: PairScores, replicates: int = 1000, seed: int = 0) -> Interval:
    """The accuracy over folds of `first` minus that of `second`, which scored the same pairs in the same order.

    Thresholds are those of the pairs as they are (`deocc.evaluation.folds.decisions`). A pair of one person counts as often as the person
    was drawn, a pair of two people as often as the product says; pairs of one and of two people enter with half of the weight each.

    Args:
        first: the pairs as one system scored them, with folds.
        second: the same by the other.
        replicates: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: the pairs differ, have fewer than two folds, `replicates` is below 1, or there are fewer than two people.
    """
    return paired_bootstrap_mean_accuracy([first], [second], replicates, seed)


def paired_bootstrap_mean_accuracy(
    firsts: Sequence[PairScores], seconds: Sequence[PairScores], replicates: int = 1000, seed: int = 0
) -> Interval:
    """The mean over parts of the difference that `paired_bootstrap_accuracy` takes.

    A part is a set of folds scored by one model. Thresholds are chosen within a part, since those of two models need not agree. A
    replicate draws people within each part.

    Args:
        firsts: the pairs of each part, with folds, as one system scored them.
        seconds: the same by the other.
        replicates: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: as in `paired_bootstrap_accuracy` for any part, or the numbers of parts differ or are 0.
    """
    _check_parts(firsts, seconds)
    generator = torch.Generator().manual_seed(seed)
    return _mean_interval([_accuracy_differences(*pairs, replicates, generator) for pairs in zip(firsts, seconds, strict=True)])


def paired_bootstrap_mean_eer(
    firsts: Sequence[PairScores], seconds: Sequence[PairScores], replicates: int = 1000, seed: int = 0
) -> Interval:
    """The mean over folds of the difference that `paired_bootstrap_eer` takes.

    Folds hold different people and were scored by models of their own, whose thresholds need not agree: each has its own equal error rate.
    A replicate draws people within every fold, as many as it has, and takes the mean over folds; it is left out where a fold drew one
    person only.

    Args:
        firsts: the pairs of each fold, scored by one system.
        seconds: the same by the other.
        replicates: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: as in `paired_bootstrap_eer` for any fold, or the numbers of folds differ or are 0.
    """
    _check_parts(firsts, seconds)
    generator = torch.Generator().manual_seed(seed)
    return _mean_interval([_fold_differences(*pairs, replicates, generator) for pairs in zip(firsts, seconds, strict=True)])


def _mean_interval(parts: Sequence[tuple[float, Tensor]]) -> Interval:
    """Of the mean over parts; each has its difference on the people as they are and (R,) on drawn people, NaN for unusable draws."""
    estimate = sum(estimate for estimate, _ in parts) / len(parts)
    difference = torch.stack([drawn for _, drawn in parts]).mean(0)
    difference = difference[~difference.isnan()]
    if len(difference) == 0:
        return Interval(estimate, *[float("nan")] * 3)
    return Interval(estimate, float(difference.mean()), float(difference.quantile(_LOW)), float(difference.quantile(_HIGH)))


def _accuracy_differences(first: PairScores, second: PairScores, replicates: int, generator: torch.Generator) -> tuple[float, Tensor]:
    """The difference of accuracies on the people as they are, and (R,) on drawn people."""
    positions, counts = _draw_people(first, second, replicates, generator)
    gain = decisions(first).double() - decisions(second).double()
    halves = []
    for chosen in (first.same, ~first.same):
        one, other = positions[:, chosen]
        weight = counts[:, one] if bool((one == other).all()) else counts[:, one] * counts[:, other]
        halves.append((weight * gain[chosen]).sum(1) / weight.sum(1))
    return float(gain[first.same].mean() + gain[~first.same].mean()) / 2, torch.stack(halves).mean(0)


def _fold_differences(first: PairScores, second: PairScores, replicates: int, generator: torch.Generator) -> tuple[float, Tensor]:
    """The difference on the people as they are, and (R,) on drawn people; NaN where one person was drawn only."""
    positions, counts = _draw_people(first, second, replicates, generator)
    estimate = equal_error_rate(first.similarity, first.same) - equal_error_rate(second.similarity, second.same)
    return estimate, _replicate_rates(first, positions, counts) - _replicate_rates(second, positions, counts)


def _draw_people(first: PairScores, second: PairScores, replicates: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(2, N) both persons of each pair as columns of (R, P) counts: how often each of the P people was drawn in a replicate."""
    people, positions = torch.unique(torch.stack([first.first_person, first.second_person]), return_inverse=True)
    _check(first, second, replicates, len(people))
    drawn = torch.randint(len(people), (replicates, len(people)), generator=generator)
    counts = torch.zeros(replicates, len(people), dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return positions, counts


def _replicate_rates(scores: PairScores, positions: Tensor, counts: Tensor) -> Tensor:
    """(R,) equal error rates for the people's counts (R, P); `positions` (2, N) are both persons of each pair, as columns of `counts`."""
    edges = _edges(scores)
    bins = len(edges) - torch.searchsorted(edges, scores.similarity, right=True)  # 0 holds the most similar pairs
    same, (low, high) = scores.same, positions.sort(0).values
    pairs, cell = torch.unique(low[~same] * counts.shape[1] + high[~same], return_inverse=True)
    genuine = _table(bins[same], low[same], len(edges), counts.shape[1])
    impostor = _table(bins[~same], cell, len(edges), len(pairs))
    rows = max(1, _CELLS // max(len(pairs), len(edges)))
    return torch.cat([_rates(genuine, impostor, part, pairs) for part in torch.split(counts, rows)])


def _rates(genuine: Tensor, impostor: Tensor, counts: Tensor, pairs: Tensor) -> Tensor:
    """(R,) equal error rates of some replicates."""
    weight = counts.T[pairs // counts.shape[1]] * counts.T[pairs % counts.shape[1]]
    far, tar = _cumulative_share(impostor, weight), _cumulative_share(genuine, counts.T)
    return curve_equal_error_rate(far, tar)


def _cumulative_share(table: Tensor, weight: Tensor) -> Tensor:
    """(R, bins + 1): the share of the weighted pairs that lies in the first 0, 1, 2, ... bins."""
    accepted: Tensor = torch.sparse.mm(table, weight).T.cumsum(1)
    return F.pad(accepted, (1, 0)) / accepted[:, -1:]


def _edges(scores: PairScores) -> Tensor:
    """Rising similarities at which bins are cut, from both kinds of pair; a bin holds its lower edge."""
    cuts: list[Tensor] = []
    for chosen in (scores.same, ~scores.same):
        values = scores.similarity[chosen].sort().values
        cuts.append(values[:: max(1, len(values) // _BINS)])
    edges: Tensor = torch.unique(torch.cat(cuts))
    return edges


def _table(bins: Tensor, cell: Tensor, height: int, width: int) -> Tensor:
    """A sparse (height, width) count of the pairs in each bin and cell."""
    ones = torch.ones(len(bins), dtype=torch.float64)
    table = torch.sparse_coo_tensor(torch.stack([bins, cell]), ones, (height, width), check_invariants=False)
    return table.coalesce()


def _check_parts(firsts: Sequence[PairScores], seconds: Sequence[PairScores]) -> None:
    if not firsts or len(firsts) != len(seconds):
        raise ValueError(
            f"got {len(firsts)} folds of one system and {len(seconds)} of the other: give the same folds of both, one at least"
        )


def _check(first: PairScores, second: PairScores, replicates: int, people: int) -> None:
    one, other = (torch.stack([pairs.first_person, pairs.second_person, pairs.same.long()]) for pairs in (first, second))
    if not torch.equal(one, other):
        raise ValueError(f"the two systems scored different pairs ({one.shape[1]} and {other.shape[1]}): evaluate both on the same probes")
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}: choose 1 or more, 1000 for an interval")
    if people < 2:
        raise ValueError(f"the pairs show {people} people: a bootstrap over people needs at least two")
