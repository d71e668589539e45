"""What to say where a data set is missing or half copied: one line for every set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

_SHOWN: Final = 3


def missing_set(title: str, root: Path, missing: Sequence[str], total: int, advice: str) -> FileNotFoundError:
    """The error to raise where files of a data set are missing.

    >>> print(missing_set("LFW images", Path("/faces"), ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], 9, "get them from LFW's home page"))
    4 of 9 LFW images are missing in /faces (a.jpg, b.jpg, c.jpg, ...): get them from LFW's home page
    >>> print(missing_set("LFW images", Path("/faces"), ["a.jpg"], 9, "get it from LFW's home page"))
    1 of 9 LFW images is missing in /faces (a.jpg): get it from LFW's home page

    Args:
        title: what was looked for, in the plural.
        root: where it was looked for.
        missing: what is not there, in the order of the search; the first three are named.
        total: how many were looked for.
        advice: how to get the set by hand.

    Returns:
        The error, its message one line.
    """
    names = ", ".join([*missing[:_SHOWN], *(["..."] if len(missing) > _SHOWN else [])])
    verb = "is" if len(missing) == 1 else "are"
    message = f"{len(missing):,} of {total:,} {title} {verb} missing in {root.absolute()} ({names}): {advice}"
    return FileNotFoundError(" ".join(message.split()))
