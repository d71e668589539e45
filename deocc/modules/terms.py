"""A loss as the weighted sum of named terms."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
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


def gradient_norms(terms: Mapping[str, Tensor], embedding: Tensor, processes: int = 1) -> dict[str, Tensor]:
    """How hard each term pulls at the embeddings: the mean over the batch of the norm of its gradient.

    Args:
        terms: scalars that `embedding`, (B, D), leads to; their graph stays for the backward pass.
        embedding: of this process.
        processes: whose gradients' mean a step takes, so that each image pulls by one part of so many of what this process finds.
    """
    gradients = {name: torch.autograd.grad(term, embedding, retain_graph=True)[0] for name, term in terms.items()}
    return {name: gradient.float().norm(dim=1).mean() / processes for name, gradient in gradients.items()}
