"""Embeddings of a split's images, with what is needed to know which of them may be compared."""

from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

_FIELDS = ("embedding", "identity", "index", "kind", "seed", "coverage")
_UNIT_TOLERANCE = 1e-2  # a norm computed in bfloat16 is off by up to 2^-8


@dataclass(eq=False)
class EmbeddingSet:
    """N embeddings and the images they come from. A gallery holds clean faces (kind -1), a probe set masked renderings of the same images.

    Raises:
        ValueError: the lengths differ, or an embedding is not a finite unit vector.
    """

    embedding: Tensor
    """(N, D) unit vectors, so that the similarity of two faces is their dot product."""
    identity: Tensor
    """(N,) int64, the person."""
    index: Tensor
    """(N,) int64, the image's position in its face set."""
    kind: Tensor
    """(N,) int64, the occluder's position in the list of kinds; -1 where none lies on the face."""
    seed: Tensor
    """(N,) int64, from which the image's mask follows."""
    coverage: Tensor = None  # type: ignore[assignment]  # __post_init__ puts a tensor there
    """(N,) float32 in [0, 1], the share of the crop that the mask covers; NaN where it is unknown, by default everywhere."""

    def __post_init__(self) -> None:
        """Fill in an unknown coverage and check the contract."""
        if self.coverage is None:
            self.coverage = _unknown(self.embedding)
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        if self.embedding.ndim != 2 or any(shapes[name] != shapes["embedding"][:1] for name in _FIELDS[1:]):
            raise ValueError(f"expected embeddings (N, D) and {', '.join(_FIELDS[1:])} of shape (N,), got {shapes}")
        wrong = ~((self.embedding.float().norm(dim=1) - 1).abs() <= _UNIT_TOLERANCE)  # a NaN is wrong too
        if bool(wrong.any()):
            raise ValueError(
                f"{int(wrong.sum())} of {len(self)} embeddings are not finite unit vectors: divide each by its norm"
            )

    def __len__(self) -> int:
        """N."""
        return len(self.identity)

    def take(self, which: Tensor) -> "EmbeddingSet":
        """The members at `which`, (N,) bool or positions of any number."""
        return EmbeddingSet(**{name: getattr(self, name)[which] for name in _FIELDS})

    def select(self, kind: int) -> "EmbeddingSet":
        """The members whose face carries this kind of occluder."""
        return self.take(self.kind == kind)

    def deduplicated(self) -> "EmbeddingSet":
        """One member for each (index, kind, seed), sorted by these: the first where several stand."""
        _, group = torch.unique(self._key(), dim=0, return_inverse=True)
        first = torch.full((int(group.max()) + 1,), len(self), device=group.device)
        return self.take(first.scatter_reduce(0, group, torch.arange(len(self), device=group.device), "amin"))

    def groups(self) -> Tensor:
        """(N, 2) the group of masks that each member belongs to, as (image, kind), or as (image, -1) under mixed kinds.

        If every image carries every kind equally often, masks of equal kind can be compared, and a group has one kind. Otherwise each image
        carries kinds of its own, and a group has all masks of an image.
        """
        pairs, counts = torch.unique(torch.stack([self.index, self.kind], 1), dim=0, return_counts=True)
        balanced = len(pairs) == len(pairs[:, 0].unique()) * len(pairs[:, 1].unique()) and len(counts.unique()) <= 1
        return torch.stack([self.index, self.kind if balanced else torch.full_like(self.kind, -1)], 1)

    def draw(self) -> Tensor:
        """(N,) int64, the position of each mask in its group (`groups`), counted from 0 by ascending seed."""
        key, position = torch.unique(
            torch.cat([self.groups(), self.seed[:, None], self.kind[:, None]], 1), dim=0, return_inverse=True
        )
        _, count = torch.unique_consecutive(key[:, :2], dim=0, return_counts=True)
        start = torch.repeat_interleave(count.cumsum(0) - count, count)
        return (torch.arange(len(key), device=key.device) - start)[position]

    def _key(self) -> Tensor:
        return torch.stack([self.index, self.kind, self.seed], 1)


class EmbeddingBank(Metric):
    """Collects the embeddings of all batches and processes.

    A distributed sampler repeats images to give every process the same number; each (index, kind, seed) is kept once.

    >>> import torch
    >>> bank = EmbeddingBank()
    >>> ids = torch.tensor([0, 1, 1])
    >>> bank.update(torch.eye(3)[[0, 1, 1]], identity=ids, index=ids, kind=ids, seed=ids)
    >>> len(bank.compute())
    2
    """

    full_state_update = False
    embedding: list[Tensor]
    identity: list[Tensor]
    index: list[Tensor]
    kind: list[Tensor]
    seed: list[Tensor]
    coverage: list[Tensor]

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
        coverage = _unknown(embedding) if coverage is None else coverage.float()
        for name, value in zip(_FIELDS, (embedding.float(), identity, index, kind, seed, coverage), strict=True):
            getattr(self, name).append(value.detach())

    def compute(self) -> EmbeddingSet:
        """Everything seen, on the CPU, sorted by index, kind and seed.

        Raises:
            ValueError: fewer than two faces were seen, so that nothing can be compared.
        """
        if (
            len(self.embedding) == 0 or len(members := self._members()) < 2
        ):  # a list, or one tensor once processes were merged
            raise ValueError("fewer than two faces were embedded: evaluate on at least two images")
        return members

    def _members(self) -> EmbeddingSet:
        states = {name: dim_zero_cat(cast(list[Tensor], getattr(self, name))).cpu() for name in _FIELDS}
        return EmbeddingSet(**states).deduplicated()


def _unknown(embedding: Tensor) -> Tensor:
    """(N,) NaN: coverages that nobody gave."""
    return torch.full((len(embedding),), torch.nan, device=embedding.device)
