"""Loaders that begin where an epoch was left, outlive the death of a worker, and put images that cannot be read aside."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, TypeVar

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deocc.data.quarantine import Quarantine, tell

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


T = TypeVar("T")
Batches = Iterator[Any]
_DEATHS: Final = 3  # without a batch in between: whatever kills the workers will do so again
_PATIENCE: Final = 1.0  # seconds that a worker may take to end after what it was about to send is found broken


class RestartingLoader(DataLoader[T]):
    """A DataLoader of which nothing runs before its first batch is asked for, and which a worker's death does not end.

    Lightning makes a loader's iterator before it tells the sampler the epoch: workers that fetch ahead would take a resumed run's first
    batches from epoch 0. A batch follows from its keys alone, so where a worker is killed, new ones load the same next batch. A death is
    noticed when a batch is asked for, never in the middle of a step. No global random numbers are drawn.
    """

    def __init__(self, dataset: Dataset[T], start: Callable[[], int] | None = None, **settings: Any) -> None:
        """`settings` are those of DataLoader.

        Args:
            dataset: whose items it loads.
            start: asked when an iteration begins: how many batches of the sampler's order to pass over, reading none of their images.
                `len` stays that of all. It needs a `StartingSampler`, and so does going on after a death.
            settings: all else that DataLoader takes, except `worker_init_fn` and `generator`.
        """
        super().__init__(dataset, worker_init_fn=_leave_signals, generator=torch.Generator(), **settings)
        self._start = start
        self._kept_workers: Sequence[BaseProcess] = ()

    def __iter__(self) -> Batches:  # type: ignore[override]
        """The batches, from that of `start` on.

        Raises:
            RuntimeError: worker after worker died without a batch in between.
        """
        number, deaths = self._start() if self._start is not None else 0, 0
        while True:
            try:
                for batch in self._load(number):
                    if batch is not None:
                        yield batch
                    number, deaths = number + 1, 0
                return
            except _WorkerDiedError as death:
                deaths += 1
                if deaths == _DEATHS or not isinstance(self.sampler, StartingSampler):
                    advice = "most likely memory ran out, so choose a smaller data.num_workers or batch size"
                    raise RuntimeError(f"{death} and no new one can go on: {advice}") from death
                tell(f"{death}: new ones go on with the next batch")

    def state_dict(self) -> dict[str, int]:
        """Nothing: where an epoch stands follows from the trainer's counters, by `start`. Lightning thus knows that it can go on."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing, as `state_dict`."""

    def _load(self, number: int) -> Batches:
        """The batches from a number on, by one set of workers; None for one of which nothing is left.

        Raises:
            _WorkerDiedError: one of them ended.
        """
        workers, earlier = self._kept_workers, active_children()
        batches: Any = None
        done = False
        try:
            self._begin_at(number)
            with _child_signal_kept():
                batches = super().__iter__()
            workers = [child for child in active_children() if child not in earlier] or workers
            self._kept_workers = workers if self.persistent_workers else ()
            for batch in batches:
                yield self._sift(batch)
                _check_alive(workers, 0)  # torch itself would wait five seconds for a dead one
            done = True
        except GeneratorExit:
            done = self.persistent_workers  # which wait for the next epoch
            raise
        except (RuntimeError, OSError, EOFError):
            _check_alive(workers, _PATIENCE)
            raise
        finally:
            self._begin_at(0)
            if not done:
                self._end(batches)

    def _sift(self, batch: Any) -> Any:
        """What of a batch goes on; None for nothing."""
        return batch

    def _end(self, batches: Any) -> None:
        """Stop the workers now, as Lightning does: left to the garbage collector, each may hold the process up for five seconds."""
        stop = getattr(self._iterator if batches is None else batches, "_shutdown_workers", None)
        self._iterator, self._kept_workers = None, ()
        if stop is not None:
            stop()

    def _begin_at(self, number: int) -> None:
        if isinstance(self.sampler, StartingSampler):
            self.sampler.first = number * (self.batch_size or 1)


class FaceLoader(RestartingLoader[T]):
    """Batches of faces (`deocc.batch.FaceBatch`) without the images that cannot be read, which go to the quarantine.

    An item that is itself such an image is not in its batch, nor is there a batch without any other item. Where the quarantine refuses
    another image, its ValueError ends the iteration.
    """

    def __init__(
        self, dataset: Dataset[T], quarantine: Quarantine, start: Callable[[], int] | None = None, **settings: Any
    ) -> None:
        """As `RestartingLoader`; the items are of `deocc.data.dataset.FaceItem`.

        Args:
            dataset: whose items it loads.
            quarantine: is told, in this process, which images could not be read.
            start: see `RestartingLoader`.
            settings: of DataLoader.
        """
        super().__init__(dataset, start, **settings)
        self.quarantine = quarantine

    def _sift(self, batch: dict[str, Tensor]) -> dict[str, Tensor] | None:
        unreadable = batch.pop("unreadable")
        found = unreadable[unreadable >= 0]
        if len(found) == 0:
            return batch
        self.quarantine.add(found.tolist())
        kept = (unreadable != batch["index"][:, None]).all(1)
        return {key: value[kept] for key, value in batch.items()} if bool(kept.any()) else None


class _WorkerDiedError(Exception):
    """A loader's worker ended; the message tells which and how."""


def _check_alive(workers: Sequence[BaseProcess], seconds: float) -> None:
    """Raise where a worker has ended, or does within so many seconds."""
    ended = wait([worker.sentinel for worker in workers], seconds) if workers else []
    dead = next((worker for worker in workers if worker.sentinel in ended), None)
    if dead is not None:
        dead.join(_PATIENCE)
        code = dead.exitcode
        how = (
            f"was killed by signal {-code} ({signal.strsignal(-code)})"
            if code is not None and code < 0
            else f"ended with code {code}"
        )
        raise _WorkerDiedError(f"loader worker {dead.pid} {how}")


@contextmanager
def _child_signal_kept() -> Iterator[None]:
    """Undo that torch handles a child's death by an error wherever the main thread happens to be, as in an optimiser's step."""
    former = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and former is not None:
            signal.signal(signal.SIGCHLD, former)


def _leave_signals(_worker: int) -> None:
    """What a terminal or a cluster sends to the whole group is for the main process, which stops its workers in order.

    Without this a worker would run the handlers that it inherits, and write checkpoints of its own.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
