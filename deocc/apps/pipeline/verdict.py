"""What is said of two faces: same, different, or not sure, and why."""

from dataclasses import dataclass
from typing import Literal

from deocc.evaluation.calibration import CONDITIONS, Calibration, Threshold

Decision = Literal["same", "different", "not sure"]


@dataclass(frozen=True)
class Verdict:
    """The decision on two faces, and all that it rests on."""

    decision: Decision
    similarity: float
    """Cosine of the embeddings, in [-1, 1]."""
    condition: str
    """One of `deocc.evaluation.calibration.CONDITIONS`."""
    same_from: float
    """The similarity from which a pair of this condition is "same"."""
    different_below: float
    """The similarity below which it is "different"."""
    false_accept_rate: float
    """The share of pairs of two people that `same_from` was calibrated to accept, on validation people."""
    tested_false_accept_rate: float | None
    """The share that it accepted of the test people's pairs; None where that was not tried."""
    masked_a: bool
    masked_b: bool
    visible_a: float
    """Share of the face that is in view, by the predicted mask."""
    visible_b: float
    reason: str
    """One line."""


def decide(calibration: Calibration, similarity: float, covered: tuple[float, float], false_accept_rate: float | None = None) -> Verdict:
    """The verdict on two faces.

    Args:
        calibration: of the model.
        similarity: of the embeddings, in [-1, 1].
        covered: the covered share of each face, in [0, 1].
        false_accept_rate: the target; None = the usual one (`Calibration.threshold`).

    Raises:
        ValueError: that target was not calibrated for the faces' condition.
    """
    masked_a, masked_b = (share >= calibration.masked.limit for share in covered)
    condition = CONDITIONS[masked_a + masked_b]
    threshold = calibration.threshold(condition, false_accept_rate)
    visible_a, visible_b = (1 - share for share in covered)
    decision, reason = _decision(threshold, similarity, min(visible_a, visible_b), calibration.least_visible)
    tested = threshold.test.false_accept_rate if threshold.test is not None else None
    return Verdict(
        decision=decision,
        similarity=similarity,
        condition=condition,
        same_from=threshold.same,
        different_below=threshold.different,
        false_accept_rate=threshold.target,
        tested_false_accept_rate=tested,
        masked_a=masked_a,
        masked_b=masked_b,
        visible_a=visible_a,
        visible_b=visible_b,
        reason=f"{reason} ({condition})",
    )


def _decision(threshold: Threshold, similarity: float, visible: float, least_visible: float) -> tuple[Decision, str]:
    if visible < least_visible:
        return "not sure", f"only {visible:.0%} of a face is visible, {least_visible:.0%} are needed"
    said = f"similarity {similarity:.3f}"
    if similarity >= threshold.same:
        tried = "" if threshold.test is None else f", which accepted {threshold.test.false_accept_rate:.2g} of test people's pairs"
        return "same", f"{said} is not below {threshold.same:.3f}, calibrated for a false-accept rate of {threshold.target:g}{tried}"
    if similarity < threshold.different:
        reach = f"{1 - threshold.validation.called_different:.0%} of pairs of one person reach"
        return "different", f"{said} is below {threshold.different:.3f}, which {reach}"
    return "not sure", f"{said} lies between {threshold.different:.3f} and {threshold.same:.3f}"
