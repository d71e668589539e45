"""`metrics.csv`: a row of numbers an entry, of which an interrupted and resumed run has those of one in one go, byte for byte."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from deocc.callbacks.write_faults import WriteFaults, add_whole, write_whole

_STEP: Final = "step"
_KEPT: Final = "its rows are kept and written as soon as that works"

Row = Mapping[str, Any]


class MetricsLogger(CSVLogger):
    """A CSVLogger that adds to a `metrics.csv` where Lightning's deletes it, and that neither a kill nor a full disk damages.

    A row is added in one write, and columns by a new file in place of the old. Where the file cannot be written, training goes on and the
    rows wait in memory.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsWriter":
        """What writes the file."""
        if self._experiment is None:
            self._experiment = MetricsWriter(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drop the rows of the batches from `step` on, which a resumed training is about to repeat.

        Lightning logs a batch, and the validation after it, under the number of batches that stepped before it. A training that goes on
        from a checkpoint of `step` batches repeats the rows of `step` and above; those of the validation before the checkpoint carry
        `step - 1` and stay.

        Args:
            step: the number of batches that the checkpoint had stepped; 0 drops all rows.
        """
        self.experiment.forget_after(step)


class MetricsWriter(ExperimentWriter):
    """Holds the rows that are not in the file yet, and writes them."""

    def __init__(self, log_dir: str) -> None:
        """Go on in the file that lies in `log_dir`, without the part of a row at its end that a kill has left."""
        self._faults = WriteFaults()
        self._instead: list[Row] | None = None  # the rows that a new file must begin with, where the one there is not to be added to
        super().__init__(log_dir=log_dir)

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write `hparams.yaml`, if possible."""
        with self._faults.spared(Path(self.log_dir) / self.NAME_HPARAMS_FILE, "the run's config.yaml holds the same"):
            super().log_hparams(params)

    def save(self) -> None:
        """Write the rows that are not in the file yet, if possible; else they wait for the next call."""
        if self.metrics or self._instead is not None:
            with self._faults.spared(self._file, _KEPT):
                self._write()

    def forget_after(self, step: int) -> None:
        """Drop the rows of `step` and above, in the file and in memory."""
        rows = _read(self._file)[1] if self._instead is None else self._instead
        kept = [row for row in rows if int(row[_STEP]) < step]
        self.metrics = [row for row in self.metrics if row[_STEP] < step]
        if len(kept) < len(rows) or _columns(kept) != self.metrics_keys:
            self._instead = kept
        self.save()

    @property
    def _file(self) -> Path:
        return Path(self.metrics_file_path)

    def _check_log_dir_exists(self) -> None:
        """Where Lightning deletes the file, read it."""
        self.metrics_keys, rows, intact = _read(self._file)
        if not intact:
            self._instead = rows

    def _write(self) -> None:
        if self._instead is None and self.metrics_keys == _columns(self.metrics, self.metrics_keys) and self._file.is_file():
            add_whole(self._file, _text(self.metrics, self.metrics_keys))
        else:
            rows = [*(_read(self._file)[1] if self._instead is None else self._instead), *self.metrics]
            keys = _columns(rows)
            write_whole(self._file, _text([dict(zip(keys, keys, strict=True)), *rows], keys))
            self.metrics_keys = keys
        self.metrics, self._instead = [], None


def _columns(rows: Iterable[Row], known: Sequence[str] = ()) -> list[str]:
    """The columns in which there is a value, in the order of Lightning's file."""
    return sorted({*known, *(key for row in rows for key, value in row.items() if value != "")})


def _text(rows: Iterable[Row], keys: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, keys, extrasaction="ignore").writerows(rows)
    return text.getvalue().encode()


def _read(path: Path) -> tuple[list[str], list[Row], bool]:
    """The columns and the whole rows of the file, and whether that is all that is in it; nothing, and True, where there is no file."""
    if not path.is_file():
        return [], [], True
    *lines, rest = path.read_bytes().decode(errors="replace").split("\n")
    keys, *body = [_cells(line) for line in lines] or [[]]
    rows = [dict(zip(keys, cells, strict=True)) for cells in body if len(cells) == len(keys)]
    whole: list[Row] = [row for row in rows if row.get(_STEP, "").isdecimal()]
    return keys, whole, not rest and len(whole) == len(body) and _STEP in keys


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line.removesuffix("\r")], strict=True), [])
    except csv.Error:  # of bytes that a crash of the machine left
        return []
