"""The images of a run that cannot be read: left out, counted, listed; too many of them end the run."""

import csv
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

MOST: Final = 0.01
"""The share of the images that may be unreadable (OURS): more are no accident, but a wrong folder or a failing disk."""

_SHOWN: Final = 10  # named in an error, and told one by one as they are found


class UnreadableImageError(ValueError):
    """An image that cannot be read or aligned; the message begins with its name."""


class Quarantine:
    """Name and reason of every image that could not be read, as the loaders of this process find them.

    It is a record, and decides nothing: what takes an image's place follows from the data alone, so that a resumed run, which knows this
    record, and a new one get the same batches.

    Attributes:
        reasons: the reason by name, in the order of discovery.
        number: how many images there are.
    """

    def __init__(self, read: Callable[[int], object], names: Sequence[str], number: int) -> None:
        """Begin with none.

        Args:
            read: reads and aligns the image at a position of the face set; `UnreadableImageError` tells the reason.
            names: of the face set's images.
            number: how many images the splits in use have, of which `MOST` may be unreadable.
        """
        self._read, self._names = read, names
        self.number = number
        self.reasons: dict[str, str] = {}

    def add(self, indices: Iterable[int]) -> None:
        """Note the images at these positions of the face set; each new one is read once again for the reason, and told on stderr.

        Raises:
            ValueError: with them, too many cannot be read; the message names the first ones.
        """
        for index in indices:
            name = self._names[index]
            if name not in self.reasons:
                self.reasons[name] = self._reason(index, name)
                if len(self.reasons) <= _SHOWN:
                    tell(f"{name} is left out: {self.reasons[name]}")
        self._check()

    def merge(self, reasons: Mapping[str, str]) -> None:
        """Add what another process found.

        Raises:
            ValueError: as `add`.
        """
        self.reasons = {**self.reasons, **reasons}
        self._check()

    def write(self, path: Path) -> None:
        """Replace a CSV file of names and reasons as a whole.

        Raises:
            OSError: it cannot be written.
        """
        draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with draft.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                csv.writer(file).writerows([("name", "reason"), *self.reasons.items()])
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, str]:
        """The reason by name, for a checkpoint."""
        return dict(self.reasons)

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Go on with a checkpoint's record."""
        self.reasons = dict(state)

    def _reason(self, index: int, name: str) -> str:
        try:
            self._read(index)
        except UnreadableImageError as error:
            return " ".join(str(error).removeprefix(f"{name}: ").split())
        return "it could not be read, and can be now: if it is left out again, remove the aligned faces below DEOCC_CACHE/aligned"

    def _check(self) -> None:
        if len(self.reasons) > MOST * self.number:
            names, first = list(self.reasons), next(iter(self.reasons.values()))
            further = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            found = f"{len(names):,} of {self.number:,} images cannot be read, more than {MOST:.0%}: {', '.join(names[:_SHOWN])}{further}"
            raise ValueError(f"{found} (the first: {first}): replace or remove them, then start again")


def tell(line: str) -> None:
    """Print one line to stderr, beside whatever progress is shown there."""
    Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(line)
