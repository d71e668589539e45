"""An epoch's order of images, the same however many processes and workers share it."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import TypeVar

import torch
import torch.distributed
from torch.utils.data import Sampler

ItemKey = tuple[int, int]
"""The epoch and the position of an item: all that an item's randomness may depend on besides the seed."""


def item_seed(*parts: int | str) -> int:
    """A 63-bit seed from any integers and words, spread evenly and stable across machines and Python versions."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


T_co = TypeVar("T_co", covariant=True)


class StartingSampler(Sampler[T_co]):
    """A sampler that can begin in the middle.

    Attributes:
        first: how many of its items an iteration leaves out at its start. The length stays that of all.
    """

    first = 0


class EpochSampler(StartingSampler[ItemKey]):
    """Shuffles by seed and epoch and gives each process its share.

    The epoch travels with the position, so that workers that outlive an epoch know which one they serve. Lightning calls `set_epoch`;
    its own distributed sampler must stay off (`trainer.use_distributed_sampler: false`, which the shipped configurations set).
    """

    def __init__(self, length: int, seed: int, shuffle: bool = True) -> None:
        self.length, self.seed, self.shuffle, self.epoch = length, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """This process's number of items: equal in all processes, the order being padded from its start where it does not divide."""
        return -(-self.length // _processes()[1])

    def __iter__(self) -> Iterator[ItemKey]:
        """This process's items of the epoch, made one by one: of millions, no list of Python objects is ever held."""
        epoch, (rank, processes) = self.epoch, _processes()
        places = torch.arange(rank, len(self) * processes, processes) % self.length
        if self.shuffle:
            generator = torch.Generator().manual_seed(item_seed(self.seed, "order", epoch))
            places = torch.randperm(self.length, generator=generator)[places]
        return ((epoch, int(position)) for position in places[self.first :].numpy())


class ShareSampler(StartingSampler[int]):
    """All items in order; where they are shared out, every item once over all processes, so that shares may differ by one.

    A process that would have none repeats the first item, since metrics cannot gather from a process that saw nothing.
    """

    def __init__(self, length: int, shared: bool = True) -> None:
        self.length, self.shared = length, shared

    def __len__(self) -> int:
        """The share's number of items."""
        return len(self._share())

    def __iter__(self) -> Iterator[int]:
        """The share's items, ascending."""
        return iter(self._share()[self.first :])

    def _share(self) -> range:
        rank, processes = _processes() if self.shared else (0, 1)
        return range(rank, self.length, processes) or range(min(1, self.length))


def _processes() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
