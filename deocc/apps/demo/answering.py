"""From what the page sends to what it shows: the photos are read, and whatever is wrong becomes one line."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deocc.apps.demo.analysis import Analyst
from deocc.apps.demo.memory import PhotoMemory
from deocc.apps.demo.view import error_html, result_html
from deocc.apps.photos import FaceFinder, PhotoFace, read_photo

_HARMLESS = (ValueError, OSError, ImportError, RuntimeError, MemoryError)
MOST_SEED: Final = 2**31 - 1
_REMEMBERED = 1000

Photo = Mapping[str, Any] | NDArray[np.uint8]


class RateLimit:
    """At most so many answers a client in a span of time.

    Args:
        most: answers.
        seconds: the span.
        clock: what time it is, in seconds.
        what: what is counted, in the plural.
    """

    def __init__(self, most: int = 30, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic, what: str = "answers") -> None:
        self._most, self._seconds, self._clock, self._what = most, seconds, clock, what
        self._times: dict[str, deque[float]] = {}

    def check(self, client: str) -> None:
        """Count one more.

        Raises:
            ValueError: it is one too many; the message says how long to wait.
        """
        now = self._clock()
        times = self._times.pop(client, deque())
        while times and now - times[0] >= self._seconds:
            times.popleft()
        self._times[client] = times  # the latest client comes last, so that the first may be forgotten
        if len(self._times) > _REMEMBERED:
            del self._times[next(iter(self._times))]
        if len(times) >= self._most:
            wait = int(self._seconds - (now - times[0])) + 1
            raise ValueError(f"the limit is {self._most} {self._what} in {self._seconds:g} s: wait {wait} s and press the button again")
        times.append(now)


class Answers:
    """Answers the page.

    Args:
        analyst: what analyses faces.
        finder: what finds them.
        limit: how often a client may ask.
        memory: where the photos are that clients name.
    """

    def __init__(self, analyst: Analyst, finder: FaceFinder, limit: RateLimit, memory: PhotoMemory) -> None:
        self._analyst, self._finder, self._limit, self._memory = analyst, finder, limit, memory

    def answer(self, photo: Photo | None, second: Photo | None, kind: str, seed: Any, client: str) -> str:
        """The result as HTML, or the one line that says what is wrong, as HTML too.

        Args:
            photo: an uploaded file, its `path` and the `orig_name` that it had, or pixels (H, W, 3) RGB; None = none was given.
            second: another, to compare with; None = none.
            kind: a kind of mask, or `NO_MASK`.
            seed: of the mask, a whole number from 0 to `MOST_SEED`.
            client: who asks.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                self._limit.check(client)
                face = self._face(photo, "the photo")
                other = None if second is None else self._face(second, "the second photo")
                analysis = self._analyst.analyse(face, kind, _seed(seed), other)
            except _HARMLESS as error:
                return error_html(_line(error))
        return result_html(analysis, [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)])

    def _face(self, given: Photo | None, default: str) -> PhotoFace:
        if given is None:
            raise ValueError("no photo yet: drop one, choose a file, or take one with the camera")
        if isinstance(given, np.ndarray):
            return self._finder.find(given, default)[0]
        name = str(given.get("orig_name") or default)
        try:
            data = self._memory.take(str(given.get("path") or ""))
        except (OSError, ValueError):  # ValueError: a path that no system takes
            raise ValueError(f"{name} is no longer here, since photos are not kept: choose it again") from None
        return self._finder.find(read_photo(data, name), name)[0]


def _seed(value: Any) -> int:
    if not isinstance(value, int | float) or not 0 <= value <= MOST_SEED or value != int(value):
        raise ValueError(f"the seed is {value}: give a whole number from 0 to {MOST_SEED}")
    return int(value)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
