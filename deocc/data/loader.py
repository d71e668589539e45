"""Data loading: seeded samplers, and a loader that resumes within an epoch and leaves out unreadable images."""

import csv
import io
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from deocc.files import write_file
from deocc.messages import one_line
from deocc.processes import rank_and_world_size

ItemKey = tuple[int, int]
"""Epoch and position of an item. Besides the seed, an item's randomness depends on these only."""

MOST: Final = 0.01
"""Largest accepted share of unreadable images. Our choice: more than that suggests a wrong folder or a failing disk."""

_SHOWN: Final = 10  # unreadable images named in an error, and reported one by one when found
_logger = logging.getLogger(__name__)


def item_seed(*parts: int | str) -> int:
    """Return a 63-bit seed from integers and words, equal on every machine and Python version."""
    text = "/".join(str(part) for part in parts).encode("utf-8", "surrogateescape")  # names may have other encodings
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


class EpochSampler(Sampler[ItemKey]):
    """Shuffle `length` items by seed and epoch and split the order between the processes.

    Each item carries its epoch, because persistent workers do not notice `set_epoch`, which Lightning calls.
    Lightning's own distributed sampler must be off (`trainer.use_distributed_sampler: false`).

    Attributes:
        skipped: number of items of each process that the next iteration leaves out at its beginning.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch, self.skipped = length, seed, 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the items per process: equal on all ranks, since the order is padded from its beginning."""
        return -(-self.length // rank_and_world_size()[1])

    def __iter__(self) -> Iterator[ItemKey]:
        """Yield this process's keys, without creating a list of millions of Python objects."""
        epoch, (rank, world_size) = self.epoch, rank_and_world_size()
        first, self.skipped = self.skipped, 0
        positions = torch.arange(rank, len(self) * world_size, world_size) % self.length
        generator = torch.Generator().manual_seed(item_seed(self.seed, "order", epoch))
        positions = torch.randperm(self.length, generator=generator)[positions]
        return ((epoch, int(position)) for position in positions[first:].numpy())


def share_of_process(length: int) -> range:
    """Return the items of this process, ascending: all items are split between the processes without repetition.

    Shares may differ by one item. A process without items gets the first one again, because metrics cannot be gathered
    from a process that has seen nothing.
    """
    rank, world_size = rank_and_world_size()
    return range(rank, length, world_size) or range(min(1, length))


class UnreadableImageError(ValueError):
    """An image that cannot be read or aligned; the message begins with its name."""


class Quarantine:
    """Record of the images that the loaders of this process could not read.

    The substitute of an image follows from the data and not from this record, so that a resumed run gets the same
    batches.

    Args:
        read: reads and aligns the image with a given index in the face set, or raises `UnreadableImageError`.
        names: of the images in the face set.
        number: number of images in the splits in use; at most the share `MOST` of them may be unreadable.

    Attributes:
        reasons: reason by image name, in the order of discovery; a checkpoint contains them.
    """

    def __init__(self, read: Callable[[int], object], names: Sequence[str], number: int) -> None:
        self._read, self._names, self.number = read, names, number
        self.reasons: dict[str, str] = {}

    def add(self, indices: Iterable[int]) -> None:
        """Record images by their index in the face set; each new one is read again to find the reason, and reported.

        Raises:
            ValueError: too many images are unreadable.
        """
        for index in indices:
            name = self._names[index]
            if name in self.reasons:
                continue
            reason = "it could not be read before, but can be now: if this repeats, remove DEOCC_CACHE/aligned"
            try:
                self._read(index)
            except UnreadableImageError as error:
                reason = one_line(str(error).removeprefix(f"{name}: "))
            self.reasons[name] = reason
            if len(self.reasons) <= _SHOWN:
                _logger.warning("%s is left out: %s", name, reason)
        self._check()

    def merge(self, reasons: Mapping[str, str]) -> None:
        """Add the record of another process, with the error of `add`."""
        self.reasons |= reasons
        self._check()

    def _check(self) -> None:
        if len(self.reasons) > MOST * self.number:
            names, first = list(self.reasons), next(iter(self.reasons.values()))
            further = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            raise ValueError(
                f"{len(names):,} of {self.number:,} images cannot be read, more than {MOST:.0%}: "
                f"{', '.join(names[:_SHOWN])}{further} (the first: {first}): replace or remove them, then start again"
            )

    def write(self, path: Path) -> None:
        """Write the names and reasons as CSV, completely or not at all."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("name", "reason"), *self.reasons.items()])
        write_file(path, text.getvalue())


class FaceLoader(DataLoader[Any]):
    """A DataLoader of `deocc.data.dataset.FaceItem` that resumes within an epoch and leaves out unreadable images.

    Lightning stores `state_dict` in each checkpoint and restores it before the first batch. With an `EpochSampler`, the
    loader then continues after the last batch of that epoch, without reading the images before it. Unreadable images
    are recorded in the quarantine, which raises ValueError if there are too many, and removed from the batch; an empty
    batch is not returned. No global random numbers are drawn.
    """

    def __init__(self, dataset: Dataset[Any], quarantine: Quarantine, **settings: Any) -> None:
        super().__init__(dataset, worker_init_fn=ignore_stop_signals, generator=torch.Generator(), **settings)
        self.quarantine, self._batches_done = quarantine, 0
        self._resumed: dict[str, int] = {}

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches that are left of the epoch."""
        # A generator, so that no worker starts before the first batch: Lightning calls `iter` before `set_epoch`
        resumed, self._resumed, self._batches_done = self._resumed, {}, 0
        if isinstance(self.sampler, EpochSampler) and resumed.get("epoch") == self.sampler.epoch:
            self._batches_done = resumed["batches"]
            self.sampler.skipped = self._batches_done * (self.batch_size or 1)
        for batch in super().__iter__():
            self._batches_done += 1
            unreadable = batch.pop("unreadable")
            found = unreadable[unreadable >= 0]
            if len(found) > 0:
                self.quarantine.add(found.tolist())
                readable = (unreadable != batch["index"][:, None]).all(1)
                batch = {key: value[readable] for key, value in batch.items()}
            if len(batch["index"]) > 0:
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that have been loaded."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "batches": self._batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after these batches, if the next iteration is of the same epoch."""
        self._resumed = dict(state)


def ignore_stop_signals(_worker: int) -> None:
    """Ignore, in a loader worker, the signals that a terminal or cluster sends to all processes of a job.

    The main process stops its workers, which would otherwise run the handlers that they inherit from it.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
