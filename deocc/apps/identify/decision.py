"""From the most similar person of a gallery to a name, "unknown", or "not sure".

The thresholds of a model hold for one comparison. Somebody who is not in a gallery is compared with all N of its faces, and is taken for
one of them with a probability of at most N times the rate of one comparison: the union bound, which needs no independence. That rate is the
larger of the one calibrated for and the one found on test people. All of this is OURS.
"""

from dataclasses import dataclass
from typing import Final, Literal

from deocc.evaluation.calibration import CONDITIONS, Calibration, Threshold

WANTED: Final = 0.01
"""The share of unknown faces that may be taken for somebody of the gallery, unless another is asked for."""

_SLACK: Final = 1 + 1e-9  # for rates such as 10 * 0.001

Answer = Literal["known", "unknown", "not sure"]


@dataclass(frozen=True)
class Limit:
    """From which similarity on a face is somebody's of the gallery."""

    same_from: float
    """In [-1, 1]."""
    target: float
    """The false-accept rate of one comparison that it was calibrated for, on validation people."""
    rate: float
    """The same, or what test people's pairs showed where that is more."""
    gallery_rate: float
    """At most this share of unknown faces reaches it with any of the gallery's faces, if `rate` holds for them."""


def limit_for(calibration: Calibration, condition: str, faces: int, wanted: float = WANTED) -> Limit:
    """The lowest calibrated limit that keeps to `wanted` over the whole gallery; where none does, the strictest.

    Args:
        calibration: of the model.
        condition: one of `deocc.evaluation.calibration.CONDITIONS`.
        faces: how many the gallery has.
        wanted: the share of unknown faces that may be accepted.

    Raises:
        ValueError: no threshold was calibrated for this condition.
    """
    known = calibration.thresholds[condition]
    if not known:
        raise ValueError(f"no threshold for {condition}: too few validation people; test on more with `deocc test`")
    fitting = [threshold for threshold in known if _rate(threshold) * faces <= wanted * _SLACK]
    chosen = min(fitting, key=lambda each: each.same) if fitting else max(known, key=lambda each: each.same)
    return Limit(chosen.same, chosen.target, _rate(chosen), min(1.0, _rate(chosen) * faces))


def _rate(threshold: Threshold) -> float:
    """Of one comparison."""
    tried = threshold.test.false_accept_rate if threshold.test is not None else 0.0
    return max(threshold.target, tried)


def condition_of(calibration: Calibration, covered: tuple[float, float]) -> str:
    """The condition of two faces of which these shares, in [0, 1], are covered."""
    return CONDITIONS[sum(share >= calibration.masked.limit for share in covered)]


def answer(calibration: Calibration, limit: Limit, similarity: float, covered: float) -> Answer:
    """What is said of a face of which this share is covered, whose most similar face of the gallery has this similarity."""
    if 1 - covered < calibration.least_visible:
        return "not sure"
    return "known" if similarity >= limit.same_from else "unknown"
