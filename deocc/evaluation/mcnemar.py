"""Do two systems decide differently? McNemar's test on the pairs that only one of them decided rightly.

Where both are equally good, each such pair is a coin toss. The test [0] is taken in its exact, two-sided binomial form at any count.

[0] McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", Psychometrika 12, 1947.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


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
    if first_right.ndim != 1 or first_right.shape != second_right.shape or {first_right.dtype, second_right.dtype} != {torch.bool}:
        got = " and ".join(f"{tuple(right.shape)} of {right.dtype}" for right in (first_right, second_right))
        raise ValueError(f"expected two bool tensors of one shape (N,), got {got}: evaluate both systems on the same pairs")
    first_only, second_only = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    return McNemar(first_only, second_only, _two_sided(min(first_only, second_only), first_only + second_only))


def _two_sided(fewer: int, tosses: int) -> float:
    """Twice the chance of at most `fewer` heads in `tosses` of a fair coin, at most 1; in logarithms, for the counts overflow."""
    heads = torch.arange(fewer + 1, dtype=torch.float64)
    choices = math.lgamma(tosses + 1) - torch.lgamma(heads + 1) - torch.lgamma(tosses - heads + 1)
    return min(1.0, 2 * math.exp(float(choices.logsumexp(0)) - tosses * math.log(2)))
