"""One optimiser's step under manual optimisation, from the gradients of several parts, in any precision and strategy."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor

from deocc.modules.parts import Part
from deocc.modules.stepping import SteppingModule

Terms = dict[str, Tensor]


def descend(
    module: SteppingModule, optimizer: LightningOptimizer, parts: Sequence[Part], terms: Callable[[Part], Terms]
) -> tuple[Terms, bool]:
    """Step down the sum of all parts' terms; meanwhile only this optimiser's networks collect gradients.

    Args:
        module: in training, under manual optimisation; its `terms` are the returned ones before the optimiser moves.
        optimizer: whose parameters are moved.
        parts: of a batch, in the order in which they are taken; processes exchange gradients with the last one only.
        terms: scalars of a part that are to be minimised, by name.

    Returns:
        The terms, summed over parts, and whether the optimiser moved: a GradScaler leaves out a step whose gradients are not finite.
    """
    optimizer.zero_grad()
    seen: list[Terms] = []
    for number, part in enumerate(parts, start=1):
        with optimizer.toggle_model(sync_grad=number == len(parts)):
            found = terms(part)
            module.manual_backward(torch.stack(list(found.values())).sum())
        seen.append({name: value.detach() for name, value in found.items()})
    module.terms = {name: torch.stack([found[name] for found in seen]).sum() for name in seen[0]}
    return module.terms, _step(optimizer, getattr(module.trainer.precision_plugin, "scaler", None))


def _step(optimizer: LightningOptimizer, scaler: Any) -> bool:
    """Whether a step was taken. A GradScaler does not say so, but lowers its scale where it leaves one out."""
    if scaler is None:
        optimizer.step()
        return True
    before: float = scaler.get_scale()
    optimizer.step()
    lowered: bool = scaler.get_scale() < before
    return not lowered
