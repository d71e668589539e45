"""Batch processing of photos: find the files, process each one, and record an outcome for every input in a table."""

import csv
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deocc.files import is_file, walk_files
from deocc.inference.outputs import OutputError, WriteTimer, replace_output
from deocc.inference.photos import KNOWN_FORMATS, is_photo
from deocc.messages import one_line, say, show_progress, telling_warnings

RECOVERABLE: Final = (ValueError, OSError, ImportError, RuntimeError, MemoryError)
"""Errors that leave out one photo of a batch; the others are still processed."""

_COLUMNS: Final = ("photo", "face", "status", "reason", "output")
_NUMBERS: Final[Mapping[str, Callable[[str], float]]] = {
    **dict.fromkeys(("faces", "turned", "seed", "covered_pixels"), int),
    **dict.fromkeys(("score", "left", "top", "right", "bottom", "visible"), float),
}
"""Type of the numbers in the further columns of rows that a repeated command keeps."""
_FORMULA: Final = re.compile(r"'*(?:[=@\t\r]|[+-](?![\d.]+(?:e[+-]?\d+)?$))")
"""Start of a spreadsheet formula, but not of a number. Leading apostrophes count, so that escaping is reversible."""
_WRITE_INTERVAL: Final = 2.0  # seconds of outcomes that a killed process may lose


@dataclass(frozen=True)
class FoundPhoto:
    """A photo to process."""

    path: Path
    name: str
    """Of its results: the path within the given folder without suffix, separated by "/", or the name of a file that was
    given directly. Repeated names are numbered: `x`, `x-2`, ..."""


@dataclass(frozen=True)
class Outcome:
    """One row of the table: what was made of a photo or of one of its faces, or why it was left out."""

    photo: str  # path of the input
    reason: str = ""  # one line that explains why it was left out; empty if it was processed
    face: int | None = None  # its number in the photo, from 1, most prominent first; None for the whole input
    output: str = ""  # the result file relative to the table's folder; empty if there is none
    details: Mapping[str, object] = field(default_factory=dict)  # further columns

    @property
    def done(self) -> bool:
        """True if the input was processed."""
        return not self.reason

    @property
    def row(self) -> dict[str, object]:
        """Cells by column."""
        cells = (self.photo, self.face, "done" if self.done else "left out", self.reason, self.output)
        return {**dict(zip(_COLUMNS, cells, strict=True)), **self.details}


class OutcomeFile:
    """The table of outcomes in a CSV file. Rows of earlier runs stay until they are replaced or removed by `keep`.

    An existing file is read, ValueError if it is something else. Spreadsheets interpret a cell that begins with = + - @
    as a formula, and file names are untrusted. Such text is written with a leading apostrophe, which is removed on
    reading (our choice).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, list[Outcome]] = {}
        if not path.exists():
            return
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                table = csv.DictReader(file)
                if tuple(table.fieldnames or ())[: len(_COLUMNS)] != _COLUMNS:
                    raise ValueError(f"its columns are not {', '.join(_COLUMNS)}")
                for row in table:
                    for name, value in row.items():
                        row[name] = value[1:] if value.startswith("'") and _FORMULA.match(value) else value
                    details = {
                        name: _NUMBERS.get(name, str)(value)
                        for name, value in row.items()
                        if name not in _COLUMNS and value
                    }
                    face = int(row["face"]) if row["face"] else None
                    outcome = Outcome(row["photo"], row["reason"], face, row["output"], details)
                    self._rows.setdefault(outcome.photo, []).append(outcome)
        except (OSError, ValueError, AttributeError, TypeError, csv.Error) as error:
            # Rows with too many or too few cells contain lists or None: AttributeError, TypeError.
            raise ValueError(
                f"{path} exists and is no list of an earlier run ({error}): choose another --out"
            ) from error

    def rows(self, photo: str) -> list[Outcome]:
        """Return the rows of one input."""
        return list(self._rows.get(photo, []))

    def all_rows(self) -> list[Outcome]:
        """Return the rows of all inputs."""
        return [row for rows in self._rows.values() for row in rows]

    def keep(self, photos: Collection[str]) -> None:
        """Remove the rows of all other inputs."""
        self._rows = {photo: rows for photo, rows in self._rows.items() if photo in photos}

    def replace(self, photo: str, outcomes: Sequence[Outcome]) -> None:
        """Set rows of an input; its earlier rows stay if they are done and name another output."""
        outputs = {outcome.output for outcome in outcomes}
        earlier = [row for row in self.rows(photo) if row.done and row.output not in outputs]
        self._rows[photo] = [*earlier, *outcomes]

    def write(self) -> None:
        """Write the file, or raise OutputError."""
        rows = self.all_rows()
        columns = list(dict.fromkeys((*_COLUMNS, *(name for row in rows for name in row.details))))
        with (
            replace_output(self.path, durable=True) as draft,
            draft.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            # By default a carriage return in a file name is not quoted, and the table cannot be read.
            table = csv.DictWriter(file, columns, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            table.writeheader()
            for row in (each.row for each in rows):
                texts = {name: cell for name, cell in row.items() if isinstance(cell, str)}
                table.writerow(row | {name: f"'{text}" for name, text in texts.items() if _FORMULA.match(text)})


def find_photos(
    paths: Sequence[Path], outside: Collection[Path] = (), same: Callable[[Path], Hashable] = Path.resolve
) -> tuple[list[FoundPhoto], list[Outcome]]:
    """Find photos: the given files, and the images below the given folders, sorted by path.

    Hidden and system files are skipped (`deocc.files.is_stray`). Symbolic links are followed.

    Args:
        paths: files and folders.
        outside: folders and files that are skipped, because results are written to them.
        same: photos for which it returns equal values count once; default: those that are the same file.

    Returns:
        The photos, and an outcome for each path that is missing or unreadable, each file that is no photo, and each
        empty folder.
    """
    photos: list[FoundPhoto] = []
    problems: list[Outcome] = []
    seen: set[Hashable] = set()
    names: set[str] = set()
    for given in paths:
        files, others = _list_files(given, outside)
        problems += others
        for file in files:
            if (value := same(file)) in seen:
                continue
            seen.add(value)
            relative = file.relative_to(given) if file != given else Path(file.name)
            name = unique = relative.with_suffix("").as_posix()
            number = 1
            # Some file systems take names for equal that differ in case or Unicode form only.
            while (key := unicodedata.normalize("NFC", unique).casefold()) in names:
                number += 1
                unique = f"{name}-{number}"
            names.add(key)
            photos.append(FoundPhoto(file, unique))
    return photos, problems


def _list_files(given: Path, outside: Collection[Path]) -> tuple[list[Path], list[Outcome]]:
    """List the photos of one command line argument, and an outcome for everything else below it."""
    files: list[Path] = []
    problems: list[Outcome] = []

    def report(error: OSError) -> None:
        path, reason = error.filename or given, error.strerror or error
        problems.append(Outcome(str(path), f"cannot read {path} ({reason}): check its permissions"))

    try:
        is_folder, exists = given.is_dir(), given.exists()
    except OSError as error:
        report(error)
        return files, problems
    if not exists:
        problems.append(Outcome(str(given), f"no photo or folder at {given}: check the path"))
    elif not is_folder:
        files.append(given)
    else:
        for name, _ in walk_files(given, report, outside):
            path = given / name
            if is_file(path) and is_photo(path):
                files.append(path)
            else:
                reason = f"{path} is no photo ({KNOWN_FORMATS} are read): convert it or remove it"
                problems.append(Outcome(str(path), reason))
        if not files and not problems:
            problems.append(Outcome(str(given), f"no photo in {given}: it holds no files, or only hidden ones"))
    return sorted(files), problems


def process_photos(
    command: str,
    found: tuple[Sequence[FoundPhoto], Sequence[Outcome]],
    table: OutcomeFile,
    work: Callable[[FoundPhoto], Sequence[Outcome]],
    as_json: bool = False,
) -> int:
    """Process the result of `find_photos` and record the outcomes in the table, also after Ctrl-C.

    Rows of other photos are removed. A photo that cannot be processed is reported, and the others are still processed.
    If a result cannot be written, for example on a full disk, processing stops with an OutputError: finished results
    stay, and the others are recorded as not reached.

    `work` returns at least one outcome of a photo, or raises one of `RECOVERABLE`. At the end a summary is printed, or
    the outcomes as a JSON list. Returns the exit code: 0 if all photos were processed, else 1.
    """
    photos, problems = found
    inputs = {problem.photo for problem in problems} | {str(photo.path) for photo in photos}
    recorded: dict[str, list[Outcome]] = {}  # by photo; a photo of a gallery may also be one to identify
    timer = WriteTimer(_WRITE_INTERVAL)

    def record(photo: str, outcomes: Sequence[Outcome]) -> None:
        recorded.setdefault(photo, []).extend(outcomes)
        table.replace(photo, recorded[photo])
        timer.call_when_due(table.write)
        for reason in dict.fromkeys(outcome.reason for outcome in outcomes if not outcome.done):
            say(reason)

    table.keep(inputs)
    try:
        for problem in problems:
            record(problem.photo, [problem])
        for photo in show_progress(photos, "photos"):
            with telling_warnings():
                try:
                    outcomes = work(photo)
                except OutputError:
                    raise
                except RECOVERABLE as error:
                    outcomes = [Outcome(str(photo.path), one_line(error) or f"{photo.path}: {type(error).__name__}")]
            record(str(photo.path), outcomes)
        table.write()
    except OutputError as error:
        done = _record_unreached(error, photos, table)
        message = f"{one_line(error)}; stopped after {done} of {len(photos)} photos, the same command goes on"
        raise OutputError(message) from error
    except KeyboardInterrupt:
        if recorded:
            table.write()
        raise
    left_out = [photo for photo, outcomes in recorded.items() if not all(outcome.done for outcome in outcomes)]
    if as_json:
        print(json.dumps([outcome.row for outcomes in recorded.values() for outcome in outcomes], indent=2))
    else:
        skipped = f", {len(left_out)} left out" if left_out else ""
        print(f"deocc {command}: {len(inputs) - len(left_out)} of {len(inputs)} done{skipped}: see {table.path}")
    return int(bool(left_out))


def _record_unreached(error: OutputError, photos: Sequence[FoundPhoto], table: OutcomeFile) -> int:
    """Record the photos that were not processed because of an error, and return how many are done.

    The table may be what cannot be written.
    """
    done = sum(any(row.done for row in table.rows(str(photo.path))) for photo in photos)
    for photo in photos:
        if not table.rows(str(photo.path)):
            table.replace(str(photo.path), [Outcome(str(photo.path), f"not reached: {one_line(error)}")])
    with suppress(OutputError):
        table.write()
    return done
