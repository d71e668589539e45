"""Verification thresholds: same, different or not sure, calibrated on validation people and measured on test people.

A pair is "same" at or above the lowest similarity that at most a target share of impostor pairs reaches, "different"
below the similarity that all but `FALSE_REJECTS` of the genuine pairs reach, and "not sure" in between. Masks shift
similarities, so each condition has its own thresholds. Every pair of people and every person has equal weight, whatever
the number of photos; otherwise a person with 500 photos would determine the thresholds. The covered share of a face is
computed from its mask, which may be soft. No decision is made on a face that is less visible than the calibration
faces. Not known from the paper; our choice.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deocc.evaluation.bootstrap import PairsOfPeople
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.protocol import AllPairs
from deocc.evaluation.thresholds import Bounds, Rates, Separation, Threshold
from deocc.evaluation.verification import FALSE_ACCEPT_RATES, PairScores, operating_point, roc_curve

FALSE_REJECTS = 0.05
"""Largest share of genuine pairs that is called "different"."""

PAIRS_NEEDED = 5
"""Number of pairs that a target rate must amount to.

With few people the rate on others may still be several times as high, since pairs that share a person are not
independent; the interval in `Rates` takes this into account.
"""

_LEAST_SEEN = 0.01  # share of the masked faces that are less visible than `least_visible`


class CountedPairs(NamedTuple):
    """Pairs of faces, and the mean number of pairs that show the same two images with different masks."""

    pairs: PairScores
    repeats: float


def conditions(gallery: EmbeddingSet, probe: EmbeddingSet) -> dict[str, CountedPairs]:
    """Return all pairs of each of `CONDITIONS`, from a clean gallery and masked probes."""
    protocol = AllPairs()
    cross_repeats, within_repeats = protocol.repeats(probe)
    return {
        "clean-clean": CountedPairs(protocol.within(gallery), protocol.repeats(gallery)[1]),
        "clean-masked": CountedPairs(protocol.cross(gallery, probe), cross_repeats),
        "masked-masked": CountedPairs(protocol.within(probe), within_repeats),
    }


def calibrate(validation: CountedPairs, test: CountedPairs | None = None) -> tuple[Threshold, ...]:
    """Choose the thresholds of one condition for each of `FALSE_ACCEPT_RATES` that the pairs support (`PAIRS_NEEDED`).

    Args:
        validation: pairs by which thresholds are chosen.
        test: pairs of other people on which thresholds are measured; ignored without genuine or without impostor pairs.
    """
    pairs, repeats = validation
    genuine, impostors = int(pairs.same.sum()) / repeats, int((~pairs.same).sum()) / repeats
    if round(genuine) * FALSE_REJECTS < PAIRS_NEEDED:
        return ()
    measured = [validation]
    if test is not None and len(torch.unique(test.pairs.same)) == 2:
        measured.append(test)
    measures = [_ErrorRates(counted) for counted in measured]
    weight = PairsOfPeople(pairs.first_identity, pairs.second_identity).weight
    curve = roc_curve(pairs.similarity, pairs.same, weight)
    reached = float(curve.threshold[int((curve.tar < 1 - FALSE_REJECTS - 1e-9).sum())])
    thresholds = []
    for target in FALSE_ACCEPT_RATES.values():
        same = operating_point(curve, int((~pairs.same).sum()), target)[1]
        if impostors * target * (1 + 1e-9) >= PAIRS_NEEDED and math.isfinite(same):
            different = min(same, reached)
            thresholds.append(Threshold(target, same, different, *(each.at(same, different) for each in measures)))
    return tuple(thresholds)


class _ErrorRates:
    """Error rates of any thresholds on a set of pairs."""

    def __init__(self, counted: CountedPairs) -> None:
        pairs, repeats = counted
        same = pairs.same
        self._genuine, self._impostor = pairs.similarity[same].double(), pairs.similarity[~same].double()
        self._genuine_people = PairsOfPeople(pairs.first_identity[same], pairs.second_identity[same])
        self._impostor_people = PairsOfPeople(pairs.first_identity[~same], pairs.second_identity[~same])
        self._repeats = repeats

    def at(self, same: float, different: float) -> Rates:
        accepted = self._impostor_people.rate(self._impostor >= same)
        return Rates(
            false_accept_rate=accepted.rate,
            false_reject_rate=self._genuine_people.rate(self._genuine < same).rate,
            called_different=self._genuine_people.rate(self._genuine < different).rate,
            genuine=round(len(self._genuine) / self._repeats),
            impostor=round(len(self._impostor) / self._repeats),
            people=max(self._genuine_people.people, self._impostor_people.people),
            interval=Bounds(accepted.low, accepted.high),
            effective_impostor=accepted.effective,
        )


def separate(clean: Tensor, masked: Tensor) -> Separation:
    """Find the limit between the covered shares of clean (N,) and masked faces (M,) with the fewest errors.

    It minimises the sum of both error rates and is halfway between two neighbouring shares. Of equally good limits, the
    one between the two shares that differ most is chosen.

    Raises:
        ValueError: there are no clean or no masked faces, or all shares are equal.
    """
    values = torch.unique(torch.cat([clean, masked]).double())
    if min(len(clean), len(masked)) == 0 or len(values) < 2:
        raise ValueError(
            f"{len(clean)} clean and {len(masked)} masked faces with {len(values)} different shares: "
            "nothing to separate"
        )
    limits = (values[1:] + values[:-1]) / 2
    above = 1 - torch.searchsorted(clean.double().sort().values, limits).double() / len(clean)
    below = torch.searchsorted(masked.double().sort().values, limits).double() / len(masked)
    errors = above + below
    gaps = torch.where(errors <= errors.min() + 1e-12, values[1:] - values[:-1], -1.0)
    place = int(gaps.argmax())
    return Separation(float(limits[place]), float(above[place]), float(below[place]))


def least_visible(covered: Tensor) -> float:
    """Return the visible share that 99 % of the masked faces reach, from their covered shares (M,)."""
    return float((1 - covered.double()).quantile(_LEAST_SEEN))
