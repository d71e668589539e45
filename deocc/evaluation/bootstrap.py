"""How sure is a difference between two systems? A paired bootstrap over people.

Pairs of faces are not independent: each person enters many. So people are drawn with replacement, and both systems are scored on the same
draws. Where person i was drawn w_i times, a pair of i's own faces counts w_i times and a pair of faces of i and j counts w_i w_j times.

A replicate needs no sort: the similarities are put into bins once, and a replicate is the product of a sparse table (bins x people, or
bins x pairs of people) with the weights. Either kind of pair is cut into some 4096 bins of equal numbers; where it has fewer pairs than
twice that, each similarity has its own bin and the result is exact. Else a rate is interpolated within a bin, which can shift it by no
more than the share of the pairs in that bin; `tests/evaluation/test_bootstrap.py` holds the interval to the exact one within 1e-4.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.evaluation.verification import (
    FALSE_ACCEPT_RATES,
    PairScores,
    curve_equal_error_rate,
    decisions,
    equal_error_rate,
    negatives_needed,
    operating_point,
    roc_curve,
)


class Bounds(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


def wilson(successes: float, trials: float, confidence: float = 0.95) -> Bounds:
    """The score interval [0] of the chance behind `successes` out of `trials` independent ones; NaN where nothing was tried.

    >>> [round(bound, 4) for bound in wilson(9, 10)]
    [0.5958, 0.9821]

    Raises:
        ValueError: `successes` is not from 0 to `trials`, or `confidence` not between 0 and 1.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: choose from 0 to the number of trials")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} was asked for: choose one between 0 and 1")
    if trials == 0:
        return Bounds(math.nan, math.nan)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return Bounds(max(0.0, middle - half), min(1.0, middle + half))


class PeopleRate(NamedTuple):
    """A rate over pairs of people, with its Wilson interval."""

    rate: float
    low: float
    high: float
    effective: float
    """Number of independent pairs that would estimate the rate with the same variance."""


class PairsOfPeople:
    """Pairs of images, grouped by the people they show, for rates in which each two people count once.

    Args:
        first_person: (N,) int64, at least 0.
        second_person: (N,) int64, equal to `first_person` for pairs of one person.
    """

    def __init__(self, first_person: Tensor, second_person: Tensor) -> None:
        length = 1 + int(torch.maximum(first_person, second_person).max()) if len(first_person) else 0
        seen = (torch.bincount(first_person, minlength=length) + torch.bincount(second_person, minlength=length)) > 0
        place = seen.cumsum(0) - 1
        first, second = place[first_person], place[second_person]
        self.people = int(seen.sum())
        self._group = torch.minimum(first, second) * self.people + torch.maximum(first, second)
        self._count = torch.bincount(self._group, minlength=self.people**2)
        self._known = self._count.nonzero().squeeze(1)

    @property
    def weight(self) -> Tensor:
        """(N,) float64, one over the number of pairs that show the same people."""
        return 1 / self._count[self._group].double()

    def rate(self, chosen: Tensor, confidence: float = 0.95) -> PeopleRate:
        """The share of pairs that are chosen, averaged over each two people, and its interval; NaN for no pairs.

        Two pairs of people with a person in common are not independent. The variance v of the rate p is estimated by
        adding up, for each person, the residuals of all pairs of people with that person, squaring the sums and adding
        these up: the cluster-robust variance of [1] without its correction for terms counted twice, so that the
        interval is rather too wide. The effective number of pairs in Wilson's interval is p (1 - p) / v; where all
        pairs agree, so that v is unknown, it is the number of people.

        Args:
            chosen: (N,) bool.
            confidence: of the interval, between 0 and 1.
        """
        number = len(self._known)
        if number == 0:
            return PeopleRate(math.nan, math.nan, math.nan, 0.0)
        hits = torch.bincount(self._group[chosen], minlength=self.people**2)
        share = hits[self._known].double() / self._count[self._known]
        rate = float(share.mean())
        first, second = self._known // self.people, self._known % self.people
        sums = torch.bincount(first, share - rate, self.people)
        sums += torch.bincount(second, torch.where(first == second, 0.0, share - rate), self.people)
        variance = float(sums.square().sum()) / number**2
        estimated = rate * (1 - rate) / variance if variance > 0 else self.people
        effective = float(min(estimated, len(chosen)))
        return PeopleRate(rate, *wilson(rate * effective, effective, confidence), effective)


def tar_intervals(
    similarity: Tensor, same: Tensor, fars: Mapping[str, float] = FALSE_ACCEPT_RATES, repeats: float = 1
) -> dict[str, dict[str, float | str]]:
    """`true_accept_rate` at each of `fars` with its 95 % interval by `wilson` over the pairs of one person.

    The interval takes the threshold as given and the pairs as independent. They are not, since each person enters many: it is too narrow,
    and where people can be drawn anew, a bootstrap over people is the better interval.

    Args:
        similarity: (N,).
        same: (N,) bool, whether a pair shows one person.
        fars: false accept rates in (0, 1], by the names that the answer has.
        repeats: how many of the pairs show the same two images under other masks. They tell little more than one of them would, so each
            such group counts as one pair, both for what the pairs can support and for the interval.

    Returns:
        By name `tar`, `low` and `high`; or, where the pairs cannot support it, `tar` as NaN and the `reason`.

    Raises:
        ValueError: a rate is not in (0, 1], or as in `roc_curve`.
    """
    curve, positives = roc_curve(similarity, same), round(int(same.sum()) / repeats)
    negatives = round(int((~same).sum()) / repeats)
    answers: dict[str, dict[str, float | str]] = {}
    for name, far in fars.items():
        if reason := _lacking(positives, negatives, negatives_needed(far)):
            answers[name] = {"tar": math.nan, "reason": reason}
        else:
            tar, _ = operating_point(curve, int((~same).sum()), far)
            answers[name] = {"tar": tar, **wilson(round(tar * positives), positives)._asdict()}
    return answers


def _lacking(positives: int, negatives: int, needed: int) -> str:
    """Why there is no rate, or nothing."""
    if negatives < needed:
        return f"not enough negatives: {negatives}, {needed} needed"
    return "" if positives else "not enough positives: 0, 1 needed"


class McNemar(NamedTuple):
    """The outcome of the test."""

    first_only: int
    """How many the first system alone decided rightly."""
    second_only: int
    """How many the second system alone decided rightly."""
    p_value: float
    """The chance of a split as uneven as this or more, were both equally good."""


def mcnemar(first_right: Tensor, second_right: Tensor) -> McNemar:
    """Compare two systems' decisions on the same items, (N,) bool: whether each was right, as of `decisions`.

    Items are taken as independent. Pairs of faces are not, since they share people, and the p-value tends to be too small: a paired
    bootstrap over people is the better judge.

    >>> outcome = mcnemar(torch.tensor([True, True, True, False]), torch.tensor([False, False, True, False]))
    >>> outcome.first_only, outcome.second_only, round(outcome.p_value, 6)
    (2, 0, 0.5)

    Raises:
        ValueError: the two are not bool and of one shape (N,).
    """
    if (
        first_right.ndim != 1
        or first_right.shape != second_right.shape
        or {first_right.dtype, second_right.dtype} != {torch.bool}
    ):
        got = " and ".join(f"{tuple(right.shape)} of {right.dtype}" for right in (first_right, second_right))
        raise ValueError(
            f"expected two bool tensors of one shape (N,), got {got}: evaluate both systems on the same pairs"
        )
    first_only, second_only = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    return McNemar(first_only, second_only, _two_sided(min(first_only, second_only), first_only + second_only))


def _two_sided(fewer: int, tosses: int) -> float:
    """Twice the chance of at most `fewer` heads in `tosses` of a fair coin, at most 1; in logarithms, for the counts overflow."""
    heads = torch.arange(fewer + 1, dtype=torch.float64)
    choices = math.lgamma(tosses + 1) - torch.lgamma(heads + 1) - torch.lgamma(tosses - heads + 1)
    return min(1.0, 2 * math.exp(float(choices.logsumexp(0)) - tosses * math.log(2)))


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
    return _mean_interval(
        [_accuracy_differences(*pairs, replicates, generator) for pairs in zip(firsts, seconds, strict=True)]
    )


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
    return _mean_interval(
        [_fold_differences(*pairs, replicates, generator) for pairs in zip(firsts, seconds, strict=True)]
    )


def _mean_interval(parts: Sequence[tuple[float, Tensor]]) -> Interval:
    """Of the mean over parts; each has its difference on the people as they are and (R,) on drawn people, NaN for unusable draws."""
    estimate = sum(estimate for estimate, _ in parts) / len(parts)
    difference = torch.stack([drawn for _, drawn in parts]).mean(0)
    difference = difference[~difference.isnan()]
    if len(difference) == 0:
        return Interval(estimate, *[float("nan")] * 3)
    return Interval(
        estimate, float(difference.mean()), float(difference.quantile(_LOW)), float(difference.quantile(_HIGH))
    )


def _accuracy_differences(
    first: PairScores, second: PairScores, replicates: int, generator: torch.Generator
) -> tuple[float, Tensor]:
    """The difference of accuracies on the people as they are, and (R,) on drawn people."""
    positions, counts = _draw_people(first, second, replicates, generator)
    gain = decisions(first).double() - decisions(second).double()
    halves = []
    for chosen in (first.same, ~first.same):
        one, other = positions[:, chosen]
        weight = counts[:, one] if bool((one == other).all()) else counts[:, one] * counts[:, other]
        halves.append((weight * gain[chosen]).sum(1) / weight.sum(1))
    return float(gain[first.same].mean() + gain[~first.same].mean()) / 2, torch.stack(halves).mean(0)


def _fold_differences(
    first: PairScores, second: PairScores, replicates: int, generator: torch.Generator
) -> tuple[float, Tensor]:
    """The difference on the people as they are, and (R,) on drawn people; NaN where one person was drawn only."""
    positions, counts = _draw_people(first, second, replicates, generator)
    estimate = equal_error_rate(first.similarity, first.same) - equal_error_rate(second.similarity, second.same)
    return estimate, _replicate_rates(first, positions, counts) - _replicate_rates(second, positions, counts)


def _draw_people(
    first: PairScores, second: PairScores, replicates: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(2, N) both persons of each pair as columns of (R, P) counts: how often each of the P people was drawn in a replicate."""
    people, positions = torch.unique(torch.stack([first.first_person, first.second_person]), return_inverse=True)
    _check(first, second, replicates, len(people))
    drawn = torch.randint(len(people), (replicates, len(people)), generator=generator)
    counts = torch.zeros(replicates, len(people), dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones_like(drawn, dtype=torch.float64)
    )
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
    one, other = (
        torch.stack([pairs.first_person, pairs.second_person, pairs.same.long()]) for pairs in (first, second)
    )
    if not torch.equal(one, other):
        raise ValueError(
            f"the two systems scored different pairs ({one.shape[1]} and {other.shape[1]}): evaluate both on the same probes"
        )
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}: choose 1 or more, 1000 for an interval")
    if people < 2:
        raise ValueError(f"the pairs show {people} people: a bootstrap over people needs at least two")
