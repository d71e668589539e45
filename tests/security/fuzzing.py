"""Damaged copies of real files, and what a reader may do with them: return, or refuse in one line, within memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MOST_GROWTH = 2**30
"""Bytes by which this process may grow while it reads one damaged file; enough for a photo of 100 million pixels."""

MANY = pytest.mark.parametrize("examples", [12, pytest.param(400, marks=pytest.mark.slow)], ids=["some", "many"])
"""Number of damaged files that a test reads; always the same ones."""

_HEADER = 96
_EXTREMES = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\x40\0", b"\x01\0\0\0", b"\n\n\0=")


def for_each(examples: int, damaged: st.SearchStrategy[bytes], read: Callable[[bytes], Any]) -> None:
    """Call `read` with so many damaged files; it may raise ValueError or FileNotFoundError in one line.

    Raises:
        AssertionError: it raised anything else, in lines, took 20 s, or memory.
    """

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=20_000, suppress_health_check=list(HealthCheck)
    )
    @given(damaged)
    def holds(data: bytes) -> None:
        with within_memory(), refused_in_one_line():
            read(data)

    holds()


@st.composite
def damaged(draw: st.DrawFn, files: Sequence[bytes]) -> bytes:
    """Draw one of the files with one to four changes, half of them in its header."""
    data = draw(st.sampled_from(files))
    for _ in range(draw(st.integers(1, 4))):
        end = min(len(data), _HEADER) if draw(st.booleans()) else len(data)
        data = draw(_change(data, draw(st.integers(0, end)), files))
    return data


def _change(data: bytes, at: int, files: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Replace, delete, repeat or insert bytes at a position, splice in another file, or truncate."""
    head, tail = data[:at], data[at:]
    spliced = st.tuples(st.sampled_from(files), st.integers(0, 4000)).map(lambda pair: head + pair[0][pair[1] :])
    return st.one_of(
        st.binary(min_size=1, max_size=1).map(lambda byte: head + byte + tail[1:]),
        st.sampled_from(_EXTREMES).map(lambda number: head + number + tail[4:]),
        st.integers(1, 64).map(lambda length: head + tail[length:]),
        st.integers(1, 64).map(lambda length: head + tail[:length] + tail),
        st.binary(max_size=8).map(lambda new: head + new + tail),
        st.just(head),
        spliced,
    )


@contextmanager
def refused_in_one_line() -> Iterator[None]:
    """Allow ValueError and FileNotFoundError with a message of one line that is not empty."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert message.strip() and len(message.splitlines()) == 1, repr(message)


@contextmanager
def within_memory(most: int = MOST_GROWTH) -> Iterator[None]:
    """Check that the peak memory of this process grows by at most `most` bytes; no check without /proc."""
    start = _peak(reset=True)
    yield
    assert _peak() - start <= most, f"{(_peak() - start) / 2**20:,.0f} MiB more"


def _peak(reset: bool = False) -> int:
    """Return the peak resident memory since the last reset, in bytes (Linux)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
