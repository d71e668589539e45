"""Fitting an embedder to a task: further input channels, and another embedding dimension."""

import torch
from torch import Tensor, nn

from deocc.networks.embedder import Embedder


def widen_stem(embedder: Embedder, extra_channels: int) -> Embedder:
    """Let the first convolution take further channels after red, green and blue, such as a mask; in place.

    The new weights are zero: before training, the embedding does not depend on the new channels. Returns the embedder.

    Raises:
        ValueError: extra_channels < 1, the embedder was widened already, or it has no plain convolution of three channels.
    """
    if extra_channels < 1 or embedder.extra_channels:
        raise ValueError(
            f"{embedder.name} can be widened once, by at least 1 channel: it has {embedder.extra_channels}, got {extra_channels}"
        )
    stems = [module for module in embedder.network.modules() if isinstance(module, nn.Conv2d) and module.in_channels == 3]
    if not stems or stems[0].groups != 1:
        raise ValueError(f"{embedder.name} has no convolution of three channels to widen: choose another student")
    stem = stems[0]
    zeros = stem.weight.new_zeros(stem.out_channels, extra_channels, *stem.kernel_size)
    stem.weight = nn.Parameter(torch.cat([stem.weight.detach(), zeros], 1), requires_grad=stem.weight.requires_grad)
    stem.in_channels += extra_channels
    embedder.extra_channels = extra_channels
    return embedder


class Projection(nn.Module):
    """A linear map without bias between embeddings of different dimension; the identity where they are equal."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        """Random weights; raises ValueError where a dimension is < 1."""
        super().__init__()
        if min(in_dim, out_dim) < 1:
            raise ValueError(f"embedding dimensions must be positive, got {in_dim} and {out_dim}")
        self.map = nn.Identity() if in_dim == out_dim else nn.Linear(in_dim, out_dim, bias=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim)."""
        projected: Tensor = self.map(embedding)
        return projected
