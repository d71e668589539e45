"""Many photos, one after the other: what one of them cannot give never stops the rest, and every one has its row."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track

from deocc.data.images import IMAGE_SUFFIXES
from deocc.inference.outputs import Outcome, OutcomeFile, OutputError

PHOTO_SUFFIXES: Final = IMAGE_SUFFIXES | {".avif", ".gif", ".heic", ".heif", ".jfif"}


@dataclass(frozen=True)
class FoundPhoto:
    """A file to work on.

    Attributes:
        path: where it lies.
        name: what its results are called: the path within the folder that was given, without suffix, with "/"; of a file that was given by
            itself the file's name. Equal names are numbered from the second on, `x`, `x-2`, so that none overwrites another's results.
    """

    path: Path
    name: str


def find_photos(paths: Sequence[Path], outside: Path | None = None) -> tuple[list[FoundPhoto], list[Outcome]]:
    """The files as given, and the photos in the given folders and theirs, sorted by path.

    In folders, hidden files and files without an image's suffix are no photos. A file that is met twice counts once.

    Args:
        paths: files and folders, in the order of the command line.
        outside: a folder whose content is never taken: where results go, lest they be taken for photos next time.

    Returns:
        The photos, and a row for each path or folder that gave none: it is missing, empty, or may not be read.
    """
    photos: list[FoundPhoto] = []
    problems: list[Outcome] = []
    seen: set[Path] = set()
    names: set[str] = set()
    for given in paths:
        files, errors = _look(given, outside)
        problems += errors
        for file in files:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                name = file.relative_to(given) if file != given else Path(file.name)
                photos.append(FoundPhoto(file, _free(name.with_suffix("").as_posix(), names)))
    return photos, problems


def _look(given: Path, outside: Path | None) -> tuple[list[Path], list[Outcome]]:
    try:
        folder = given.is_dir()
        if not folder and not given.exists():
            return [], [Outcome(str(given), f"no photo or folder at {given}: check the path")]
    except OSError as error:
        return [], [_unreadable(given, error)]
    return _walk(given, outside) if folder else ([given], [])


def _walk(folder: Path, outside: Path | None) -> tuple[list[Path], list[Outcome]]:
    errors: list[OSError] = []
    avoided = None if outside is None else outside.resolve()
    files: list[Path] = []
    met = {avoided, folder.resolve()}  # links are followed, but never in a circle
    for root, folders, names in os.walk(folder, onerror=errors.append, followlinks=True):
        inner = {
            Path(root) / name: (Path(root) / name).resolve() for name in sorted(folders) if not name.startswith(".")
        }
        folders[:] = [path.name for path, real in inner.items() if real not in met]
        met.update(inner.values())
        files += [Path(root) / name for name in names if _is_photo(name)]
    problems = [_unreadable(Path(error.filename or folder), error) for error in errors]
    if not files and not problems:
        problems.append(
            Outcome(str(folder), f"no photo in {folder}: looked for the endings {_endings(PHOTO_SUFFIXES)}")
        )
    return sorted(files), problems


def _is_photo(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in PHOTO_SUFFIXES


def _endings(suffixes: Iterable[str]) -> str:
    return ", ".join(sorted(suffixes))


def _unreadable(path: Path, error: OSError) -> Outcome:
    return Outcome(str(path), f"cannot read {path} ({error.strerror or error}): check its permissions")


def _free(name: str, taken: set[str]) -> str:
    """The name, numbered where it is taken; some file systems do not tell upper from lower case."""
    number, free = 1, name
    while free.casefold() in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free.casefold())
    return free


_HARMLESS = (ValueError, OSError, ImportError, RuntimeError, MemoryError)

Work = Callable[[FoundPhoto], Sequence[Outcome]]


def work_through(
    command: str, found: tuple[Sequence[FoundPhoto], Sequence[Outcome]], table: OutcomeFile, work: Work
) -> int:
    """Do `work` on each photo, show the progress, and keep the table.

    A photo that cannot be worked on is left out with one line on the error stream and in the table. A result that cannot be written, as on
    a full disk, ends the work: what is done stays, and the photos that were not reached have rows which say so.

    Args:
        command: its name, for the last line.
        found: what `find_photos` returned.
        table: takes the outcomes.
        work: makes the results of one photo and returns its rows, at least one. It may raise ValueError, OSError, ImportError, RuntimeError
            or MemoryError, with one line as the message.

    Returns:
        The exit code: 0 = all done, 1 = something was left out.

    Raises:
        KeyboardInterrupt: after Ctrl-C; the table is written.
    """
    console = Console(stderr=True, soft_wrap=True)
    photos, problems = found
    total = len({problem.photo for problem in problems} | {str(photo.path) for photo in photos})
    left_out: set[str] = set()
    try:
        for outcome in problems:
            _keep(outcome.photo, [outcome], table, left_out, console)
        for photo, outcomes in _outcomes(photos, work, console):
            _keep(str(photo.path), outcomes, table, left_out, console)
        table.write()
    except OutputError as error:
        return _stopped(error, photos, table, console)
    except KeyboardInterrupt:
        table.write()
        raise
    print(
        f"deocc {command}: {total - len(left_out)} of {total} done{f', {len(left_out)} left out' if left_out else ''}: see {table.path}"
    )
    return int(bool(left_out))


def _keep(photo: str, outcomes: Sequence[Outcome], table: OutcomeFile, left_out: set[str], console: Console) -> None:
    table.replace(photo, outcomes)
    table.write_when_due()
    for reason in dict.fromkeys(outcome.reason for outcome in outcomes if not outcome.done):
        left_out.add(photo)
        _say(reason, console)


def _outcomes(
    photos: Sequence[FoundPhoto], work: Work, console: Console
) -> Iterator[tuple[FoundPhoto, Sequence[Outcome]]]:
    for photo in track(photos, "photos", console=console, transient=True, disable=not console.is_terminal):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            outcomes = _attempt(photo, work)
        for warning in caught:
            _say(str(warning.message), console)
        yield photo, outcomes


def _attempt(photo: FoundPhoto, work: Work) -> Sequence[Outcome]:
    try:
        return work(photo)
    except OutputError:
        raise
    except _HARMLESS as error:
        return [Outcome(str(photo.path), _line(str(error)) or f"{photo.path}: {type(error).__name__}")]


def _stopped(error: OutputError, photos: Sequence[FoundPhoto], table: OutcomeFile, console: Console) -> int:
    """Rows for what was not reached, as far as they can still be written."""
    done = sum(any(row.done for row in table.rows(str(photo.path))) for photo in photos)
    for photo in photos:
        if not table.rows(str(photo.path)):
            table.replace(str(photo.path), [Outcome(str(photo.path), f"not reached: {_line(str(error))}")])
    _say(f"{_line(str(error))}; stopped after {done} of {len(photos)} photos, the same command goes on", console)
    try:
        table.write()
    except OutputError as another:
        _say(_line(str(another)), console)
    return 1


def _say(line: str, console: Console) -> None:
    console.print(f"deocc: {line}", markup=False, highlight=False)


def _line(text: str) -> str:
    return " ".join(text.split())
