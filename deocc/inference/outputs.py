"""Result files of batch commands: PNG images, the CSV table of outcomes, and arrays in .npz files."""

import csv
import errno
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deocc.data.images import open_image
from deocc.files import cache_folder, checksum, hold_lock, read_npz, replace_file

_MARK: Final = "deocc"  # key of the mark in a PNG file
_COLUMNS: Final = ("photo", "face", "status", "reason", "output")
_FORMULA: Final = re.compile(r"'*(?:[=@\t\r]|[+-](?![\d.]+(?:e[+-]?\d+)?$))")
"""Start of a spreadsheet formula, but not of a number. Leading apostrophes count, so that escaping is reversible."""

_WRITE_INTERVAL: Final = 2.0  # seconds of outcomes that a killed process may lose


class OutputError(OSError):
    """A result cannot be written, for example because the disk is full. The message is one line."""


@contextmanager
def replace_output(path: Path, durable: bool = False) -> Iterator[Path]:
    """Write a result completely or not at all, as `deocc.files.replace_file`.

    Raises:
        OutputError: the file cannot be written.
        ValueError: the file name is too long, which concerns one photo only.
    """
    try:
        with replace_file(path, durable) as draft:
            yield draft
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"the name {path.name} is too long for this disk: rename the photo") from error
        raise OutputError(
            f"cannot write {path} ({error.strerror or error}): make room or choose another --out"
        ) from error


def check_out(out: Path, photos: Sequence[Path]) -> None:
    """Raise ValueError if the output folder is a file, or is one of the photo folders."""
    if any(photo.resolve() == out.resolve() for photo in photos):
        raise ValueError(f"--out {out} is the folder of the photos: choose a folder of its own, which may be inside it")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: choose a folder")


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Keep other commands of this machine from writing to an output folder.

    The lock file is in the cache folder, not among the results; if it cannot be created, there is no lock.

    Raises:
        ValueError: another command holds the lock.
    """
    path = cache_folder() / "locks" / f"out-{checksum(str(out.resolve()))[:16]}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(path, wait=False, required=False))
        except TimeoutError:
            raise ValueError(f"another deocc is at work in {out}: wait for it, or choose another --out") from None
        yield


def save_png(path: Path, image: NDArray[np.uint8], mark: str = "") -> None:
    """Write an image, (H, W, 3) in sRGB or (H, W) grey, as PNG, replacing an existing file.

    Args:
        path: the file; its folder is created.
        image: the pixels.
        mark: text stored in the file, which `read_mark` returns; it identifies what the image was made from.

    Raises:
        OutputError: the file cannot be written.
    """
    note = PngInfo()
    note.add_text(_MARK, mark)
    if image.ndim == 3:
        note.add(b"sRGB", b"\0")  # the standard's tag for colours in sRGB, with the perceptual rendering intent
    with replace_output(path) as draft:
        Image.fromarray(image).save(draft, format="PNG", pnginfo=note)


def read_mark(path: Path) -> str | None:
    """Return the mark that `save_png` stored in a file; None if there is no mark or no readable file."""
    try:
        with open_image(path, ("PNG",)) as image:
            mark = image.info.get(_MARK)
    except Exception:  # Pillow raises almost anything for a damaged file
        return None
    return mark if isinstance(mark, str) else None


def save_marked(out: Path, images: Mapping[str, NDArray[np.uint8]], mark: str, conflict: str) -> None:
    """Write images by file name below `out`, in this order; none if a file with another mark exists.

    Raises:
        ValueError: such a file exists; the message contains the text `conflict`.
        OutputError: a file cannot be written.
    """
    for name in images:
        if (out / name).exists() and read_mark(out / name) != mark:
            raise ValueError(f"{out / name} exists and was made {conflict}: choose another --out")
    for name, image in images.items():
        save_png(out / name, image, mark)


@dataclass(frozen=True)
class Outcome:
    """One row of the table: what was made of a photo or of one of its faces, or why it was left out.

    Attributes:
        photo: path of the input.
        reason: one line that explains why it was left out; empty if it was processed.
        face: number of the face in the photo, from 1, most prominent first; None for the whole input.
        output: the result file relative to the table's folder; empty if there is none.
        details: further columns.
    """

    photo: str
    reason: str = ""
    face: int | None = None
    output: str = ""
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the input was processed."""
        return not self.reason

    @property
    def row(self) -> dict[str, object]:
        """Cells by column."""
        status = "done" if self.done else "left out"
        cells = (self.photo, self.face, status, self.reason, self.output)
        return {**dict(zip(_COLUMNS, cells, strict=True)), **self.details}


class OutcomeFile:
    """The table of outcomes in a CSV file. Rows of earlier runs stay until they are replaced or removed by `keep`.

    Spreadsheets interpret a cell that begins with = + - @ as a formula, and file names are untrusted. Such text is
    written with a leading apostrophe, which is removed on reading (our choice).

    Args:
        path: the file; an existing one is read.

    Raises:
        ValueError: the existing file is not such a table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, list[Outcome]] = {}
        self._written = time.monotonic()
        if path.exists():
            for outcome in _read_outcomes(path):
                self._rows.setdefault(outcome.photo, []).append(outcome)

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

    def write_when_due(self) -> None:
        """Write the file if the last time was more than two seconds ago."""
        if time.monotonic() - self._written > _WRITE_INTERVAL:
            self.write()

    def write(self) -> None:
        """Write the file.

        Raises:
            OutputError: it cannot be written; the earlier file is unchanged.
        """
        rows = self.all_rows()
        columns = list(dict.fromkeys((*_COLUMNS, *(name for row in rows for name in row.details))))
        with (
            replace_output(self.path, durable=True) as draft,
            draft.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            for row in rows:
                table.writerow({name: _escape(value) for name, value in row.row.items()})
        self._written = time.monotonic()


def _escape(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _unescape(value: str) -> str:
    return value[1:] if value.startswith("'") and _FORMULA.match(value) else value


def _read_outcomes(path: Path) -> list[Outcome]:
    outcomes = []
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.DictReader(file)
            if tuple(table.fieldnames or ())[: len(_COLUMNS)] != _COLUMNS:
                raise ValueError(f"its columns are not {', '.join(_COLUMNS)}")
            for written in table:
                row = {name: _unescape(value) for name, value in written.items()}
                details = {name: value for name, value in row.items() if name not in _COLUMNS and value}
                face = int(row["face"]) if row["face"] else None
                outcomes.append(Outcome(row["photo"], row["reason"], face, row["output"], details))
    except (OSError, ValueError, AttributeError, TypeError, csv.Error) as error:
        # Rows with too many or too few cells contain lists or None: AttributeError, TypeError.
        raise ValueError(f"{path} exists and is no list of an earlier run ({error}): choose another --out") from error
    return outcomes


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name to an .npz file.

    Raises:
        OutputError: it cannot be written; an earlier file is unchanged.
    """
    with replace_output(path) as draft, draft.open("wb") as file:
        np.savez(file, **cast(Any, arrays))


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read arrays by name from an .npz file; pickles are refused.

    Raises:
        ValueError: the file cannot be read or lacks an array; the message is the reason only.
    """
    arrays = read_npz(path, lambda name: name in names)
    if len(arrays) < len(names):
        raise ValueError(f"it lacks {', '.join(name for name in names if name not in arrays)}")
    return arrays


def check_rows(arrays: Mapping[str, NDArray[Any]], kinds: Mapping[str, tuple[str, int]]) -> None:
    """Check that arrays are columns of one table with at least one row and finite numbers.

    Args:
        arrays: by name.
        kinds: NumPy kind ("U", "i", "f") and number of dimensions of each column.

    Raises:
        ValueError: they are not; the message is the reason only.
    """
    lengths = {arrays[name].shape[:1] for name in kinds}
    for name, (kind, dimensions) in kinds.items():
        array = arrays[name]
        if array.dtype.kind != kind or array.ndim != dimensions or array.size == 0 or len(lengths) > 1:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, no column of such a table")
        if kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite")
