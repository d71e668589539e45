"""What a check says, and how one check is kept from stopping the others."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

Level = Literal["OK", "warning", "wrong"]

NEEDED: Final = "the needed packages"
"""Stands among the modules that a check needs for all that deocc cannot do without."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: "wrong" keeps something from working, "warning" may make a result other than expected.
        what: one line.
        remedy: the command or step that mends it; empty where nothing is to be mended.
    """

    level: Level
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<9}{one_line(self.what)}"
        return f"{line}\n{'':<9}-> {self.remedy}" if self.remedy else line


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes:
        subject: what it is about.
        look: finds out; it may raise anything.
        needs: names of modules without which it cannot be done, and `NEEDED`.
        remedy: what to do where `look` raises.
    """

    subject: str
    look: Callable[[], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    remedy: str = ""


def examine(check: Check, broken: Iterable[str] = ()) -> Iterator[Finding]:
    """The findings of a check, one by one; an exception in it, even one that asks to exit, becomes a finding that is "wrong".

    Args:
        check: what to look at.
        broken: names of modules that cannot be imported, and `NEEDED` where one of those is among them.
    """
    lacking = [name for name in check.needs if name in set(broken)]
    if lacking:
        yield Finding(
            "warning",
            f"{check.subject}: not looked at, since {' and '.join(lacking)} cannot be imported",
            "mend that first",
        )
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield from check.look()
        except (Exception, SystemExit) as error:
            reason = one_line(str(error)) or "no reason given"
            kind = "" if isinstance(error, ValueError | OSError | ImportError) else f"{type(error).__name__}: "
            yield Finding("wrong", f"{check.subject}: {kind}{reason}", check.remedy)


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())
