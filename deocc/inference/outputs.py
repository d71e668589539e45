"""Arrays by name in NumPy's .npz files: written whole or not at all, and read without ever running a pickle."""

import csv
import errno
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deocc.data.images import open_image
from deocc.evaluation.scores import read_npz
from deocc.runs import cache_folder

_MARK: Final = "deocc"


class OutputError(OSError):
    """A result cannot be written: the disk is full, or the folder may not be written to. The message is one line."""


@contextmanager
def writing_to(path: Path, draft: Path) -> Iterator[None]:
    """While this is open, write `draft`, which lies in the folder of `path`; it becomes `path` at the end, or goes away after an error.

    Raises:
        OutputError: anything that the system refuses.
        ValueError: the path's name is too long for the disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"the name {path.name} is too long for this disk: rename the photo") from error
        raise OutputError(
            f"cannot write {path} ({error.strerror or error}): make room or choose another --out"
        ) from error


def save_png(path: Path, image: NDArray[np.uint8], mark: str = "") -> None:
    """Write an image, (H, W, 3) RGB or (H, W) grey, as PNG with its folders.

    Args:
        path: where to; an existing file is replaced, so ask `read_mark` first.
        image: the pixels.
        mark: a word that is kept in the file, from which `read_mark` tells what the file was made from.

    Raises:
        OutputError: it cannot be written; then there is no half file.
    """
    note = PngInfo()
    note.add_text(_MARK, mark)
    draft = path.with_name(f".{uuid.uuid4().hex}.tmp")
    with writing_to(path, draft):
        Image.fromarray(image).save(draft, format="PNG", pnginfo=note)


def read_mark(path: Path) -> str | None:
    """The word that `save_png` put into a file; None where there is none, or no such file."""
    try:
        with open_image(path, ("PNG",)) as image:
            mark = image.info.get(_MARK)
    except Exception:  # a damaged file makes Pillow fail in any way, and is not ours
        return None
    return mark if isinstance(mark, str) else None


def check_out(out: Path, photos: Sequence[Path]) -> None:
    """Raise ValueError where `out` is a file, or the very folder that the photos lie in."""
    if any(photo.resolve() == out.resolve() for photo in photos):
        raise ValueError(f"--out {out} is the folder of the photos: choose a folder of its own, which may lie in it")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: choose a folder")


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Keep other commands of this machine out of a folder meanwhile: two would replace each other's tables by their own.

    The lock lies in the cache folder, so that nothing of it is among the results; where that cannot be written to, there is none.

    Raises:
        ValueError: another command is at work there.
    """
    lock = FileLock(
        cache_folder() / "locks" / f"out-{hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]}.lock"
    )
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another deocc is at work in {out}: wait for it, or choose another --out") from None
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


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
    return {
        name: f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value for name, value in row.items()
    }


def _read(path: Path) -> Iterable[Outcome]:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.DictReader(file)
            if tuple(table.fieldnames or ())[: len(_COLUMNS)] != _COLUMNS:
                raise ValueError(f"its columns are not {', '.join(_COLUMNS)}")
            return [_as_outcome(row) for row in table]
    except (
        OSError,
        ValueError,
        AttributeError,
        TypeError,
        csv.Error,
    ) as error:  # rows of more or fewer cells hold lists or nothing
        raise ValueError(f"{path} exists and is no list of an earlier run ({error}): choose another --out") from error


def _as_outcome(written: dict[str, str]) -> Outcome:
    row = {
        name: value[1:] if value.startswith("'") and _FORMULA.match(value) else value for name, value in written.items()
    }
    details = {name: value for name, value in row.items() if name not in _COLUMNS and value}
    face = int(row["face"]) if row["face"] else None
    return Outcome(row["photo"], row["reason"], face, row["output"], details)


@contextmanager
def drafting(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end, or goes away after an error.

    Raises:
        OutputError: anything that the system refuses.
    """
    draft = path.with_name(f".{uuid.uuid4().hex}.tmp")
    with writing_to(path, draft):
        yield draft


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the file, in place of a former one.

    Raises:
        OutputError: it cannot be written; the former one is still there.
    """
    with drafting(path) as draft, draft.open("wb") as file:
        np.savez(file, **cast(Any, arrays))


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of these names.

    Raises:
        ValueError: the file cannot be read, is something else, or lacks one; the message is the reason alone.
    """
    arrays = read_npz(path, lambda name: name in names)
    if len(arrays) < len(names):
        raise ValueError(f"it lacks {', '.join(name for name in names if name not in arrays)}")
    return arrays


def check_rows(arrays: Mapping[str, NDArray[Any]], kinds: Mapping[str, tuple[str, int]]) -> None:
    """Check that arrays are columns of one table: as many rows in each, at least one, and finite numbers.

    Args:
        arrays: by name.
        kinds: the columns' NumPy kinds ("U", "i", "f") and numbers of dimensions.

    Raises:
        ValueError: they are not; the message is the reason alone.
    """
    rows = {name: arrays[name].shape[:1] for name in kinds}
    for name, (kind, dimensions) in kinds.items():
        array = arrays[name]
        if array.dtype.kind != kind or array.ndim != dimensions or array.size == 0 or len(set(rows.values())) > 1:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, no column of such a table")
        if kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite")
