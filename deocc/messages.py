"""One-line messages for the user: errors, notes on the error stream, and a command's argument parser."""

import argparse
import json
import logging
import os
import re
import select
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


def one_line(text: object) -> str:
    """Return the text without line breaks and repeated spaces."""
    return " ".join(str(text).split())


def describe_error(error: BaseException, limit: int = 120) -> str:
    """Return an error's message in one line of at most `limit` characters, or the error's type if it has no message."""
    return one_line(error)[:limit] or type(error).__name__


def name_some(names: Sequence[str]) -> str:
    """Return the first three of some names, separated by commas.

    >>> name_some(["a", "b"]), name_some(["a", "b", "c", "d"])
    ('a, b', 'a, b, c, ...')
    """
    return ", ".join([*names[:3], "..."] if len(names) > 3 else names)


def say(line: str) -> None:
    """Print one line on the error stream, marked as coming from deocc."""
    print(f"deocc: {one_line(line)}", file=sys.stderr, flush=True)


@contextmanager
def telling_errors(as_json: bool = False) -> Iterator[None]:
    """Report an error of bad input in one line, with `as_json` also as an object on the output, and exit with code 2.

    With DEOCC_TRACEBACK=1 the error is raised, and always if it is that the reader of the output has ended.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _reader_has_ended():
            raise
        if os.environ.get("DEOCC_TRACEBACK"):
            raise
        say(str(error))
        if as_json:
            print(json.dumps({"error": {"code": error_code(error), "message": one_line(error)}}, indent=2))
        sys.exit(2)


def error_code(error: Exception) -> str:
    """Return the name of an error's type in words.

    >>> [error_code(error) for error in (ValueError(), FileNotFoundError(), OSError(), NotADirectoryError())]
    ['value', 'file_not_found', 'os', 'not_a_directory']
    """
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<!^)(?=[A-Z][a-z])", "_", name).lower()


def _reader_has_ended() -> bool:
    """Return whether the output is a pipe without a reader."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are reported in any case
    return any(event & select.POLLERR for _, event in poll.poll(0))


def show_progress(items: Iterable[T], title: str, total: int | None = None, hidden: bool = False) -> Iterable[T]:
    """Iterate over items with a progress bar on the error stream, if that is a terminal."""
    from rich.console import Console  # here, since the light commands do without
    from rich.progress import track

    console = Console(stderr=True, soft_wrap=True)
    return track(items, title, total, console=console, transient=True, disable=hidden or not console.is_terminal)


class _StderrHandler(logging.Handler):
    """Prints log records like `say`; a full disk, to which the error stream is redirected, must not end a training."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record))
        except OSError:
            self.handleError(record)


def show_logs() -> None:
    """Print the warnings of deocc's loggers on the error stream; a second call does nothing."""
    logger = logging.getLogger("deocc")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler(logging.WARNING))


@contextmanager
def telling_warnings() -> Iterator[None]:
    """Collect user warnings and print each as one line at the end; after an error they are dropped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        say(str(warning.message))


def printable(text: str) -> str:
    r"""Replace bytes that are not text by escapes, since file names may contain any bytes.

    >>> printable("caf\udce9.jpg")
    'caf\\xe9.jpg'
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises ValueError instead of ending the process, and accepts no abbreviated options."""

    def __init__(self, prog: str | None = None, **settings: Any) -> None:
        super().__init__(prog, **{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with the message and where to find help."""
        raise ValueError(f"{self.prog}: {message}; see {self.prog} --help")
