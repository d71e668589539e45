"""Who is in two data sets: people compared by name, however each set writes it.

A name in common does not prove one person, nor do two spellings prove two: this finds what names can tell, no more.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, overload

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


# Letters that Unicode does not decompose into a plain one and an accent; the last is Turkish, an i without a dot.
_PLAIN: Final = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "\u0131": "i"})


def name_key(name: str) -> str:
    """A name's letters and digits without case, accents, spaces, underscores and punctuation: equal keys, equal names.

    >>> name_key("Penélope_Cruz"), name_key("J.K. Rowling"), name_key("Lech WAŁĘSA")
    ('penelopecruz', 'jkrowling', 'lechwalesa')
    """
    letters = unicodedata.normalize("NFKD", name.casefold()).translate(_PLAIN)
    return "".join(letter for letter in letters if letter.isalnum())


def shared_people(first_names: Iterable[str], second_names: Iterable[str]) -> list[str]:
    """The names of the first set that the second one holds too, in the first one's order and spelling, each once.

    >>> shared_people(["Penelope Cruz", "Ann Veneman", "penelope cruz"], ["Penélope_Cruz"])
    ['Penelope Cruz']
    """
    wanted = {name_key(name) for name in second_names} - {""}
    found: dict[str, str] = {}
    for name in first_names:
        if name_key(name) in wanted:
            found.setdefault(name_key(name), name)
    return list(found.values())


def read_people(path: Path) -> list[str]:
    """The names in a list of people, one a line, as LFW's `people.txt` and `lfw-names.txt`.

    A number of images behind the name is dropped, and so are lines that hold nothing but numbers (how many folds, how many people).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no name, or is no text.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no list of people at {path.absolute()}: give a text file with one name a line, such as LFW's people.txt"
        )
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 ({error.reason}): give a text file with one name a line"
        ) from error
    names = [" ".join(words[:-1] if words[-1].isdigit() else words) for words in lines if words]
    people = [name for name in names if name_key(name) and not name.isdigit()]
    if not people:
        raise ValueError(f"{path} holds no name: give a text file with one name a line, such as LFW's people.txt")
    return people
