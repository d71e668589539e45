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
from collections.abc import Mapping
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

CONDITIONS = ("clean-clean", "clean-masked", "masked-masked")
"""Conditions of a pair, by the number of masked faces."""

USUAL_FALSE_ACCEPT_RATE = 1e-2
"""The default target."""

FALSE_REJECTS = 0.05
"""Largest share of genuine pairs that is called "different"."""

PAIRS_NEEDED = 5
"""Number of pairs that a target rate must amount to.

With few people the rate on others may still be several times as high, since pairs that share a person are not
independent; the interval in `Rates` takes this into account.
"""

THRESHOLDS: Final = "thresholds"
"""The key of `Calibration.plain` in a thresholds file, in `results.json` and in a model folder's `config.json`."""

_SHA256: Final = "checkpoint_sha256"
_LEAST_SEEN: Final = 0.01  # share of the masked faces that are less visible than `least_visible`
# Ellipse of the face in distances between the eyes, v downwards from the eyes: cheeks at 1.05, chin at 1.85
_CENTRE_V, _HALF_WIDTH, _HALF_HEIGHT = 0.45, 1.05, 1.4


@dataclass(frozen=True)
class Rates:
    """Error rates of a pair of thresholds on a set of pairs."""

    false_accept_rate: float
    """Share of impostor pairs called "same", averaged over pairs of people."""
    false_reject_rate: float
    """Share of genuine pairs not called "same", averaged over people."""
    called_different: float
    """Share of genuine pairs called "different", averaged over people."""
    genuine: int
    """Number of genuine pairs of images; the same two images with several masks count once."""
    impostor: int
    """Number of impostor pairs of images, counted in the same way."""
    people: int
    interval: Bounds | None = None
    """95 % Wilson interval of `false_accept_rate`, see `PairsOfPeople.rate`; None in files of earlier versions."""
    effective_impostor: float | None = None
    """Effective number of impostor pairs of `interval`."""


@dataclass(frozen=True)
class Threshold:
    """Thresholds for one condition and one target."""

    target: float
    """The target false-accept rate."""
    same: float
    """A pair of at least this similarity is "same"."""
    different: float
    """A pair of a lower similarity than this is "different"; at most `same`."""
    validation: Rates
    """Rates on the validation people, on which the thresholds were chosen."""
    test: Rates | None = None
    """Rates on the test people; None if not measured."""


class Separation(NamedTuple):
    """A limit of the covered share that separates masked from clean faces, and its error rates."""

    limit: float
    clean_called_masked: float
    masked_called_clean: float


@dataclass(frozen=True)
class Calibration:
    """What a decision on two faces needs besides their embeddings.

    Attributes:
        thresholds: by condition, in order of falling target; empty if the pairs support none.
        masked: covered share at or above which a face counts as masked.
        least_visible: visible share below which no decision is made.
        size: side in pixels of the crops that were calibrated on.
        data: name of their face set.
        data_hash: fingerprint of the validation people.
    """

    thresholds: dict[str, tuple[Threshold, ...]]
    masked: Separation
    least_visible: float
    size: int
    data: str
    data_hash: str

    def threshold(self, condition: str, target: float | None = None) -> Threshold:
        """Return the thresholds of a condition for a target false-accept rate.

        Args:
            condition: one of `CONDITIONS`.
            target: None for `USUAL_FALSE_ACCEPT_RATE`, or the strictest calibrated target above it.

        Raises:
            ValueError: the target was not calibrated.
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
        """Return the calibration as JSON values."""
        thresholds = {condition: [asdict(threshold) for threshold in row] for condition, row in self.thresholds.items()}
        return {**asdict(self), "thresholds": thresholds, "masked": self.masked._asdict()}

    @classmethod
    def from_plain(cls, value: Any) -> Self:
        """Create a calibration from the result of `plain`.

        Raises:
            ValueError: `value` is not a calibration.
        """
        try:
            rows = {
                condition: tuple(_threshold(entry) for entry in value["thresholds"][condition])
                for condition in CONDITIONS
            }
            return cls(**{**value, "thresholds": rows, "masked": Separation(**value["masked"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the thresholds cannot be read ({error}): write them again with `deocc test`") from error


def _threshold(entry: Mapping[str, Any]) -> Threshold:
    return Threshold(
        **{**entry, "validation": _rates(entry["validation"]), "test": entry["test"] and _rates(entry["test"])}
    )


def _rates(entry: Mapping[str, Any]) -> Rates:
    interval = entry.get("interval")
    return Rates(**{**entry, "interval": interval and Bounds(*interval)})


class CountedPairs(NamedTuple):
    """Pairs of faces, and the mean number of pairs that show the same two images with different masks."""

    pairs: PairScores
    repeats: float


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


def thresholds_path(checkpoint: Path) -> Path:
    """Return the thresholds file of a checkpoint: `last.thresholds.json` beside `last.ckpt`."""
    return checkpoint.with_suffix(".thresholds.json")


def write_thresholds(checkpoint: Path, calibration: Calibration) -> None:
    """Write the thresholds file of a checkpoint, with the hash of the checkpoint.

    Raises:
        OSError: it cannot be written.
    """
    write_json(thresholds_path(checkpoint), {_SHA256: checksum(checkpoint), THRESHOLDS: calibration.plain()})


def read_thresholds(checkpoint: Path) -> Calibration | None:
    """Return the thresholds of a checkpoint; None if it was not tested or, with a warning, has changed since.

    Raises:
        ValueError: the file is damaged.
    """
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
    not count.

    Args:
        mask: (B, 1, S, S) in [0, 1], 1 = covered.

    Returns:
        (B,) in [0, 1].
    """
    eyes = TEMPLATES["canonical"].tensor(mask.shape[-1])[:2]
    unit, middle = eyes[1, 0] - eyes[0, 0], eyes.mean(0)
    axis = torch.arange(mask.shape[-1], dtype=torch.float32)
    u, v = (axis - middle[0]) / unit, (axis - middle[1]) / unit
    inside = (u[None] / _HALF_WIDTH) ** 2 + ((v[:, None] - _CENTRE_V) / _HALF_HEIGHT) ** 2 <= 1
    region = inside.to(mask)
    return (mask[:, 0] * region).sum((1, 2)) / region.sum()
