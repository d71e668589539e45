"""Verification thresholds: same, different or not sure, calibrated on validation people and measured on test people.

A pair is "same" at or above the lowest similarity that at most a target share of the pairs of two people reaches,
"different" below the one that all but `FALSE_REJECTS` of the pairs of one person reach, and "not sure" in between.
Masks shift the similarities, so each condition has its own thresholds. In every rate each two people count once, and
each person, however many photos they have: in a set with one person of 500 photos, thresholds by single pairs would be
those of this person. The covered share of a face is computed from its mask, which may be soft; no decision is made on a
face that is less visible than those calibrated on. Not specified by the paper; our choice.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from deocc.evaluation.bootstrap import Bounds, PairsOfPeople
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.protocol import AllPairs
from deocc.evaluation.verification import FALSE_ACCEPT_RATES, PairScores, operating_point, roc_curve
from deocc.geometry import TEMPLATES

CONDITIONS = ("clean-clean", "clean-masked", "masked-masked")
"""Named by how many of the two faces are masked: 0, 1, 2."""

USUAL_FALSE_ACCEPT_RATE = 1e-2
"""The default target."""

FALSE_REJECTS = 0.05
"""At most this share of the pairs of one person is called "different"."""

PAIRS_NEEDED = 5
"""A target is calibrated only if it amounts to at least this many pairs. With few people the rate on others may still be
several times as high, since pairs that share people are not independent: `Rates` has an interval for this."""

_LEAST_SEEN = 0.01  # share of the masked faces, the least visible ones, that fall below `least_visible`
_CENTRE_V, _HALF_WIDTH, _HALF_HEIGHT = (
    0.45,
    1.05,
    1.4,
)  # in eye distances, v from the eyes: cheeks at 1.05, chin at 1.85 (deocc.masking)


class CountedPairs(NamedTuple):
    """Pairs of faces, and how many of them on average show the same two images under other masks."""

    pairs: PairScores
    repeats: float


@dataclass(frozen=True)
class Rates:
    """Error rates of two thresholds on the pairs of some people."""

    false_accept_rate: float
    """Share of the pairs of two people that are called "same", averaged over each two people."""
    false_reject_rate: float
    """Share of the pairs of one person that are not called "same", averaged over people."""
    called_different: float
    """Share of the pairs of one person that are called "different", averaged over people."""
    genuine: int
    """Number of pairs of images of one person; the same two images under several masks count once."""
    impostor: int
    """Number of pairs of images of two people, counted in the same way."""
    people: int
    interval: Bounds | None = None
    """95 % Wilson interval of `false_accept_rate`, see `PairsOfPeople.rate`; None in files of earlier versions."""
    effective_impostor: float | None = None
    """Effective number of pairs of two people behind `interval`."""


@dataclass(frozen=True)
class Threshold:
    """Two thresholds of the similarity for one condition and one target."""

    target: float
    """The target false-accept rate."""
    same: float
    """A pair of at least this similarity is "same"."""
    different: float
    """A pair of a lower similarity than this is "different"; at most `same`."""
    validation: Rates
    """Rates on the validation people, by whom the thresholds were chosen."""
    test: Rates | None = None
    """Rates of the same thresholds on the test people; None where these were not measured."""


class Separation(NamedTuple):
    """A limit of the covered share that separates masked from clean faces, and its two error rates."""

    limit: float
    clean_called_masked: float
    masked_called_clean: float


@dataclass(frozen=True)
class Calibration:
    """Everything that a decision on two faces needs besides their embeddings.

    Attributes:
        thresholds: for each condition, by falling target; empty where the pairs support none.
        masked: covered share at or above which a face counts as masked.
        least_visible: visible share below which no decision is made.
        size: side in pixels of the crops that were calibrated on.
        data: name of their face set.
        data_hash: its fingerprint of the validation people.
    """

    thresholds: dict[str, tuple[Threshold, ...]]
    masked: Separation
    least_visible: float
    size: int
    data: str
    data_hash: str

    def threshold(self, condition: str, target: float | None = None) -> Threshold:
        """The threshold of a condition for a target false-accept rate.

        Args:
            condition: one of `CONDITIONS`.
            target: None for `USUAL_FALSE_ACCEPT_RATE`, or the strictest calibrated one above it.

        Raises:
            ValueError: that target was not calibrated.
        """
        known = {threshold.target: threshold for threshold in self.thresholds[condition]}
        if not known:
            raise ValueError(f"no threshold for {condition}: too few validation people; test on more with `deocc test`")
        wanted = max(USUAL_FALSE_ACCEPT_RATE, min(known)) if target is None else target
        near = min(known, key=lambda rate: abs(math.log(rate / wanted))) if wanted > 0 else min(known)
        if not math.isclose(near, wanted, rel_tol=1e-6):
            listed = ", ".join(f"{rate:g}" for rate in known)
            raise ValueError(
                f"no threshold for a false-accept rate of {wanted:g} ({condition}): choose one of {listed}"
            )
        return known[near]

    def plain(self) -> dict[str, Any]:
        """The calibration in values that JSON has."""
        thresholds = {condition: [asdict(threshold) for threshold in row] for condition, row in self.thresholds.items()}
        return {**asdict(self), "thresholds": thresholds, "masked": self.masked._asdict()}

    @classmethod
    def from_plain(cls, value: Any) -> Self:
        """The inverse of `plain`.

        Raises:
            ValueError: `value` is no calibration.
        """
        try:
            rows = {
                condition: tuple(_threshold(entry) for entry in value["thresholds"][condition])
                for condition in CONDITIONS
            }
            return cls(**{**value, "thresholds": rows, "masked": Separation(**value["masked"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the thresholds cannot be read ({error}): write them again with `deocc test`") from error


def conditions(gallery: EmbeddingSet, probe: EmbeddingSet) -> dict[str, CountedPairs]:
    """All pairs of each of `CONDITIONS`: within a clean gallery, between it and masked probes, within the probes."""
    protocol = AllPairs()
    crossed, within = protocol.repeats(probe)
    pairs = (protocol.within(gallery), protocol.cross(gallery, probe), protocol.within(probe))
    counted = zip(pairs, (protocol.repeats(gallery)[1], crossed, within), strict=True)
    return dict(zip(CONDITIONS, (CountedPairs(*each) for each in counted), strict=True))


def calibrate(validation: CountedPairs, test: CountedPairs | None = None) -> tuple[Threshold, ...]:
    """The thresholds of one condition for each of `FALSE_ACCEPT_RATES` that the validation pairs support, see `PAIRS_NEEDED`.

    Args:
        validation: pairs to choose the thresholds by.
        test: pairs of other people to measure the thresholds on; ignored if they lack pairs of one person or pairs of
            two.
    """
    pairs, repeats = validation
    genuine, impostors = (int(chosen.sum()) / repeats for chosen in (pairs.same, ~pairs.same))
    if round(genuine) * FALSE_REJECTS < PAIRS_NEEDED:
        return ()
    if test is not None and len(torch.unique(test.pairs.same)) < 2:
        test = None
    measures = [_Measure(counted) for counted in (validation, *([] if test is None else [test]))]
    weight = PairsOfPeople(pairs.first_person, pairs.second_person).weight
    curve, found = roc_curve(pairs.similarity, pairs.same, weight), []
    reached = float(curve.threshold[int((curve.tar < 1 - FALSE_REJECTS - 1e-9).sum())])
    for target in FALSE_ACCEPT_RATES.values():
        same = operating_point(curve, int((~pairs.same).sum()), target)[1]
        if impostors * target * (1 + 1e-9) >= PAIRS_NEEDED and math.isfinite(same):
            limits = same, min(same, reached)
            found.append(Threshold(target, *limits, *(measure.rates(*limits) for measure in measures)))
    return tuple(found)


class _Measure:
    """Error rates of any thresholds on some pairs of one person and of two."""

    def __init__(self, counted: CountedPairs) -> None:
        pairs, repeats = counted
        self._similarity = {same: pairs.similarity[pairs.same == same].double() for same in (True, False)}
        self._groups = {
            same: PairsOfPeople(*(person[pairs.same == same] for person in (pairs.first_person, pairs.second_person)))
            for same in (True, False)
        }
        self._number = {same: round(len(similarity) / repeats) for same, similarity in self._similarity.items()}

    def rates(self, same: float, different: float) -> Rates:
        accepted = self._groups[False].rate(self._similarity[False] >= same)
        rejected, called_different = (
            self._groups[True].rate(self._similarity[True] < limit).rate for limit in (same, different)
        )
        return Rates(
            false_accept_rate=accepted.rate,
            false_reject_rate=rejected,
            called_different=called_different,
            genuine=self._number[True],
            impostor=self._number[False],
            people=max(group.people for group in self._groups.values()),
            interval=Bounds(accepted.low, accepted.high),
            effective_impostor=accepted.effective,
        )


def covered_share(mask: Tensor) -> Tensor:
    """The share of the face that a mask covers.

    The face is an ellipse in the canonical crop, from cheek to cheek and from the forehead to the chin; covered hair
    and background do not count.

    Args:
        mask: (B, 1, S, S) in [0, 1], 1 = covered.

    Returns:
        (B,) in [0, 1].
    """
    region = _face_region(mask.shape[-1]).to(mask)
    return (mask[:, 0] * region).sum((1, 2)) / region.sum()


def separate(clean: Tensor, masked: Tensor) -> Separation:
    """The limit between covered shares of clean (N,) and masked faces (M,) with the smallest sum of both error rates.

    It is halfway between two neighbouring shares; among equally good limits, the one between the two shares that differ
    most.

    Raises:
        ValueError: there are no clean or no masked faces, or all shares are equal.
    """
    values = torch.unique(torch.cat([clean, masked]).double())
    if min(len(clean), len(masked)) == 0 or len(values) < 2:
        raise ValueError(
            f"{len(clean)} clean and {len(masked)} masked faces with {len(values)} different shares: nothing to separate"
        )
    limits = (values[1:] + values[:-1]) / 2
    above = 1 - torch.searchsorted(clean.double().sort().values, limits).double() / len(clean)
    below = torch.searchsorted(masked.double().sort().values, limits).double() / len(masked)
    errors = above + below
    gaps = torch.where(errors <= errors.min() + 1e-12, values[1:] - values[:-1], -1.0)
    place = int(gaps.argmax())
    return Separation(float(limits[place]), float(above[place]), float(below[place]))


def least_visible(covered: Tensor) -> float:
    """The visible share that 99 % of the masked faces reach; covered: (M,) their covered shares."""
    return float((1 - covered.double()).quantile(_LEAST_SEEN))


def _face_region(size: int) -> Tensor:
    """(S, S) bool, the pixels of the canonical crop that belong to the face."""
    eyes = TEMPLATES["canonical"].tensor(size)[:2]
    unit, middle = eyes[1, 0] - eyes[0, 0], eyes.mean(0)
    axis = torch.arange(size, dtype=torch.float32)
    u, v = (axis - middle[0]) / unit, (axis - middle[1]) / unit
    return (u[None] / _HALF_WIDTH) ** 2 + ((v[:, None] - _CENTRE_V) / _HALF_HEIGHT) ** 2 <= 1


def _threshold(entry: Mapping[str, Any]) -> Threshold:
    return Threshold(
        **{**entry, "validation": _rates(entry["validation"]), "test": entry["test"] and _rates(entry["test"])}
    )


def _rates(entry: Mapping[str, Any]) -> Rates:
    interval = entry.get("interval")
    return Rates(**{**entry, "interval": interval and Bounds(*interval)})
