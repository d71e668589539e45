"""Stage 2's optimiser: AdamW, also for parameters of which a step sees some rows only.

[0] Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
[1] torch.optim.SparseAdam, "a masked version of the Adam algorithm": rows without a gradient keep their values and moments. It stands alone
    and has no weight decay; Lightning's automatic optimisation wants one optimiser for all parameters.
[2] github.com/deepinsight/insightface, `arcface_torch`: the authors of Partial FC first updated sampled rows alone, with their momentum
    (SGD) or moments (AdamW) carried along; in their later `partial_fc_v2.py` the optimiser moves all rows every step, by momentum and
    decay. OURS is the first, by [1].
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from deocc.losses import ShardedIdentityLoss
from deocc.networks.student import Student

_MOMENTUM = 0.9
_CLASSIFIER_RATE = 10.0  # the classifier is new, the rest of the student is pretrained


def student_optimizer(
    student: Student,
    trainable_blocks: int | None,
    classifier: nn.Module | None,
    rate: float,
    weight_decay: float,
    name: Literal["adamw", "sgd"] = "adamw",
) -> Optimizer:
    """Build the optimiser of the student's trainable part and of the classifier, the last group; the rest of the student is frozen.

    Args:
        student: what learns at `rate`.
        trainable_blocks: as in `Student.trainable`.
        classifier: learns ten times as fast and without decay, where there is one.
        rate: the peak.
        weight_decay: of the student.
        name: "adamw", or "sgd" with Nesterov momentum, which takes no classifier in shards.

    Raises:
        ValueError: SGD for a classifier whose gradients name rows.
    """
    trained = student.trainable(trainable_blocks)
    chosen = {id(parameter) for parameter in trained}
    for parameter in student.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    groups: list[dict[str, Any]] = [{"params": trained, "lr": rate, "weight_decay": weight_decay}]
    if classifier is not None:
        groups.append({"params": list(classifier.parameters()), "lr": _CLASSIFIER_RATE * rate, "weight_decay": 0.0})
    if name == "adamw":
        return RowAdamW(groups)
    if isinstance(classifier, ShardedIdentityLoss):
        raise ValueError("optimizer sgd cannot train an identity_head in shards: choose adamw, or identity_head full")
    return SGD(groups, momentum=_MOMENTUM, nesterov=True)


class RowAdamW(AdamW):
    """AdamW; where a gradient is sparse, only its rows, their moments and their decay move. Equal to AdamW where it names all rows."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what the closure does."""
        outcome = None
        if closure is not None:
            with torch.enable_grad():
                outcome = closure()
        sparse = [
            (group, p)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and p.grad.is_sparse
        ]
        gradients = [p.grad for _, p in sparse]
        for (group, parameter), gradient in zip(sparse, gradients, strict=True):
            self._step_rows(group, parameter, gradient.coalesce())
            parameter.grad = None  # AdamW refuses sparse gradients
        super().step()
        for (_, parameter), gradient in zip(sparse, gradients, strict=True):
            parameter.grad = gradient
        return outcome

    def _step_rows(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        """[0] for the rows of a coalesced sparse gradient; bias is corrected by the number of steps of the whole parameter, as in [1]."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        rows, slope, step = gradient.indices()[0], gradient.values(), float(state["step"])
        first, second = group["betas"]
        mean = state["exp_avg"][rows].lerp(slope, 1 - first)
        square = state["exp_avg_sq"][rows].mul(second).addcmul(slope, slope, value=1 - second)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        size = (square / (1 - second**step)).sqrt() + group["eps"]
        rate = float(group["lr"])
        parameter[rows] = parameter[rows] * (1 - rate * group["weight_decay"]) - rate / (1 - first**step) * mean / size
