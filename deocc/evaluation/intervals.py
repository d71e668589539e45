"""Confidence intervals of a share that was counted.

[0] Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American Statistical Association, 1927.
[1] Aronow, Samii, Assenova, "Cluster-robust variance estimation for dyadic data", Political Analysis, 2015.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from deocc.evaluation.verification import FALSE_ACCEPT_RATES, negatives_needed, operating_point, roc_curve


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
