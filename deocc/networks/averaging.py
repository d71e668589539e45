"""A running average of a network's weights, optionally drawn back towards where they started."""

import copy
from typing import Self

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """A frozen copy whose weights follow w <- decay w + (1 - decay) (start + interpolation (current - start)).

    With interpolation 1 this is the exponential moving average. Below 1 the average stays between the pretrained start and the trained
    weights, which keeps more of what the start knew about people that the training set lacks [0]. Buffers, such as the running statistics
    of batch normalisation, are averages themselves and do not follow but equal start + interpolation (current - start).

    [0] Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022: interpolating the weights of start and end.
    """

    steps: Tensor

    def __init__(self, network: nn.Module, decay: float, interpolation: float = 1.0) -> None:
        """Copy `network`, whose present weights are the start.

        Raises:
            ValueError: decay is outside [0, 1), or interpolation outside (0, 1].
        """
        super().__init__()
        if not 0 <= decay < 1 or not 0 < interpolation <= 1:
            raise ValueError(f"expected decay in [0, 1) and interpolation in (0, 1], got {decay} and {interpolation}")
        self.decay, self.interpolation = decay, interpolation
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.start = copy.deepcopy(self.network) if interpolation < 1 else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Follow `network`; early steps weigh more, so that the start does not linger: decay = min(decay, steps / (steps + 9))."""
        self.steps.add_(1)
        decay = min(self.decay, float(self.steps) / (float(self.steps) + 9))
        starts = self.start.parameters() if self.start is not None else self.network.parameters()
        for average, current, start in zip(self.network.parameters(), network.parameters(), starts, strict=True):
            target = current if self.start is None else torch.lerp(start, current, self.interpolation)
            average.lerp_(target, 1 - decay)
        self._copy_buffers(network)

    def _copy_buffers(self, network: nn.Module) -> None:
        starts = self.start.buffers() if self.start is not None else self.network.buffers()
        for average, current, start in zip(self.network.buffers(), network.buffers(), starts, strict=True):
            between = (
                self.start is not None and average.is_floating_point()
            )  # counters have no value between two others
            average.copy_(torch.lerp(start, current, self.interpolation) if between else current)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        return super().train(False)
