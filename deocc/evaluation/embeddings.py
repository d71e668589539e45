"""Embeddings of a split's images, with the labels that determine which of them may be compared."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

BARE = -1  # `EmbeddingSet.kind` of a face without occluder
MIXED_KINDS = -1  # second column of `EmbeddingSet.groups` where a group holds masks of several kinds

_FIELDS = ("embedding", "identity", "index", "kind", "seed", "coverage")
_UNIT_TOLERANCE = 1e-2  # a norm computed in bfloat16 is off by up to 2^-8


@dataclass(eq=False)
class EmbeddingSet:
    """N embeddings. A gallery contains clean faces (kind -1), a probe set masked renderings of the same images.

    Raises ValueError if an embedding is not a finite unit vector.
    """

    embedding: Tensor  # (N, D) unit vectors; the similarity of two faces is their dot product
    identity: Tensor  # (N,) int64
    index: Tensor  # (N,) int64, position of the image in its face set
    kind: Tensor  # (N,) int64, position of the occluder in the list of kinds; `BARE` without one
    seed: Tensor  # (N,) int64, seed of the mask
    # (N,) float32 in [0, 1], share of the crop that the mask covers; NaN (default) where it is unknown
    coverage: Tensor = None  # type: ignore[assignment]  # replaced in __post_init__

    def __post_init__(self) -> None:
        if self.coverage is None:
            self.coverage = _unknown_coverage(self.embedding)
        unit = (self.embedding.float().norm(dim=1) - 1).abs() <= _UNIT_TOLERANCE  # False for NaN
        if other := int((~unit).sum()):
            raise ValueError(f"{other} of {len(self)} embeddings are not finite unit vectors: divide each by its norm")

    def __len__(self) -> int:
        return len(self.identity)

    def take(self, which: Tensor) -> "EmbeddingSet":
        """Return the members at `which`: (N,) bool, or positions."""
        return EmbeddingSet(**{name: getattr(self, name)[which] for name in _FIELDS})

    def groups(self) -> Tensor:
        """Return (N, 2), the group of masks of each member: (image, kind), or (image, `MIXED_KINDS`).

        If every image has every kind equally often, masks of equal kind are compared, and a group has one kind.
        Otherwise each image has its own kinds, and a group contains all masks of an image.
        """
        pairs, counts = torch.unique(torch.stack([self.index, self.kind], 1), dim=0, return_counts=True)
        balanced = len(pairs) == len(pairs[:, 0].unique()) * len(pairs[:, 1].unique()) and len(counts.unique()) <= 1
        return torch.stack([self.index, self.kind if balanced else torch.full_like(self.kind, MIXED_KINDS)], 1)

    def draw(self) -> Tensor:
        """Return (N,) int64, the index of the mask within its group (see `groups`), in order of seed."""
        columns = torch.cat([self.groups(), self.seed[:, None], self.kind[:, None]], 1)
        key, position = torch.unique(columns, dim=0, return_inverse=True)
        _, count = torch.unique_consecutive(key[:, :2], dim=0, return_counts=True)
        start = torch.repeat_interleave(count.cumsum(0) - count, count)
        return (torch.arange(len(key), device=key.device) - start)[position]


class EmbeddingBank(Metric):
    """Collects the embeddings of all batches and processes.

    Distributed samplers repeat images so that every process has the same number; each (index, kind, seed) is kept once.
    """

    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in _FIELDS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        embedding: Tensor,
        identity: Tensor,
        index: Tensor,
        kind: Tensor,
        seed: Tensor,
        coverage: Tensor | None = None,
    ) -> None:
        """Add a batch; shapes as in `EmbeddingSet`. A coverage of None is unknown."""
        coverage = _unknown_coverage(embedding) if coverage is None else coverage.float()
        for name, value in zip(_FIELDS, (embedding.float(), identity, index, kind, seed, coverage), strict=True):
            getattr(self, name).append(value.detach())

    def compute(self) -> EmbeddingSet:
        """Return all embeddings on the CPU, sorted by index, kind and seed; ValueError for fewer than two faces."""
        states = {name: dim_zero_cat(cast(list[Tensor], getattr(self, name))).cpu() for name in _FIELDS}
        members = EmbeddingSet(**states)
        key = torch.stack([members.index, members.kind, members.seed], 1)
        unique, group = torch.unique(key, dim=0, return_inverse=True)
        first = torch.full((len(unique),), len(key)).scatter_reduce(0, group, torch.arange(len(key)), "amin")
        if len(first) < 2:
            raise ValueError("fewer than two faces were embedded: evaluate on at least two images")
        return members.take(first)


def _unknown_coverage(embedding: Tensor) -> Tensor:
    return torch.full((len(embedding),), torch.nan, device=embedding.device)
