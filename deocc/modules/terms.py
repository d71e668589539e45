"""A loss as the weighted sum of named terms."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def check_weights(settings: Mapping[str, Any], terms: tuple[str, ...]) -> None:
    """Raise ValueError unless the weights `TERM_weight` of `settings` are at least 0, and one of them is more."""
    weights = {f"{term}_weight": settings[f"{term}_weight"] for term in terms}
    if not all(weight >= 0 for weight in weights.values()) or not any(weights.values()):
        given = ", ".join(f"{name} {weight}" for name, weight in weights.items())
        raise ValueError(f"the weights of the losses must be at least 0 and not all 0, got {given}")


def weighted_terms(settings: Mapping[str, Any], losses: Mapping[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
    """By name, every loss times its weight `TERM_weight` of `settings`; where that is 0, the loss is not computed."""
    weights = {name: settings[f"{name}_weight"] for name in losses}
    return {name: weights[name] * loss() for name, loss in losses.items() if weights[name] > 0}
