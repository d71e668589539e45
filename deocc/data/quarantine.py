"""Unreadable images of a run: left out, counted and listed; too many of them end the run."""

import csv
import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from deocc.files import write_file
from deocc.messages import one_line

MOST: Final = 0.01
"""Largest accepted share of unreadable images. Our choice: more than that suggests a wrong folder or a failing disk."""

_SHOWN: Final = 10  # named in an error, and reported one by one when found
_logger = logging.getLogger(__name__)


class UnreadableImageError(ValueError):
    """An image that cannot be read or aligned; the message begins with its name."""


class Quarantine:
    """Record of the images that the loaders of this process could not read.

    It does not influence the batches: the substitute of an image follows from the data alone, so that a resumed run
    gets the same batches.

    Args:
        read: reads and aligns the image with a given index in the face set, or raises `UnreadableImageError`.
        names: of the images in the face set.
        number: number of images in the splits in use; at most the share `MOST` of them may be unreadable.

    Attributes:
        reasons: reason by image name, in the order of discovery.
    """

    def __init__(self, read: Callable[[int], object], names: Sequence[str], number: int) -> None:
        self._read, self._names = read, names
        self.number = number
        self.reasons: dict[str, str] = {}

    def add(self, indices: Iterable[int]) -> None:
        """Record images by their index in the face set; each new one is read again to find the reason, and reported.

        Raises:
            ValueError: too many images are unreadable.
        """
        for index in indices:
            name = self._names[index]
            if name not in self.reasons:
                self.reasons[name] = self._find_reason(index, name)
                if len(self.reasons) <= _SHOWN:
                    _logger.warning("%s is left out: %s", name, self.reasons[name])
        self._check()

    def merge(self, reasons: Mapping[str, str]) -> None:
        """Add the record of another process.

        Raises:
            ValueError: too many images are unreadable.
        """
        self.reasons = {**self.reasons, **reasons}
        self._check()

    def write(self, path: Path) -> None:
        """Write the names and reasons as CSV, completely or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("name", "reason"), *self.reasons.items()])
        write_file(path, text.getvalue())

    def state_dict(self) -> dict[str, str]:
        """Return the reasons by name, for a checkpoint."""
        return dict(self.reasons)

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Continue the record of a checkpoint."""
        self.reasons = dict(state)

    def _find_reason(self, index: int, name: str) -> str:
        try:
            self._read(index)
        except UnreadableImageError as error:
            return one_line(str(error).removeprefix(f"{name}: "))
        return "it could not be read before, but can be now: if this repeats, remove DEOCC_CACHE/aligned"

    def _check(self) -> None:
        if len(self.reasons) <= MOST * self.number:
            return
        names, first = list(self.reasons), next(iter(self.reasons.values()))
        further = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        raise ValueError(
            f"{len(names):,} of {self.number:,} images cannot be read, more than {MOST:.0%}: "
            f"{', '.join(names[:_SHOWN])}{further} (the first: {first}): replace or remove them, then start again"
        )
