"""One optimiser's step under manual optimisation, from the gradients of several parts, in any precision and strategy."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from deocc.batch import MaskedFaceBatch
from deocc.modules.evaluation import SteppingModule


def warmup_cosine(optimizer: Optimizer, steps: int, warmup: float = 0.05) -> LambdaLR:
    """A scheduler to be stepped once a training step.

    Args:
        optimizer: its groups' rates are the peak.
        steps: training steps in all.
        warmup: share of the steps spent on the way up.
    """
    rising = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))

    return LambdaLR(optimizer, factor)


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


def check_stage(checkpoint: dict[str, Any], wanted: str) -> None:
    """Raise ValueError unless `checkpoint` was saved by the module of the stage `wanted`."""
    stage = checkpoint.get("stage", "unknown")
    if stage != wanted:
        raise ValueError(
            f"this is a checkpoint of the stage {stage!r}, but one of the stage {wanted!r} is needed: give another run or file"
        )


def leave_out(checkpoint: dict[str, Any], name: str) -> None:
    """Drop the state of the submodule `name`: its weights belong to somebody else and are loaded anew from where they came from."""
    checkpoint["state_dict"] = {
        key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(f"{name}.")
    }


def put_back(checkpoint: dict[str, Any], name: str, module: nn.Module | None) -> None:
    """Undo `leave_out` from the module's present state, so that the rest can be loaded strictly."""
    if module is not None:
        checkpoint["state_dict"].update({f"{name}.{key}": value for key, value in module.state_dict().items()})


class Part(NamedTuple):
    """Some images of a batch, and by what their own means count; the shares are scalars, 1 where the part is everything."""

    batch: MaskedFaceBatch
    images: Tensor
    """Of a mean over images."""
    covered: Tensor
    """Of a mean over images that have covered pixels."""
    visible: Tensor
    """Of a mean over images that have visible pixels."""


def take_apart(batch: MaskedFaceBatch, number: int, mean_over_processes: Callable[[Tensor], Tensor]) -> list[Part]:
    """As many parts as asked for, of equal size but for the last; fewer where a short batch does not fill them.

    Args:
        batch: of which every key holds one row an image.
        number: of parts.
        mean_over_processes: a tensor's mean over all processes, which all of them call once a batch.
    """
    pieces = {key: cast(Tensor, value).chunk(number) for key, value in batch.items()}
    parts = [
        cast(MaskedFaceBatch, dict(zip(pieces, values, strict=True))) for values in zip(*pieces.values(), strict=True)
    ]
    counts = torch.stack([_counts(part["mask"]) for part in parts])
    shares = counts / mean_over_processes(counts.sum(0)).clamp_min(torch.finfo(counts.dtype).tiny)
    return [Part(part, *row) for part, row in zip(parts, shares, strict=True)]


def _counts(mask: Tensor) -> Tensor:
    """(3,): images, images that have covered pixels, images that have visible ones."""
    covered, visible = ((weight.flatten(1) > 0).any(1).sum() for weight in (mask, 1 - mask))
    return torch.stack([covered.new_tensor(len(mask)), covered, visible]).float()


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
