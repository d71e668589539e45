"""From similarities to decisions: same person, different people, or not sure; calibrated on people that training never saw.

All of this is OURS. A pair is "same" from a similarity on that only a target share of the pairs of two people reaches, "different" below
one that all but `FALSE_REJECTS` of the pairs of one person reach, and "not sure" between. Both shift when a face is masked, so that each
condition has its own. How much of a face is covered is read from its mask; a face less visible than those calibrated on is not decided on.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.protocol import AllPairs
from deocc.evaluation.verification import FALSE_ACCEPT_RATES, PairScores, operating_point, roc_curve
from deocc.geometry import TEMPLATES

CONDITIONS = ("clean-clean", "clean-masked", "masked-masked")
"""By how many of the two faces are masked: 0, 1, 2."""

USUAL_FALSE_ACCEPT_RATE = 1e-2
"""The target that is taken unless another is asked for. OURS."""

FALSE_REJECTS = 0.05
"""At most this share of the pairs of one person is called "different". OURS."""

PAIRS_NEEDED = 5
"""A rate is supported where it is at least this many pairs. OURS. Pairs that share people are not independent: with few people the rate
on others may be several times as high, which is why the thresholds are tried on the test people too."""

_LEAST_SEEN = 0.01  # the share of the masked faces, the least visible ones, that the limit of visibility leaves out
_CENTRE_V, _HALF_WIDTH, _HALF_HEIGHT = 0.45, 1.05, 1.4  # in eye distances, v from the eyes: cheeks at 1.05, chin at 1.85 (deocc.masking)


class CountedPairs(NamedTuple):
    """Pairs, and how many of them show the same two images under other masks: each such group counts as one pair."""

    pairs: PairScores
    repeats: float


@dataclass(frozen=True)
class Rates:
    """What two thresholds do on the pairs of some people."""

    false_accept_rate: float
    """Share of the pairs of two people that is called "same"."""
    false_reject_rate: float
    """Share of the pairs of one person that is not called "same"."""
    called_different: float
    """Share of the pairs of one person that is called "different"."""
    genuine: int
    """Pairs of images of one person; under other masks they count once."""
    impostor: int
    """Pairs of images of two people, likewise."""
    people: int


@dataclass(frozen=True)
class Threshold:
    """Two limits of the similarity, for one condition and one target."""

    target: float
    """The false-accept rate asked for."""
    same: float
    """From this similarity on a pair is "same"."""
    different: float
    """Below it a pair is "different"; at most `same`."""
    validation: Rates
    """On the people who were calibrated on."""
    test: Rates | None = None
    """The same limits on the test people, who had no part in them; None where they were not tried."""


class Separation(NamedTuple):
    """A limit of the covered share that tells masked from clean faces, and its two errors."""

    limit: float
    clean_called_masked: float
    masked_called_clean: float


@dataclass(frozen=True)
class Calibration:
    """All that a decision about two faces needs besides their embeddings.

    Attributes:
        thresholds: by condition, by falling target; empty where the pairs support none.
        masked: from which covered share a face counts as masked.
        least_visible: the visible share below which nothing is decided.
        size: side in pixels of the crops that were calibrated on.
        data: the name of their face set.
        data_hash: its fingerprint of the validation people.
    """

    thresholds: dict[str, tuple[Threshold, ...]]
    masked: Separation
    least_visible: float
    size: int
    data: str
    data_hash: str

    def threshold(self, condition: str, target: float | None = None) -> Threshold:
        """The threshold of a condition, for a target false-accept rate or, None, for the usual one or the strictest above it.

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
            raise ValueError(f"no threshold for a false-accept rate of {wanted:g} ({condition}): choose one of {listed}")
        return known[near]

    def plain(self) -> dict[str, Any]:
        """As JSON and a checkpoint can hold it."""
        thresholds = {condition: [asdict(threshold) for threshold in row] for condition, row in self.thresholds.items()}
        return {**asdict(self), "thresholds": thresholds, "masked": self.masked._asdict()}

    @classmethod
    def from_plain(cls, value: Any) -> Self:
        """Undo `plain`.

        Raises:
            ValueError: it is something else.
        """
        try:
            rows = {condition: tuple(_threshold(entry) for entry in value["thresholds"][condition]) for condition in CONDITIONS}
            return cls(**{**value, "thresholds": rows, "masked": Separation(**value["masked"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the thresholds cannot be read ({error}): write them anew with `deocc test`") from error


def conditions(gallery: EmbeddingSet, probe: EmbeddingSet, protocol: AllPairs | None = None) -> dict[str, CountedPairs]:
    """The pairs of each of `CONDITIONS`: of a clean gallery, of it and masked probes, of the probes."""
    protocol = protocol or AllPairs()
    crossed, within = protocol.repeats(probe)
    pairs = (protocol.within(gallery), protocol.cross(gallery, probe), protocol.within(probe))
    counted = zip(pairs, (protocol.repeats(gallery)[1], crossed, within), strict=True)
    return dict(zip(CONDITIONS, (CountedPairs(*each) for each in counted), strict=True))


def calibrate(validation: CountedPairs, test: CountedPairs | None = None) -> tuple[Threshold, ...]:
    """The thresholds of one condition for each of `FALSE_ACCEPT_RATES` that the validation pairs support, see `PAIRS_NEEDED`.

    Args:
        validation: the pairs to calibrate on.
        test: pairs of other people, to try the thresholds on; not tried where they lack pairs of one person or of two.
    """
    pairs, repeats = validation
    if _count(pairs.same, repeats) * FALSE_REJECTS < PAIRS_NEEDED:
        return ()
    if test is not None and len(torch.unique(test.pairs.same)) < 2:
        test = None
    genuine = pairs.similarity[pairs.same].double().sort().values
    reached = float(genuine[int(len(genuine) * FALSE_REJECTS + 1e-9)])
    curve, impostors, found = roc_curve(pairs.similarity, pairs.same), int((~pairs.same).sum()), []
    for target in FALSE_ACCEPT_RATES.values():
        same = operating_point(curve, impostors, target)[1]
        if impostors / repeats * target * (1 + 1e-9) >= PAIRS_NEEDED and math.isfinite(same):
            limits = same, min(same, reached)
            found.append(Threshold(target, *limits, rates(validation, *limits), None if test is None else rates(test, *limits)))
    return tuple(found)


def rates(counted: CountedPairs, same: float, different: float) -> Rates:
    """What two limits of the similarity do on some pairs; NaN where a rate has no pair to be a share of."""
    pairs, repeats = counted
    similarity = pairs.similarity.double()
    accepted, rejected = similarity >= same, similarity < different
    people = len(torch.unique(torch.cat([pairs.first_person, pairs.second_person])))
    return Rates(
        float(accepted[~pairs.same].double().mean()),
        float((~accepted)[pairs.same].double().mean()),
        float(rejected[pairs.same].double().mean()),
        _count(pairs.same, repeats),
        _count(~pairs.same, repeats),
        people,
    )


def covered_share(mask: Tensor) -> Tensor:
    """The share of the face that a mask covers.

    The face is an ellipse of the canonical crop, from cheek to cheek and from the forehead to the chin: what covers hair or background
    hides nobody.

    Args:
        mask: (B, 1, S, S), 1 = covered.

    Returns:
        (B,) in [0, 1].
    """
    region = _face_region(mask.shape[-1]).to(mask)
    return (mask[:, 0] * region).sum((1, 2)) / region.sum()


def separate(clean: Tensor, masked: Tensor) -> Separation:
    """The limit between covered shares of clean (N,) and of masked faces (M,) with the smallest sum of both errors.

    It lies in the middle between two neighbouring shares; among equally good places, where these are farthest apart.

    Raises:
        ValueError: there are no faces of one sort, or not two different shares.
    """
    values = torch.unique(torch.cat([clean, masked]).double())
    if min(len(clean), len(masked)) == 0 or len(values) < 2:
        raise ValueError(f"{len(clean)} clean and {len(masked)} masked faces with {len(values)} different shares: nothing to tell apart")
    limits = (values[1:] + values[:-1]) / 2
    above = 1 - torch.searchsorted(clean.double().sort().values, limits).double() / len(clean)
    below = torch.searchsorted(masked.double().sort().values, limits).double() / len(masked)
    errors = above + below
    gaps = torch.where(errors <= errors.min() + 1e-12, values[1:] - values[:-1], -1.0)
    place = int(gaps.argmax())
    return Separation(float(limits[place]), float(above[place]), float(below[place]))


def least_visible(covered: Tensor) -> float:
    """The visible share that all but the least visible hundredth of the masked faces reach; covered: (M,) their covered shares."""
    return float((1 - covered.double()).quantile(_LEAST_SEEN))


def _face_region(size: int) -> Tensor:
    """(S, S) bool, whether a pixel of the canonical crop belongs to the face."""
    eyes = TEMPLATES["canonical"].tensor(size)[:2]
    unit, middle = eyes[1, 0] - eyes[0, 0], eyes.mean(0)
    axis = torch.arange(size, dtype=torch.float32)
    u, v = (axis - middle[0]) / unit, (axis - middle[1]) / unit
    return (u[None] / _HALF_WIDTH) ** 2 + ((v[:, None] - _CENTRE_V) / _HALF_HEIGHT) ** 2 <= 1


def _count(chosen: Tensor, repeats: float) -> int:
    return round(int(chosen.sum()) / repeats)


def _threshold(entry: Mapping[str, Any]) -> Threshold:
    tried = entry["test"]
    return Threshold(**{**entry, "validation": Rates(**entry["validation"]), "test": None if tried is None else Rates(**tried)})
