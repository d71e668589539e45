"""Verification thresholds: same, different or not sure, calibrated on validation people and measured on test people.

A pair is "same" at or above the lowest similarity that at most a target share of impostor pairs reaches, "different"
below the similarity that all but `FALSE_REJECTS` of the genuine pairs reach, and "not sure" in between. Masks shift
similarities, so each condition has its own thresholds. Every pair of people and every person has equal weight, whatever
the number of photos; otherwise a person with 500 photos would determine the thresholds. The covered share of a face is
computed from its mask, which may be soft. No decision is made on a face that is less visible than the calibration
faces. Not known from the paper; our choice.
"""

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import torch
from torch import Tensor

from deocc.evaluation.bootstrap import Bounds, PairsOfPeople
from deocc.evaluation.verification import FALSE_ACCEPT_RATES, PairScores, operating_point, roc_curve
from deocc.files import checksum, write_json
from deocc.geometry import TEMPLATES
from deocc.messages import describe_error

CONDITIONS = ("clean-clean", "clean-masked", "masked-masked")  # of a pair, by the number of masked faces
USUAL_FALSE_ACCEPT_RATE = 1e-2  # the default target
FALSE_REJECTS = 0.05  # largest share of genuine pairs that is called "different"

# Number of pairs that a target rate must amount to. With few people the rate on others may still be several times as
# high, since pairs that share a person are not independent; the interval in `Rates` takes this into account.
PAIRS_NEEDED = 5

# The key of `Calibration.plain` in a thresholds file, in `results.json` and in a model folder's `config.json`
THRESHOLDS: Final = "thresholds"

_SHA256: Final = "checkpoint_sha256"
_LEAST_SEEN: Final = 0.01  # share of the masked faces that are less visible than `least_visible`
# Ellipse of the face in distances between the eyes, v downwards from the eyes: cheeks at 1.05, chin at 1.85
_CENTRE_V, _HALF_WIDTH, _HALF_HEIGHT = 0.45, 1.05, 1.4


@dataclass(frozen=True)
class Rates:
    """Error rates of a pair of thresholds on a set of pairs."""

    false_accept_rate: float  # share of impostor pairs called "same", averaged over pairs of people
    false_reject_rate: float  # share of genuine pairs not called "same", averaged over people
    called_different: float  # share of genuine pairs called "different", averaged over people
    genuine: int  # number of genuine pairs of images; the same two images with several masks count once
    impostor: int  # number of impostor pairs of images, counted in the same way
    people: int
    interval: Bounds | None = None  # 95 %, of `false_accept_rate`, see `PairsOfPeople.rate`; None in earlier files
    effective_impostor: float | None = None  # effective number of impostor pairs of `interval`


@dataclass(frozen=True)
class Threshold:
    """Thresholds for one condition and one target."""

    target: float  # the target false-accept rate
    same: float  # a pair of at least this similarity is "same"
    different: float  # a pair of a lower similarity than this is "different"; at most `same`
    validation: Rates  # on the validation people, on which the thresholds were chosen
    test: Rates | None = None  # on the test people; None if not measured


class Separation(NamedTuple):
    """A limit of the covered share that separates masked from clean faces, and its error rates."""

    limit: float
    clean_called_masked: float
    masked_called_clean: float


@dataclass(frozen=True)
class Calibration:
    """Inputs of a decision on two faces, besides their embeddings."""

    thresholds: dict[str, tuple[Threshold, ...]]  # by condition, in order of falling target; empty if none is supported
    masked: Separation  # covered share at or above which a face counts as masked
    least_visible: float  # visible share below which no decision is made
    size: int  # side in pixels of the crops that were calibrated on
    data: str  # name of their face set
    data_hash: str  # fingerprint of the validation people

    def threshold(self, condition: str, target: float | None = None) -> Threshold:
        """Return the thresholds of one of `CONDITIONS` for a target false-accept rate.

        None stands for `USUAL_FALSE_ACCEPT_RATE`, or the strictest calibrated target above it. Raises ValueError if the
        target was not calibrated.
        """
        known = {threshold.target: threshold for threshold in self.thresholds[condition]}
        if not known:
            raise ValueError(f"no threshold for {condition}: too few validation people; test on more with `deocc test`")
        wanted = max(USUAL_FALSE_ACCEPT_RATE, min(known)) if target is None else target
        near = min(known, key=lambda rate: abs(math.log(rate / wanted))) if wanted > 0 else min(known)
        if not math.isclose(near, wanted, rel_tol=1e-6):
            listed = ", ".join(f"{rate:g}" for rate in known)
            rate = f"false-accept rate of {wanted:g} ({condition})"
            raise ValueError(f"no threshold for a {rate}: choose one of {listed}")
        return known[near]

    def plain(self) -> dict[str, Any]:
        """Return the calibration as JSON values."""
        return {**asdict(self), "masked": self.masked._asdict()}

    @classmethod
    def from_plain(cls, value: Any) -> Self:
        """Create a calibration from the result of `plain`; raise ValueError if `value` is no such result."""

        def rates(entry: Mapping[str, Any]) -> Rates:
            interval = entry.get("interval")
            return Rates(**{**entry, "interval": interval and Bounds(*interval)})

        def threshold(entry: Mapping[str, Any]) -> Threshold:
            test = None if entry["test"] is None else rates(entry["test"])
            return Threshold(**{**entry, "validation": rates(entry["validation"]), "test": test})

        try:
            rows = {condition: tuple(map(threshold, value["thresholds"][condition])) for condition in CONDITIONS}
            return cls(**{**value, "thresholds": rows, "masked": Separation(**value["masked"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the thresholds cannot be read ({error}): write them again with `deocc test`") from error


class CountedPairs(NamedTuple):
    """Pairs of faces, and the mean number of pairs that show the same two images with different masks."""

    pairs: PairScores
    repeats: float


def calibrate(validation: CountedPairs, test: CountedPairs | None = None) -> tuple[Threshold, ...]:
    """Choose the thresholds of one condition for each of `FALSE_ACCEPT_RATES` that the pairs support (`PAIRS_NEEDED`).

    They are chosen on validation pairs and measured on those of `test`, unless these lack genuine or impostor pairs.
    """
    pairs, repeats = validation
    genuine, impostors = int(pairs.same.sum()) / repeats, int((~pairs.same).sum()) / repeats
    if round(genuine) * FALSE_REJECTS < PAIRS_NEEDED:
        return ()
    measures = [_error_rates(validation)]
    if test is not None and len(torch.unique(test.pairs.same)) == 2:
        measures.append(_error_rates(test))
    weight = PairsOfPeople(pairs.first_identity, pairs.second_identity).weight
    curve = roc_curve(pairs.similarity, pairs.same, weight)
    reached = float(curve.threshold[int((curve.tar < 1 - FALSE_REJECTS - 1e-9).sum())])
    thresholds = []
    for target in FALSE_ACCEPT_RATES.values():
        same = operating_point(curve, int((~pairs.same).sum()), target)[1]
        if impostors * target * (1 + 1e-9) >= PAIRS_NEEDED and math.isfinite(same):
            different = min(same, reached)
            thresholds.append(Threshold(target, same, different, *(rates(same, different) for rates in measures)))
    return tuple(thresholds)


def _error_rates(counted: CountedPairs) -> Callable[[float, float], Rates]:
    """Return a function from the thresholds for "same" and "different" to their error rates on a set of pairs."""
    (similarity, same, first, second, _), repeats = counted
    genuine, impostor = similarity[same].double(), similarity[~same].double()
    genuine_people = PairsOfPeople(first[same], second[same])
    impostor_people = PairsOfPeople(first[~same], second[~same])

    def rates(same: float, different: float) -> Rates:
        accepted = impostor_people.rate(impostor >= same)
        return Rates(
            false_accept_rate=accepted.rate,
            false_reject_rate=genuine_people.rate(genuine < same).rate,
            called_different=genuine_people.rate(genuine < different).rate,
            genuine=round(len(genuine) / repeats),
            impostor=round(len(impostor) / repeats),
            people=max(genuine_people.people, impostor_people.people),
            interval=Bounds(accepted.low, accepted.high),
            effective_impostor=accepted.effective,
        )

    return rates


def separate(clean: Tensor, masked: Tensor) -> Separation:
    """Find the limit between the covered shares of clean (N,) and masked faces (M,) with the fewest errors.

    It minimises the sum of both error rates and is halfway between two neighbouring shares. Of equally good limits, the
    one between the two shares that differ most is chosen. Raises ValueError if there are no two shares to separate.
    """
    values = torch.unique(torch.cat([clean, masked]).double())
    if min(len(clean), len(masked)) == 0 or len(values) < 2:
        faces = f"{len(clean)} clean and {len(masked)} masked faces"
        raise ValueError(f"{faces} with {len(values)} different shares: nothing to separate")
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


def thresholds_path(checkpoint: Path) -> Path:
    """Return the thresholds file of a checkpoint: `last.thresholds.json` beside `last.ckpt`."""
    return checkpoint.with_suffix(".thresholds.json")


def write_thresholds(checkpoint: Path, calibration: Calibration) -> None:
    """Write the thresholds file of a checkpoint, with the hash of the checkpoint."""
    write_json(thresholds_path(checkpoint), {_SHA256: checksum(checkpoint), THRESHOLDS: calibration.plain()})


def read_thresholds(checkpoint: Path) -> Calibration | None:
    """Return a checkpoint's thresholds; None if not tested or, with a warning, changed since; ValueError if damaged."""
    path = thresholds_path(checkpoint)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        expected, calibration = content[_SHA256], Calibration.from_plain(content[THRESHOLDS])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({describe_error(error)}): write it again with `deocc test`") from error
    if expected != checksum(checkpoint):
        warnings.warn(f"{path} is not used: {checkpoint.name} has changed since; run `deocc test` again", stacklevel=2)
        return None
    return calibration


def covered_share(mask: Tensor) -> Tensor:
    """Compute the share of the face that a mask covers.

    The face is an ellipse in the canonical crop, from cheek to cheek and from forehead to chin; hair and background do
    not count. Masks (B, 1, S, S) in [0, 1], 1 = covered, give shares (B,) in [0, 1].
    """
    eyes = TEMPLATES["canonical"].tensor(mask.shape[-1])[:2]
    unit, middle = eyes[1, 0] - eyes[0, 0], eyes.mean(0)
    axis = torch.arange(mask.shape[-1], dtype=torch.float32)
    u, v = (axis - middle[0]) / unit, (axis - middle[1]) / unit
    inside = (u[None] / _HALF_WIDTH) ** 2 + ((v[:, None] - _CENTRE_V) / _HALF_HEIGHT) ** 2 <= 1
    region = inside.to(mask)
    return (mask[:, 0] * region).sum((1, 2)) / region.sum()
