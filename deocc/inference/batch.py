"""Batch processing of photos: find the files, process each one, and record an outcome for every input."""

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track

from deocc.files import walk_files
from deocc.inference.outputs import Outcome, OutcomeFile, OutputError
from deocc.inference.photos import PHOTO_FORMATS, is_photo
from deocc.messages import one_line, say, telling_warnings

RECOVERABLE: Final = (ValueError, OSError, ImportError, RuntimeError, MemoryError)
"""Errors that leave out one photo of a batch; the others are still processed."""


@dataclass(frozen=True)
class FoundPhoto:
    """A photo to process.

    Attributes:
        path: the file.
        name: name of its results: the path within the given folder without suffix, separated by "/", or the name of a
            file that was given directly. Repeated names are numbered: `x`, `x-2`, ...
    """

    path: Path
    name: str


Work = Callable[[FoundPhoto], Sequence[Outcome]]


def find_photos(paths: Sequence[Path], outside: Path | None = None) -> tuple[list[FoundPhoto], list[Outcome]]:
    """Find photos: the given files, and the images below the given folders, sorted by path.

    Hidden and system files are skipped (`deocc.files.is_stray`). Symbolic links are followed. A file found twice counts
    once.

    Args:
        paths: files and folders, in the order of the command line.
        outside: a folder that is skipped, because results are written to it.

    Returns:
        The photos, and an outcome for each path that is missing or unreadable, each file that is no photo, and each
        empty folder.
    """
    photos: list[FoundPhoto] = []
    problems: list[Outcome] = []
    seen: set[Path] = set()
    names: set[str] = set()
    for given in paths:
        files, errors = _list_files(given, outside)
        problems += errors
        for file in files:
            if (target := file.resolve()) in seen:
                continue
            seen.add(target)
            name = file.relative_to(given) if file != given else Path(file.name)
            photos.append(FoundPhoto(file, _unique_name(name.with_suffix("").as_posix(), names)))
    return photos, problems


def _list_files(given: Path, outside: Path | None) -> tuple[list[Path], list[Outcome]]:
    """List the photos of one command line argument, and an outcome for everything else below it."""
    try:
        if not given.is_dir():
            missing = Outcome(str(given), f"no photo or folder at {given}: check the path")
            return ([given], []) if given.exists() else ([], [missing])
    except OSError as error:
        return [], [_unreadable(given, error)]
    files: list[Path] = []
    problems: list[Outcome] = []
    for name, entry in walk_files(
        given, lambda error: problems.append(_unreadable(Path(error.filename or given), error)), outside
    ):
        path = given / name
        if entry.is_file() and is_photo(path):
            files.append(path)
        else:
            reason = f"{path} is no photo ({', '.join((*PHOTO_FORMATS, 'HEIC'))} are read): convert it or remove it"
            problems.append(Outcome(str(path), reason))
    if not files and not problems:
        problems.append(Outcome(str(given), f"no photo in {given}: it holds no files, or only hidden ones"))
    return sorted(files), problems


def _unreadable(path: Path, error: OSError) -> Outcome:
    return Outcome(str(path), f"cannot read {path} ({error.strerror or error}): check its permissions")


def _unique_name(name: str, taken: set[str]) -> str:
    """Number a name that is taken, ignoring case and Unicode form as some file systems do."""
    number, unique = 1, name
    while (key := unicodedata.normalize("NFC", unique).casefold()) in taken:
        number += 1
        unique = f"{name}-{number}"
    taken.add(key)
    return unique


def process_photos(
    command: str,
    found: tuple[Sequence[FoundPhoto], Sequence[Outcome]],
    table: OutcomeFile,
    work: Work,
    as_json: bool = False,
) -> int:
    """Call `work` on each photo with a progress bar, and record the outcomes in the table; rows of other photos go.

    A photo that cannot be processed is reported on stderr and in the table, and the others are still processed. If a
    result cannot be written, for example on a full disk, processing stops: finished results stay, and the remaining
    photos are recorded as not reached.

    Args:
        command: name of the command, for the summary.
        found: the result of `find_photos`.
        table: receives the outcomes.
        work: processes one photo and returns at least one outcome. It may raise the errors of `RECOVERABLE`.
        as_json: print the outcomes as a JSON list instead of the summary.

    Returns:
        The exit code: 0 if all photos were processed, else 1.

    Raises:
        KeyboardInterrupt: after Ctrl-C; the table is written first.
    """
    photos, problems = found
    console = Console(stderr=True, soft_wrap=True)
    left_out: set[str] = set()
    rows: list[dict[str, object]] = []

    def record(photo: str, outcomes: Sequence[Outcome]) -> None:
        table.replace(photo, outcomes)
        table.write_when_due()
        rows.extend(outcome.row for outcome in outcomes)
        for reason in dict.fromkeys(outcome.reason for outcome in outcomes if not outcome.done):
            left_out.add(photo)
            say(reason)

    table.keep({problem.photo for problem in problems} | {str(photo.path) for photo in photos})
    try:
        for problem in problems:
            record(problem.photo, [problem])
        for photo in track(photos, "photos", console=console, transient=True, disable=not console.is_terminal):
            record(str(photo.path), _process(photo, work))
        table.write()
    except OutputError as error:
        _record_unreached(error, photos, table)
        return 1
    except KeyboardInterrupt:
        table.write()
        raise
    if as_json:
        print(json.dumps(rows, indent=2))
        return int(bool(left_out))
    total = len({problem.photo for problem in problems} | {str(photo.path) for photo in photos})
    skipped = f", {len(left_out)} left out" if left_out else ""
    print(f"deocc {command}: {total - len(left_out)} of {total} done{skipped}: see {table.path}")
    return int(bool(left_out))


def _process(photo: FoundPhoto, work: Work) -> Sequence[Outcome]:
    """Process one photo; a recoverable error becomes its outcome, warnings become messages."""
    with telling_warnings():
        try:
            return work(photo)
        except OutputError:
            raise
        except RECOVERABLE as error:
            return [Outcome(str(photo.path), one_line(error) or f"{photo.path}: {type(error).__name__}")]


def _record_unreached(error: OutputError, photos: Sequence[FoundPhoto], table: OutcomeFile) -> None:
    """Record the photos that were not processed because of an error, if the table can still be written."""
    done = sum(any(row.done for row in table.rows(str(photo.path))) for photo in photos)
    for photo in photos:
        if not table.rows(str(photo.path)):
            table.replace(str(photo.path), [Outcome(str(photo.path), f"not reached: {one_line(error)}")])
    say(f"{one_line(error)}; stopped after {done} of {len(photos)} photos, the same command goes on")
    try:
        table.write()
    except OutputError as another:
        say(str(another))
