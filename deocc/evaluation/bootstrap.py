"""Intervals: Wilson, rates over pairs of identities, McNemar's test and a paired bootstrap over identities.

Pairs of faces are not independent, since each identity occurs in many pairs. The bootstrap therefore draws identities
with replacement and scores both systems on the same draws. If identity i was drawn w_i times, a genuine pair of i
counts w_i times and an impostor pair of i and j counts w_i w_j times.

Replicates need no sort: similarities are binned once, and a replicate is the product of a sparse table (bins x
identities, or bins x pairs of identities) with the weights. Genuine and impostor pairs are each cut into about 4096
bins of equal numbers. With fewer than twice as many pairs each similarity has its own bin and the result is exact;
otherwise rates are interpolated within a bin. `tests/evaluation/test_bootstrap.py` checks that the interval agrees with
the exact one to 1e-4.

[0] Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
[1] Cameron, Gelbach and Miller, "Robust inference with multiway clustering", JBES 29, 2011.
"""

import math
from collections.abc import Callable, Sequence
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

_BINS = 4096  # for genuine and for impostor pairs
_CELLS = 4_000_000  # elements of a table that are held at a time, 32 MB
_LOW, _HIGH = 0.025, 0.975  # of a 95 % interval


class Bounds(NamedTuple):
    """Ends of an interval."""

    low: float
    high: float


def wilson(successes: float, trials: float) -> Bounds:
    """Compute Wilson's 95 % score interval [0] of a binomial proportion; NaN for no trials.

    Effective numbers of trials are fractional, which `scipy.stats` does not accept.

    >>> [round(bound, 4) for bound in wilson(9, 10)]
    [0.5958, 0.9821]

    Raises:
        ValueError: `successes` is not from 0 to `trials`.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: choose from 0 to the number of trials")
    if trials == 0:
        return Bounds(math.nan, math.nan)
    z = NormalDist().inv_cdf(_HIGH)
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return Bounds(max(0.0, middle - half), min(1.0, middle + half))


class PeopleRate(NamedTuple):
    """A rate over pairs of identities, with its Wilson interval."""

    rate: float
    low: float
    high: float
    effective: float
    """Number of independent pairs that would estimate the rate with the same variance."""


class PairsOfPeople:
    """Pairs of images grouped by their identities, for rates with equal weight for each pair of identities.

    Args:
        first_identity: (N,) int64, identities, at least 0.
        second_identity: (N,) int64, equal to `first_identity` for genuine pairs.
    """

    def __init__(self, first_identity: Tensor, second_identity: Tensor) -> None:
        length = 1 + int(torch.maximum(first_identity, second_identity).max()) if len(first_identity) else 0
        counts = [torch.bincount(identity, minlength=length) for identity in (first_identity, second_identity)]
        seen = counts[0] + counts[1] > 0
        place = seen.cumsum(0) - 1
        first, second = place[first_identity], place[second_identity]
        self.people = int(seen.sum())
        self._group = torch.minimum(first, second) * self.people + torch.maximum(first, second)
        self._count = torch.bincount(self._group, minlength=self.people**2)
        self._known = self._count.nonzero().squeeze(1)

    @property
    def weight(self) -> Tensor:
        """(N,) float64, one over the number of pairs with the same identities."""
        return 1 / self._count[self._group].double()

    def rate(self, chosen: Tensor) -> PeopleRate:
        """Compute the share of chosen pairs, averaged over pairs of identities, and its interval; NaN for no pairs.

        Pairs that share an identity are not independent. The variance v of the rate p is the sum over identities of the
        squared sum of residuals of all pairs with that identity: the cluster-robust variance of [1] without the
        correction for terms counted twice, so that the interval is rather too wide. The effective number of pairs in
        Wilson's interval is p (1 - p) / v; if all pairs agree, v is unknown and the number of identities is used.

        Args:
            chosen: (N,) bool.
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
        return PeopleRate(rate, *wilson(rate * effective, effective), effective)


def tar_intervals(similarity: Tensor, same: Tensor, repeats: float = 1) -> dict[str, dict[str, float | str]]:
    """Compute TAR at each of `FALSE_ACCEPT_RATES` with a 95 % Wilson interval over the genuine pairs.

    The interval takes the threshold as given and the pairs as independent. Since each identity occurs in many pairs it
    is too narrow; a bootstrap over identities is better where identities can be resampled.

    Args:
        similarity: (N,).
        same: (N,) bool, True for genuine pairs.
        repeats: number of pairs that show the same two images with different masks. Each such group counts as one pair,
            both for the rates that the pairs support and for the interval.

    Returns:
        By rate `tar`, `low` and `high`; or `tar` NaN and the `reason`, if the pairs do not support the rate.

    Raises:
        ValueError: as for `roc_curve`.
    """
    curve, positives = roc_curve(similarity, same), round(int(same.sum()) / repeats)
    impostors = int((~same).sum())
    negatives = round(impostors / repeats)
    answers: dict[str, dict[str, float | str]] = {}
    for name, far in FALSE_ACCEPT_RATES.items():
        needed = negatives_needed(far)
        if negatives < needed:
            answers[name] = {"tar": math.nan, "reason": f"not enough negatives: {negatives}, {needed} needed"}
        elif not positives:
            answers[name] = {"tar": math.nan, "reason": "not enough positives: 0, 1 needed"}
        else:
            tar, _ = operating_point(curve, impostors, far)
            answers[name] = {"tar": tar, **wilson(round(tar * positives), positives)._asdict()}
    return answers


class McNemar(NamedTuple):
    """Outcome of McNemar's exact test."""

    first_only: int
    """Number of items that only the first system decided correctly."""
    second_only: int
    """Number of items that only the second system decided correctly."""
    p_value: float
    """Probability of a split at least as uneven, if both systems are equally good."""


def mcnemar(first_right: Tensor, second_right: Tensor) -> McNemar:
    """Compare the decisions of two systems on the same items with McNemar's exact test.

    The test takes items as independent. Pairs of faces share identities, so the p-value tends to be too small: prefer a
    paired bootstrap over identities.

    >>> outcome = mcnemar(torch.tensor([True, True, True, False]), torch.tensor([False, False, True, False]))
    >>> outcome.first_only, outcome.second_only, round(outcome.p_value, 6)
    (2, 0, 0.5)

    Args:
        first_right: (N,) bool, see `deocc.evaluation.decisions`.
        second_right: (N,) bool.

    Raises:
        ValueError: the shapes or dtypes differ from (N,) bool.
    """
    from scipy.stats import binomtest  # here, since it is slow to import

    if first_right.shape != second_right.shape or {first_right.dtype, second_right.dtype} != {torch.bool}:
        raise ValueError(
            f"expected two bool tensors of one shape (N,), got {tuple(first_right.shape)} {first_right.dtype} and "
            f"{tuple(second_right.shape)} {second_right.dtype}"
        )
    first_only, second_only = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    discordant = first_only + second_only
    return McNemar(first_only, second_only, float(binomtest(first_only, discordant).pvalue) if discordant else 1.0)


class Interval(NamedTuple):
    """A difference and the range that contains 95 % of its bootstrap replicates."""

    estimate: float
    """Difference on the original identities."""
    mean: float
    """Mean of the replicates."""
    low: float
    """2.5th percentile of the replicates."""
    high: float
    """97.5th percentile of the replicates."""


def paired_bootstrap_eer(
    firsts: Sequence[PairScores], seconds: Sequence[PairScores], replicates: int = 1000, seed: int = 0
) -> Interval:
    """Estimate the equal error rate of one system minus that of another, averaged over parts.

    Parts, such as the folds of a cross-validation, contain different identities and are scored by different models, so
    each part has its own equal error rate, and identities are drawn within each. A replicate in which a part drew only
    one identity has no impostor pair and is left out.

    Args:
        firsts: pairs of each part, scored by one system.
        seconds: the same pairs in the same order, scored by the other system.
        replicates: number of bootstrap replicates.
        seed: of the draws.

    Raises:
        ValueError: the pairs or the numbers of parts differ, there are no parts, `replicates` is below 1, or a part has
            fewer than two identities.
    """
    return _paired_bootstrap(_eer_differences, firsts, seconds, replicates, seed)


def paired_bootstrap_accuracy(
    firsts: Sequence[PairScores], seconds: Sequence[PairScores], replicates: int = 1000, seed: int = 0
) -> Interval:
    """Estimate the fold accuracy of one system minus that of another, averaged over parts.

    Thresholds are those of the original pairs of a part (`deocc.evaluation.verification.decisions`). Genuine and
    impostor pairs each have half of the weight.

    Args:
        firsts: as for `paired_bootstrap_eer`, with folds.
        seconds: see `firsts`.
        replicates: as for `paired_bootstrap_eer`.
        seed: of the draws.

    Raises:
        ValueError: as for `paired_bootstrap_eer`, or a part has fewer than two folds.
    """
    return _paired_bootstrap(_accuracy_differences, firsts, seconds, replicates, seed)


def _paired_bootstrap(
    differences: Callable[[PairScores, PairScores, Tensor, Tensor], tuple[float, Tensor]],
    firsts: Sequence[PairScores],
    seconds: Sequence[PairScores],
    replicates: int,
    seed: int,
) -> Interval:
    """Average the differences of all parts, on the original identities and on those of each replicate."""
    if not firsts or len(firsts) != len(seconds):
        raise ValueError(
            f"got {len(firsts)} folds of one system and {len(seconds)} of the other: "
            "give the same folds of both, one at least"
        )
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}: choose 1 or more, 1000 for an interval")
    generator, estimates, parts = torch.Generator().manual_seed(seed), [], []
    for first, second in zip(firsts, seconds, strict=True):
        sides = [torch.stack([pairs.first_identity, pairs.second_identity, pairs.same]) for pairs in (first, second)]
        if not torch.equal(*sides):
            raise ValueError(
                f"the two systems scored different pairs ({len(first.same)} and {len(second.same)}): "
                "evaluate both on the same probes"
            )
        people, positions = torch.unique(sides[0][:2], return_inverse=True)
        if len(people) < 2:
            raise ValueError(f"the pairs show {len(people)} people: a bootstrap over people needs at least two")
        drawn = torch.randint(len(people), (replicates, len(people)), generator=generator)
        counts = torch.zeros(replicates, len(people), dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        estimate, part = differences(first, second, positions, counts)
        estimates.append(estimate)
        parts.append(part)
    estimate, mean = sum(estimates) / len(estimates), torch.stack(parts).mean(0)
    mean = mean[~mean.isnan()]
    if len(mean) == 0:
        return Interval(estimate, math.nan, math.nan, math.nan)
    return Interval(estimate, float(mean.mean()), float(mean.quantile(_LOW)), float(mean.quantile(_HIGH)))


def _accuracy_differences(
    first: PairScores, second: PairScores, positions: Tensor, counts: Tensor
) -> tuple[float, Tensor]:
    """Return the difference of accuracies on the original identities, and (R,) on drawn identities.

    Args:
        first: N pairs, scored by one system.
        second: the same pairs, scored by the other system.
        positions: (2, N), the identities of each pair as columns of `counts`.
        counts: (R, P), how often each identity was drawn in each replicate.
    """
    gain = decisions(first).double() - decisions(second).double()
    halves = []
    for chosen in (first.same, ~first.same):
        one, other = positions[:, chosen]
        weight = counts[:, one] if bool((one == other).all()) else counts[:, one] * counts[:, other]
        halves.append((weight * gain[chosen]).sum(1) / weight.sum(1))
    return float(gain[first.same].mean() + gain[~first.same].mean()) / 2, torch.stack(halves).mean(0)


def _eer_differences(first: PairScores, second: PairScores, positions: Tensor, counts: Tensor) -> tuple[float, Tensor]:
    """Return the difference of EERs on the original identities, and (R,) on drawn identities; NaN if one was drawn."""
    estimate = equal_error_rate(first.similarity, first.same) - equal_error_rate(second.similarity, second.same)
    return estimate, _replicate_rates(first, positions, counts) - _replicate_rates(second, positions, counts)


def _replicate_rates(scores: PairScores, positions: Tensor, counts: Tensor) -> Tensor:
    """Compute (R,) equal error rates for counts (R, P) and pairs of identities (2, N) as columns of `counts`."""
    people, same = counts.shape[1], scores.same
    cuts = []
    for chosen in (same, ~same):
        values = scores.similarity[chosen].sort().values
        cuts.append(values[:: max(1, len(values) // _BINS)])
    edges = torch.unique(torch.cat(cuts))
    bins = len(edges) - torch.searchsorted(edges, scores.similarity, right=True)  # bin 0 has the most similar pairs
    low, high = positions.sort(0).values
    pairs, cell = torch.unique(low[~same] * people + high[~same], return_inverse=True)
    genuine = _count_table(bins[same], low[same], len(edges), people)
    impostor = _count_table(bins[~same], cell, len(edges), len(pairs))
    rates = []
    for part in counts.split(max(1, _CELLS // max(len(pairs), len(edges)))):
        weight = part.T[pairs // people] * part.T[pairs % people]
        rates.append(curve_equal_error_rate(_cumulative_share(impostor, weight), _cumulative_share(genuine, part.T)))
    return torch.cat(rates)


def _cumulative_share(table: Tensor, weight: Tensor) -> Tensor:
    """Return (R, bins + 1), the share of the weighted pairs in the first 0, 1, 2, ... bins."""
    accepted: Tensor = torch.sparse.mm(table, weight).T.cumsum(1)
    return F.pad(accepted, (1, 0)) / accepted[:, -1:]


def _count_table(bins: Tensor, cell: Tensor, height: int, width: int) -> Tensor:
    """Count the pairs in each bin and cell, as a sparse (height, width) table."""
    ones = torch.ones(len(bins), dtype=torch.float64)
    table = torch.sparse_coo_tensor(torch.stack([bins, cell]), ones, (height, width), check_invariants=False)
    return table.coalesce()
