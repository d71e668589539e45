"""Intervals: Wilson, rates over pairs of identities, and a paired bootstrap over identities.

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
[2] Westfall and Young, "Resampling-Based Multiple Testing", Wiley, 1993.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.evaluation.verification import (
    FALSE_ACCEPT_RATES,
    PairScores,
    RocCurve,
    check_same_pairs,
    curve_equal_error_rate,
    decisions,
    negatives_needed,
    operating_point,
    roc_curve,
    verification_scores,
)

_BINS = 4096  # for genuine and for impostor pairs
_CELLS = 4_000_000  # elements of a table that are held at a time, 32 MB
_LOW, _HIGH = 0.025, 0.975  # of a 95 % interval
_SIMULTANEOUS = 0.95


class Bounds(NamedTuple):
    """Ends of an interval."""

    low: float
    high: float


def wilson(successes: float, trials: float) -> Bounds:
    """Compute Wilson's 95 % score interval [0] of a binomial proportion.

    Args:
        successes: from 0 to `trials`.
        trials: effective numbers are fractional, which `scipy.stats` does not accept.

    Returns:
        Bounds in [0, 1]; NaN for no trials.

    >>> [round(bound, 4) for bound in wilson(9, 10)]
    [0.5958, 0.9821]
    """
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
    effective: float  # number of independent pairs that would estimate the rate with the same variance


class PairsOfPeople:
    """Pairs of images grouped by their identities, for rates with equal weight for each pair of identities.

    Identities are (N,) int64, at least 0; those of a genuine pair are equal.
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
        """Compute the share of chosen pairs, (N,) bool, averaged over pairs of identities; NaN for no pairs.

        Pairs that share an identity are not independent. The variance v of the rate p is the sum over identities of the
        squared sum of residuals of all pairs with that identity: the cluster-robust variance of [1] without the
        correction for terms counted twice, so that the interval is rather too wide. The effective number of pairs in
        Wilson's interval is p (1 - p) / v; if all pairs agree, v is unknown and the number of identities is used.
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


def tar_intervals(
    similarity: Tensor, same: Tensor, repeats: float = 1, curve: RocCurve | None = None
) -> dict[str, dict[str, float | str]]:
    """Compute TAR at each of `FALSE_ACCEPT_RATES` with a 95 % Wilson interval over the genuine pairs.

    The interval takes the threshold as given and the pairs as independent. Since each identity occurs in many pairs it
    is too narrow; a bootstrap over identities is better where identities can be resampled. `repeats` is the number of
    pairs that show the same two images with different masks. Each such group counts as one pair, both for the rates
    that the pairs support and for the interval. `curve` is as for `verification_scores`.

    Returns:
        By rate `tar`, `low` and `high`; or `tar` NaN and the `reason`, if the pairs do not support the rate.
    """
    curve, positives = curve or roc_curve(similarity, same), round(int(same.sum()) / repeats)
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


class Interval(NamedTuple):
    """A difference and the range that contains 95 % of its bootstrap replicates."""

    estimate: float  # on the original identities
    mean: float  # of the replicates
    low: float  # 2.5th percentile of the replicates
    high: float  # 97.5th percentile


def bootstrap_figures(
    parts: Sequence[Sequence[PairScores]],
    replicates: int = 1000,
    seed: int = 0,
    names: Sequence[str] = ("accuracy", "eer", "tar@1e-2", "tar@1e-3"),
) -> dict[str, Tensor]:
    """Compute figures of a system on the original identities and on drawn ones, averaged over parts.

    Parts, such as the folds of a cross-validation, contain different identities and are scored by different models, so
    each part has its own thresholds, and identities are drawn within each. Systems that scored the same pairs get the
    same draws, so the difference of their figures is a paired bootstrap.

    Accuracy is that over folds; its thresholds are those of the original pairs of a part
    (`deocc.evaluation.verification.decisions`), and genuine and impostor pairs each have half of the weight.

    Each part consists of the same pairs, scored by one or more models, whose figures are averaged.

    Returns:
        By name (1 + replicates,) float64, the first on the original identities. NaN in replicates in which a part drew
        only one identity, and where the pairs do not support a figure.

    Raises:
        ValueError: the models of a part scored different pairs, or a part has fewer than two identities.
    """
    generator, means = torch.Generator().manual_seed(seed), []
    for part in parts:
        for pairs in part[1:]:
            check_same_pairs(part[0], pairs)
        both = torch.stack([part[0].first_identity, part[0].second_identity])
        people, positions = torch.unique(both, return_inverse=True)
        if len(people) < 2:
            raise ValueError(f"the pairs show {len(people)} people: a bootstrap over people needs at least two")
        drawn = torch.randint(len(people), (replicates, len(people)), generator=generator)
        counts = torch.zeros(replicates, len(people), dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        figures = [_figures_of_draws(pairs, positions, counts, names) for pairs in part]
        means.append(torch.stack(figures).mean(0))
    return dict(zip(names, torch.stack(means).mean(0), strict=True))


def simultaneous_intervals(differences: Tensor) -> Tensor:
    """Compute intervals that with 95 % probability all contain their true difference.

    The half width of each is a multiple of its standard error. The multiple, one for all, is the 95th percentile over
    the replicates of the largest standardised deviation: the single-step "max T" method [2], which takes account of the
    correlation between comparisons, unlike Bonferroni's.

    Differences (M, 1 + R) of `bootstrap_figures`, for M comparisons with the same draws, give lower and upper ends
    (M, 2), NaN for a comparison that is NaN.
    """
    estimate, drawn = differences[:, :1], differences[:, 1:]
    known = ~estimate.isnan().squeeze(1)
    drawn = drawn[:, ~drawn[known].isnan().any(0)]
    error = drawn.std(1, keepdim=True)
    deviation = ((drawn - drawn.mean(1, keepdim=True)).abs() / error)[known & (error.squeeze(1) > 0)]
    widest = deviation.amax(0).quantile(_SIMULTANEOUS) if len(deviation) else 0.0
    return torch.cat([estimate - widest * error, estimate + widest * error], 1)


def paired_interval(first: Tensor, second: Tensor) -> Interval:
    """Estimate a figure of one system minus that of another, both (1 + R,) of `bootstrap_figures` with the same draws.

    All is NaN but for the estimate if no replicate is known.
    """
    difference = first - second
    estimate, drawn = float(difference[0]), difference[1:]
    drawn = drawn[~drawn.isnan()]
    if len(drawn) == 0:
        return Interval(estimate, math.nan, math.nan, math.nan)
    return Interval(estimate, float(drawn.mean()), float(drawn.quantile(_LOW)), float(drawn.quantile(_HIGH)))


def _figures_of_draws(pairs: PairScores, positions: Tensor, counts: Tensor, names: Sequence[str]) -> Tensor:
    """Return (names, 1 + R), on the original identities and on those of each replicate."""
    figures = {"accuracy": torch.full((1 + len(counts),), math.nan, dtype=torch.float64)}
    if "accuracy" in names and pairs.fold is not None and len(torch.unique(pairs.fold)) > 1:
        right, halves = decisions(pairs).double(), []
        for chosen in (pairs.same, ~pairs.same):
            one, other = positions[:, chosen]
            weight = counts[:, one] if bool((one == other).all()) else counts[:, one] * counts[:, other]
            accuracy = (weight * right[chosen]).sum(1) / weight.sum(1)
            halves.append(F.pad(accuracy, (1, 0), value=float(right[chosen].mean())))
        figures["accuracy"] = torch.stack(halves).mean(0)
    if rates := [name for name in names if name != "accuracy"]:
        exact = verification_scores(pairs.similarity, pairs.same)
        for name, drawn in _rates_of_draws(pairs, positions, counts, rates).items():
            # NaN everywhere if the pairs do not support it.
            figures[name] = F.pad(drawn + 0 * exact[name], (1, 0), value=exact[name])
    return torch.stack([figures[name] for name in names])


def _rates_of_draws(scores: PairScores, positions: Tensor, counts: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Compute (R,) rates for counts (R, P) and pairs of identities (2, N) as columns of `counts`."""
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
    rates = {name: list[Tensor]() for name in names}
    for part in counts.split(max(1, _CELLS // max(len(pairs), len(edges)))):
        weight = part.T[pairs // people] * part.T[pairs % people]
        far, tar = _cumulative_share(impostor, weight), _cumulative_share(genuine, part.T)
        for name, drawn in rates.items():
            if name == "eer":
                drawn.append(curve_equal_error_rate(far, tar))
            else:  # at the lowest threshold whose FAR is not above the rate
                rate = FALSE_ACCEPT_RATES[name.removeprefix("tar@")]
                place = (far <= rate * (1 + 1e-12)).sum(1, keepdim=True) - 1
                drawn.append(tar.gather(1, place.clamp_min(0)).squeeze(1) + 0 * far[:, -1])  # NaN without impostors
    return {name: torch.cat(drawn) for name, drawn in rates.items()}


def _count_table(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Return (height, width) sparse, the number of pairs in each row and column."""
    ones = torch.ones(len(rows), dtype=torch.float64)
    table = torch.sparse_coo_tensor(torch.stack([rows, columns]), ones, (height, width), check_invariants=False)
    return table.coalesce()


def _cumulative_share(table: Tensor, weight: Tensor) -> Tensor:
    """Return (R, bins + 1), the share of the weighted pairs in the first 0, 1, 2, ... bins."""
    accepted: Tensor = torch.sparse.mm(table, weight).T.cumsum(1)
    return F.pad(accepted, (1, 0)) / accepted[:, -1:]
