"""The learning rate over a training: a linear warm-up, then half a cosine down to zero."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


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
