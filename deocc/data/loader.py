"""Data loading: seeded samplers, and a loader that resumes within an epoch and leaves out unreadable images."""

import signal
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deocc.data.quarantine import Quarantine
from deocc.processes import rank_and_world_size

ItemKey = tuple[int, int]
"""Epoch and position of an item. Besides the seed, an item's randomness depends on these only."""

T = TypeVar("T")


def item_seed(*parts: int | str) -> int:
    """Return a 63-bit seed from integers and words, equal on every machine and Python version."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class EpochSampler(Sampler[ItemKey]):
    """Shuffle by seed and epoch and split the order between the processes.

    Each item carries its epoch, because persistent workers do not notice `set_epoch`, which Lightning calls.
    Lightning's own distributed sampler must be off (`trainer.use_distributed_sampler: false`).

    Args:
        length: number of items in the data set.
        seed: of the order.
        shuffle: False keeps the order of the data set.
    """

    def __init__(self, length: int, seed: int, shuffle: bool = True) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.epoch, self._skipped = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration."""
        self.epoch = epoch

    def skip(self, items: int) -> None:
        """Leave out the first items of the next iteration."""
        self._skipped = items

    def __len__(self) -> int:
        """Return the items per process: equal on all ranks, since the order is padded from its beginning."""
        return -(-self.length // rank_and_world_size()[1])

    def __iter__(self) -> Iterator[ItemKey]:
        """Yield this process's keys, without creating a list of millions of Python objects."""
        epoch, (rank, world_size) = self.epoch, rank_and_world_size()
        first, self._skipped = self._skipped, 0
        positions = torch.arange(rank, len(self) * world_size, world_size) % self.length
        if self.shuffle:
            generator = torch.Generator().manual_seed(item_seed(self.seed, "order", epoch))
            positions = torch.randperm(self.length, generator=generator)[positions]
        return ((epoch, int(position)) for position in positions[first:].numpy())


class ShareSampler(Sampler[int]):
    """All items in ascending order, split between the processes without repetition.

    Shares may differ by one item. A process without items gets the first one again, because metrics cannot be gathered
    from a process that has seen nothing.

    Args:
        length: number of items in the data set.
        shared: False gives all items to every process.
    """

    def __init__(self, length: int, shared: bool = True) -> None:
        self.length, self.shared = length, shared

    def __len__(self) -> int:
        """Return the number of items of this process."""
        return len(self._share())

    def __iter__(self) -> Iterator[int]:
        """Yield the items of this process."""
        return iter(self._share())

    def _share(self) -> range:
        rank, world_size = rank_and_world_size() if self.shared else (0, 1)
        return range(rank, self.length, world_size) or range(min(1, self.length))


class FaceLoader(DataLoader[T]):
    """A DataLoader of `deocc.data.dataset.FaceItem` that resumes within an epoch and leaves out unreadable images.

    Lightning stores `state_dict` in each checkpoint and restores it before the first batch. With an `EpochSampler`, the
    loader then continues after the last batch of that epoch, without reading the images before it. Unreadable images
    are recorded in the quarantine and removed from the batch; an empty batch is not returned. No global random numbers
    are drawn.

    Args:
        dataset: the items.
        quarantine: records unreadable images in the main process. It raises ValueError if there are too many.
        settings: of `DataLoader`, except `worker_init_fn` and `generator`.
    """

    def __init__(self, dataset: Dataset[T], quarantine: Quarantine, **settings: Any) -> None:
        super().__init__(dataset, worker_init_fn=ignore_stop_signals, generator=torch.Generator(), **settings)
        self.quarantine = quarantine
        self._batches_done = 0
        self._resumed: dict[str, int] = {}

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches that are left of the epoch.

        This is a generator, so that no worker starts before the first batch is requested: Lightning calls `iter` before
        `set_epoch`.
        """
        self._batches_done = self._first_batch()
        for batch in super().__iter__():
            self._batches_done += 1
            readable = self._without_unreadable(batch)
            if readable is not None:
                yield readable

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that have been loaded."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "batches": self._batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after these batches, if the next iteration is of the same epoch."""
        self._resumed = dict(state)

    def _first_batch(self) -> int:
        resumed, self._resumed = self._resumed, {}
        if not isinstance(self.sampler, EpochSampler) or resumed.get("epoch") != self.sampler.epoch:
            return 0
        self.sampler.skip(resumed["batches"] * (self.batch_size or 1))
        return resumed["batches"]

    def _without_unreadable(self, batch: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Record the unreadable images of a batch and return the other items; None if there are none."""
        unreadable = batch.pop("unreadable")
        found = unreadable[unreadable >= 0]
        if len(found) == 0:
            return batch
        self.quarantine.add(found.tolist())
        readable = (unreadable != batch["index"][:, None]).all(1)
        return {key: value[readable] for key, value in batch.items()} if bool(readable.any()) else None


def ignore_stop_signals(_worker: int) -> None:
    """Ignore, in a loader worker, the signals that a terminal or cluster sends to all processes of a job.

    The main process stops its workers. Workers would otherwise run the signal handlers that they inherit from it.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
