"""Findings, and how checks are run so that none stops the others."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deocc.messages import one_line

Level = Literal["OK", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: "wrong" if something cannot work, "warning" if results may differ from what is expected.
        text: one line.
        remedy: command or step that solves the problem; empty if there is none.
    """

    level: Level
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<9}{one_line(self.text)}"
        return f"{line}\n{'':<9}-> {self.remedy}" if self.remedy else line


@dataclass
class Context:
    """Input of all checks.

    Attributes:
        checkpoint: run folder, checkpoint file or model folder; None = the newest run.
        data: folder of faces that the user asks about.
        broken: modules that cannot be imported, with the reason.
        usable: whether all needed packages can be imported.
    """

    checkpoint: Path | None = None
    data: Path | None = None
    broken: dict[str, str] = field(default_factory=dict)
    usable: bool = True


@dataclass(frozen=True)
class Check:
    """A check: its subject, a function that yields findings and may raise, and the remedy if it raises."""

    subject: str
    function: Callable[[Context], Iterator[Finding]]
    remedy: str


def run_check(check: Check, context: Context) -> Iterator[Finding]:
    """Yield the findings of a check; an exception, including SystemExit, becomes a finding "wrong"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield from check.function(context)
        except (Exception, SystemExit) as error:
            reason = one_line(error) or "no reason given"
            if not isinstance(error, ValueError | OSError | ImportError):
                reason = f"{type(error).__name__}: {reason}"
            yield Finding("wrong", f"{check.subject}: {reason}", check.remedy)
