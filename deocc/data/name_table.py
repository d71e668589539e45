"""Millions of names in one buffer, in place of as many Python objects in every loader worker."""

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_CODING = ("utf-8", "surrogateescape")  # the second: file names that are no UTF-8 come back as they were


class NameTable(Sequence[str]):
    """Names, each made when asked for; equal to any sequence of the same names.

    A forked worker shares the two arrays with its parent: no reference count is in them, so reading copies nothing.

    Args:
        names: in the order in which they are asked for.
    """

    __hash__ = None  # type: ignore[assignment]  # it equals lists, which have none

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode(*_CODING) for name in names]
        self._text = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        """The number of names."""
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "NameTable": ...
    def __getitem__(self, place: int | slice) -> "str | NameTable":
        """The name at a place, or the names of a slice.

        Raises:
            IndexError: there is no such place.
        """
        if isinstance(place, slice):
            return NameTable(self[at] for at in range(*place.indices(len(self))))
        at = range(len(self))[place]
        return self._text[self._ends[at] : self._ends[at + 1]].tobytes().decode(*_CODING)

    def __eq__(self, other: object) -> bool:
        """Whether `other` is a sequence of the same names in the same order."""
        if isinstance(other, NameTable):
            return np.array_equal(self._ends, other._ends) and np.array_equal(self._text, other._text)
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)

    def buffers(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """All names' bytes one after another, and (N + 1,) where each begins and the last ends: what a hash of them takes."""
        return self._text, self._ends
