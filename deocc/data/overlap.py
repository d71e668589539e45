"""Who is in two data sets: people compared by name, however each set writes it.

A name in common does not prove one person, nor do two spellings prove two: this finds what names can tell, no more.
"""

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Final

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
        raise FileNotFoundError(f"no list of people at {path.absolute()}: give a text file with one name a line, such as LFW's people.txt")
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason}): give a text file with one name a line") from error
    names = [" ".join(words[:-1] if words[-1].isdigit() else words) for words in lines if words]
    people = [name for name in names if name_key(name) and not name.isdigit()]
    if not people:
        raise ValueError(f"{path} holds no name: give a text file with one name a line, such as LFW's people.txt")
    return people
