"""Confidence intervals of a share that was counted.

[0] Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American Statistical Association, 1927.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

from torch import Tensor

from deocc.evaluation.verification import FALSE_ACCEPT_RATES, negatives_needed, operating_point, roc_curve


class Bounds(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Bounds:
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
