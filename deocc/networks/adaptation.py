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
    convolutions = ((name, module) for name, module in embedder.network.named_modules() if isinstance(module, nn.Conv2d))
    name, stem = next(((name, module) for name, module in convolutions if module.in_channels == 3), ("", None))
    if stem is None or stem.groups != 1:
        raise ValueError(f"{embedder.name} has no convolution of three channels to widen: choose another student")
    zeros = stem.weight.new_zeros(stem.out_channels, extra_channels, *stem.kernel_size)
    stem.weight = nn.Parameter(torch.cat([stem.weight.detach(), zeros], 1), requires_grad=stem.weight.requires_grad)
    stem.in_channels += extra_channels
    embedder.extra_channels, embedder.widened_layer = extra_channels, name
    return embedder


def widened_weights(embedder: Embedder) -> list[nn.Parameter]:
    """The weight of the convolution that `widen_stem` changed; empty where it changed none."""
    if embedder.widened_layer is None:
        return []
    return [embedder.network.get_parameter(f"{embedder.widened_layer}.weight".removeprefix("."))]


class Projection(nn.Module):
    """A linear map without bias between embeddings of different dimension; the identity where they are equal."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        """Random weights; raises ValueError where a dimension is < 1."""
        super().__init__()
        if min(in_dim, out_dim) < 1:
            raise ValueError(f"embedding dimensions must be positive, got {in_dim} and {out_dim}")
        self.map = nn.Identity() if in_dim == out_dim else nn.Linear(in_dim, out_dim, bias=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim), outside autocast, which would round the embeddings (see `Embedder`)."""
        if isinstance(self.map, nn.Identity):
            return embedding
        with torch.autocast(embedding.device.type, enabled=False):
            projected: Tensor = self.map(embedding.to(self.map.weight.dtype))
        return projected
