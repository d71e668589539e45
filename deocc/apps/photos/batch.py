"""Many photos, one after the other: what one of them cannot give never stops the rest, and every one has its row."""

import warnings
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import track

from deocc.apps.photos.files import FoundPhoto
from deocc.apps.photos.outcomes import Outcome, OutcomeFile
from deocc.apps.photos.writing import OutputError

_HARMLESS = (ValueError, OSError, ImportError, RuntimeError, MemoryError)

Work = Callable[[FoundPhoto], Sequence[Outcome]]


def work_through(command: str, found: tuple[Sequence[FoundPhoto], Sequence[Outcome]], table: OutcomeFile, work: Work) -> int:
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
    print(f"deocc {command}: {total - len(left_out)} of {total} done{f', {len(left_out)} left out' if left_out else ''}: see {table.path}")
    return int(bool(left_out))


def _keep(photo: str, outcomes: Sequence[Outcome], table: OutcomeFile, left_out: set[str], console: Console) -> None:
    table.replace(photo, outcomes)
    table.write_when_due()
    for reason in dict.fromkeys(outcome.reason for outcome in outcomes if not outcome.done):
        left_out.add(photo)
        _say(reason, console)


def _outcomes(photos: Sequence[FoundPhoto], work: Work, console: Console) -> Iterator[tuple[FoundPhoto, Sequence[Outcome]]]:
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
