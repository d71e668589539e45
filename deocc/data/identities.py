"""Names of people: compact tables, comparison across data sets, lists of people.

Equal names do not prove that two people are the same, nor do different spellings prove that they differ.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

_CODING = ("utf-8", "surrogateescape")  # file names that are not UTF-8 are restored exactly

# Letters that Unicode does not decompose into a plain letter and an accent; the last is the Turkish dotless i
_PLAIN: Final = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "\u0131": "i"})


class NameTable(Sequence[str]):
    """Names in two arrays, decoded on access; equal to any sequence of the same names.

    Forked workers share the arrays with their parent, since reading changes no reference count.

    Args:
        names: the names in order.
    """

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have no hash

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode(*_CODING) for name in names]
        self._text = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "NameTable": ...
    def __getitem__(self, place: int | slice) -> "str | NameTable":
        if isinstance(place, slice):
            return NameTable(self[at] for at in range(*place.indices(len(self))))
        at = range(len(self))[place]
        return self._text[self._ends[at] : self._ends[at + 1]].tobytes().decode(*_CODING)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, NameTable):
            return np.array_equal(self._ends, other._ends) and np.array_equal(self._text, other._text)
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)

    def buffers(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the concatenated bytes of all names, and (N + 1,) their boundaries, for hashing."""
        return self._text, self._ends


def identity_name(folder: str) -> str:
    r"""Return the name of a person from that of a folder, in Unicode's composed form, since systems store either form.

    >>> identity_name("Jose\u0301") == "Jos\u00e9"
    True
    """
    return unicodedata.normalize("NFC", folder)


def name_key(name: str) -> str:
    """Return the letters and digits of a name without case, accents, spaces, underscores and punctuation.

    >>> name_key("Penélope_Cruz"), name_key("J.K. Rowling"), name_key("Lech WAŁĘSA")
    ('penelopecruz', 'jkrowling', 'lechwalesa')
    """
    letters = unicodedata.normalize("NFKD", name.casefold()).translate(_PLAIN)
    return "".join(letter for letter in letters if letter.isalnum())


def shared_people(first_names: Iterable[str], second_names: Iterable[str]) -> list[str]:
    """Return the names of the first set that are in the second set too, each once, in the spelling of the first.

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
    """Read a list of people with one name per line, such as LFW's `people.txt` and `lfw-names.txt`.

    The number of images after a name is dropped, as are lines that contain only numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it contains no name, or is not text.
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
