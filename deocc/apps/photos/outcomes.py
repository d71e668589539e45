"""What became of every input: a table with at least one row each, kept on disk while the work goes on."""

import csv
import os
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deocc.apps.photos.writing import writing_to

_COLUMNS: Final = ("photo", "face", "status", "reason", "output")
_DONE, _LEFT_OUT = "done", "left out"
_FORMULA: Final = re.compile(r"'*(?:[=@\t\r]|[+-](?![\d.]+(?:e[+-]?\d+)?$))")
"""What a formula begins with, and not a number; also behind apostrophes, so that what is read is what was written."""

_WRITE_EVERY: Final = 2.0  # seconds of rows that a killed process may lose; their work is then done again


@dataclass(frozen=True)
class Outcome:
    """One row.

    Attributes:
        photo: the input's path as it was given or found.
        reason: one line that says why it was left out; empty where it is done.
        face: the face's number in the photo, from 1, the largest first; None where the row is about the whole input.
        output: the file that was made of it, relative to the table's folder; empty where there is none.
        details: further columns.
    """

    photo: str
    reason: str = ""
    face: int | None = None
    output: str = ""
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether nothing stood in the way."""
        return not self.reason


class OutcomeFile:
    """The table in a CSV file. Rows of an earlier run stay until newer ones take their place.

    A spreadsheet takes a cell that begins with = + - @ for a formula, and may start a program by it; names of files and folders are
    anybody's. Such text is written with an apostrophe before it, which is taken away when the table is read here (OURS).

    Args:
        path: where it lies; it is read where it exists already.

    Raises:
        ValueError: the file exists and is not such a table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, list[Outcome]] = {}
        self._written = time.monotonic()
        if path.exists():
            for outcome in _read(path):
                self._rows.setdefault(outcome.photo, []).append(outcome)

    def rows(self, photo: str) -> list[Outcome]:
        """All rows of an input."""
        return list(self._rows.get(photo, []))

    def all_rows(self) -> list[Outcome]:
        """All rows of all inputs."""
        return [row for rows in self._rows.values() for row in rows]

    def replace(self, photo: str, outcomes: Sequence[Outcome]) -> None:
        """Take in new rows of an input, in place of what was left out before and of those with the same output."""
        outputs = {outcome.output for outcome in outcomes}
        kept = [row for row in self.rows(photo) if row.done and row.output not in outputs]
        self._rows[photo] = [*kept, *outcomes]

    def write_when_due(self) -> None:
        """`write`, where the last time is two seconds ago."""
        if time.monotonic() - self._written > _WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Bring the file up to date, replacing it as a whole.

        Raises:
            OutputError: it cannot be written; the former one is still there.
        """
        _write(self.path, self.all_rows())
        self._written = time.monotonic()


def _write(path: Path, outcomes: Sequence[Outcome]) -> None:
    more = list(dict.fromkeys(name for outcome in outcomes for name in outcome.details))
    draft = path.with_name(f".{uuid.uuid4().hex}.tmp")
    with writing_to(path, draft), draft.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.DictWriter(file, [*_COLUMNS, *more], lineterminator="\n")
        table.writeheader()
        table.writerows(_as_row(outcome) for outcome in outcomes)
        file.flush()
        os.fsync(file.fileno())


def _as_row(outcome: Outcome) -> dict[str, object]:
    status = _DONE if outcome.done else _LEFT_OUT
    values = (outcome.photo, outcome.face, status, outcome.reason, outcome.output)
    row = {**dict(zip(_COLUMNS, values, strict=True)), **outcome.details}
    return {name: f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value for name, value in row.items()}


def _read(path: Path) -> Iterable[Outcome]:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.DictReader(file)
            if tuple(table.fieldnames or ())[: len(_COLUMNS)] != _COLUMNS:
                raise ValueError(f"its columns are not {', '.join(_COLUMNS)}")
            return [_as_outcome(row) for row in table]
    except (OSError, ValueError, AttributeError, TypeError, csv.Error) as error:  # rows of more or fewer cells hold lists or nothing
        raise ValueError(f"{path} exists and is no list of an earlier run ({error}): choose another --out") from error


def _as_outcome(written: dict[str, str]) -> Outcome:
    row = {name: value[1:] if value.startswith("'") and _FORMULA.match(value) else value for name, value in written.items()}
    details = {name: value for name, value in row.items() if name not in _COLUMNS and value}
    face = int(row["face"]) if row["face"] else None
    return Outcome(row["photo"], row["reason"], face, row["output"], details)
