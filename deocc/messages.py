"""What the commands say beside their results: one line each, on the error stream."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def say(line: str) -> None:
    """Print one line on the error stream, marked as this program's."""
    print(f"deocc: {' '.join(line.split())}", file=sys.stderr)


@contextmanager
def telling_warnings() -> Iterator[None]:
    """While this is open, warnings to the user are kept; at its end, not after an error, each is said as a line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        say(str(warning.message))


def printable(word: str) -> str:
    r"""The word with escapes for what is no text: names of files may be any bytes.

    >>> printable("caf\udce9.jpg")
    'caf\\xe9.jpg'
    """
    return word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
