"""Where a run logs to: always `metrics.csv` in its folder, which the report draws its loss curves from, and what the configuration adds."""

import atexit
import contextlib
import csv
import io
import itertools
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jsonargparse import Namespace
from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from deocc import runs
from deocc.evaluation.results import ROWS


class WriteFaults:
    """Takes the errors of writes that must not end a training.

    Of each path a line on stderr tells the first error, and then the first success. Nothing is said in between.
    """

    def __init__(self) -> None:
        self._failing: set[Path] = set()
        self._entered: set[Path] = set()

    @contextlib.contextmanager
    def spared(self, path: Path, meanwhile: str) -> Iterator[None]:
        """Run a write to `path`; an OSError ends the block, not the training. Of blocks within each other the outer one counts.

        Args:
            path: what the line names: the file, or the folder of files that are each written once.
            meanwhile: what becomes of the content, such as "its rows are kept and written as soon as that works".
        """
        if path in self._entered:
            yield
            return
        self._entered.add(path)
        try:
            yield
        except OSError as error:
            if path not in self._failing:
                self._failing.add(path)
                reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
                advice = "make room or make it writable"
                print(
                    f"deocc: cannot write {path} ({reason}): training goes on; {advice}; {meanwhile}",
                    file=sys.stderr,
                    flush=True,
                )
        else:
            if path in self._failing:
                self._failing.remove(path)
                print(f"deocc: {path} can be written again", file=sys.stderr, flush=True)
        finally:
            self._entered.remove(path)


def write_whole(path: Path, content: bytes) -> None:
    """Put a file there as a whole, so that neither a kill nor a full disk leaves half of one; its folder is made.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    draft = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def add_whole(path: Path, content: bytes) -> None:
    """Add to a file's end in one write, all of the content or nothing; the file is made where there is none.

    Raises:
        OSError: it cannot be written; a part that the disk took is cut off again.
    """
    with path.open("ab", buffering=0) as file:
        end, rest = file.tell(), memoryview(content)
        try:
            while rest:  # a disk that fills up takes a part; the next write says why
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


_VERSION: Final = "brain.Event:2"
_STAMP: Final = re.compile(r"events\.out\.tfevents\.(\d+)\.")
_numbers = itertools.count()


class EventFileWriter(SummaryWriter):
    """A SummaryWriter whose events wait in memory where the file cannot be written."""

    def restart(self, step: int) -> None:
        """Mark that training begins anew at `step`: TensorBoard hides what it has of `step` and above."""
        self._get_file_writer().add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)
        self.flush()

    def _get_file_writer(self) -> Any:
        if self.file_writer is None:
            writer: Any = _FileWriter(self.log_dir)
            writers: Any = {self.log_dir: writer}
            self.file_writer, self.all_writers = writer, writers
        return self.file_writer


class _FileWriter(FileWriter):
    def __init__(self, log_dir: str) -> None:
        self.event_writer = _EventFile(Path(log_dir))


class _EventFile:
    """What FileWriter asks of TensorBoard's EventFileWriter."""

    def __init__(self, folder: Path) -> None:
        stamps = [int(found[1]) for path in folder.glob("events.out.tfevents.*") if (found := _STAMP.match(path.name))]
        stamp = max(
            [int(time.time()), *stamps]
        )  # files are read in the order of their names, and a clock may have been set back
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._path, self._waiting, self._faults = folder / name, io.BytesIO(), WriteFaults()
        self.add_event(Event(wall_time=time.time(), file_version=_VERSION))

    def get_logdir(self) -> str:
        return str(self._path.parent)

    def add_event(self, event: Any) -> None:
        RecordWriter(self._waiting).write(event.SerializeToString())

    def flush(self) -> None:
        if self._waiting.tell() > 0:
            with self._faults.spared(self._path, "what is logged is kept and written as soon as that works"):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                add_whole(self._path, self._waiting.getvalue())
                self._waiting = io.BytesIO()

    def close(self) -> None:
        self.flush()

    def reopen(self) -> None:
        """Nothing: the file is open only while it is written."""


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
        self._instead: list[Row] | None = (
            None  # the rows that a new file must begin with, where the one there is not to be added to
        )
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
        if (
            self._instead is None
            and self.metrics_keys == _columns(self.metrics, self.metrics_keys)
            and self._file.is_file()
        ):
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


if TYPE_CHECKING:
    pass


class TensorBoardRunLogger(TensorBoardLogger):
    """A TensorBoardLogger that goes on where its file cannot be written, and whose curves show each step of a resumed run once."""

    @property
    @rank_zero_experiment
    def experiment(self) -> "EventFileWriter":
        """What writes the event file."""
        if self._experiment is None:
            pass

            self._experiment = EventFileWriter(log_dir=self.log_dir, **self._kwargs)
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def save(self) -> None:
        """Write what is not in the file yet, if possible; else it waits for the next call."""
        self.experiment.flush()

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Tell TensorBoard to hide what was logged of the batches from `step` on, which a resumed training is about to repeat."""
        if step > 0:
            self.experiment.restart(step)


WANDB_ID = "deocc_run_id"
"""The file in a run's `wandb/` that holds its W&B id, so that resuming and testing go on in the same W&B run."""

BEST = {f"val/{row}/{score}": best for row in ROWS for score, best in (("eer", "min"), ("rank1", "max"))} | {
    f"val/{source}/{score}": "max" for source in ("given_mask", "predicted_mask") for score in ("psnr", "ssim")
}
"""The validation scores whose best value a W&B run's summary keeps beside the last one, and which value is the best."""

_STEP_wandb_logger: Final = (
    "trainer/global_step"  # WandbLogger's horizontal axis; a metric with a definition of its own loses the general one
)
_PATIENCE: Final = "WANDB_FINISH_TIMEOUT"
_SECONDS: Final = "60"  # OURS: wandb itself waits until the server answers, for hours or for ever
_ID: Final = re.compile(r"r[0-9a-f]{8}")
_FOLDER: Final = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(r[0-9a-f]{8})")


class WandbRunLogger(WandbLogger):
    """A WandbLogger that goes on offline where W&B does not answer at the start, and whose summary keeps the scores in `BEST`.

    A connection that is lost later stops nothing: wandb writes to the run folder first and tries again by itself. At the end of the
    process it gets WANDB_FINISH_TIMEOUT seconds to upload the rest, 60 unless the environment says otherwise. Where the disk is full, a
    picture that finds no room is left out; wandb's own file ends for good, so that an offline run has no more than that.

    A resumed run goes on in its W&B run. What it repeats since its checkpoint W&B shows twice, at the same step and with the same value:
    a row that W&B has cannot be taken back, and which rows have reached it is not known here. So it is with `wandb sync` of a run that was
    uploaded in part.

    Args:
        project: the W&B project.
        entity: the W&B user or team; None for the key's own.
        name: of the W&B run.
        group: the runs that the dashboard shows together.
        job_type: what the run does.
        kwargs: of WandbLogger.
    """

    def __init__(
        self,
        project: str = "deocc",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(project=project, entity=entity, name=name, group=group, job_type=job_type, **kwargs)
        self._faults = WriteFaults()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run."""
        if self._experiment is None:
            os.environ.setdefault(_PATIENCE, _SECONDS)
            run = self._begin()
            atexit.register(self.finish)  # before wandb's own, which waits as long, but says nothing
            for name, best in BEST.items():
                run.define_metric(name, step_metric=_STEP_wandb_logger, step_sync=True, summary=f"{best},last")
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers and media; where the disk takes no media, or wandb's process is gone, training goes on without."""
        with self._spared():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log pictures, if the disk takes them."""
        with self._spared():
            super().log_image(key, images, step, **kwargs)

    @rank_zero_only
    def finish(self) -> None:
        """End the W&B run, and say where all of it lies if the server does not take it in time."""
        atexit.unregister(self.finish)
        run, begun, late = self._experiment, time.monotonic(), True
        if run is None:
            return
        try:
            with self._spared():
                run.finish()
                late = 0 < float(os.environ.get(_PATIENCE, _SECONDS)) <= time.monotonic() - begun
        finally:
            if late:
                folder = Path(run.dir).parent
                advice = f"`wandb sync --include-online {folder}` uploads it"  # without the option, wandb passes over runs begun online
                print(f"deocc: W&B did not take all of the run; it lies in {folder}, and {advice}", flush=True)

    def _spared(self) -> contextlib.AbstractContextManager[None]:
        return self._faults.spared(Path(str(self.save_dir)) / "wandb", "metrics.csv goes on")

    def _begin(self) -> Any:
        import wandb

        try:
            return super().experiment
        except wandb.errors.CommError as error:
            reason = " ".join(str(error).split())
            wandb.teardown()  # the attempt that failed holds the run's id
            os.environ["WANDB_MODE"] = "offline"
            print(
                f"deocc: W&B does not answer ({reason}), logging offline to {self.save_dir}/wandb; `wandb sync` uploads it",
                flush=True,
            )
            return super().experiment


def wandb_id(home: Path) -> str:
    """The id of the W&B run that belongs to a run folder; a new one where there is none yet.

    A file that a crash of the machine emptied or cut is written again, from the name of the newest folder in `wandb/`: it ends in the id.
    """
    path = home / "wandb" / WANDB_ID
    if (kept := _kept_id(path)) is not None:
        return kept
    begun = [found.groups() for folder in path.parent.glob("*run-*") if (found := _FOLDER.fullmatch(folder.name))]
    wanted = (
        max(begun)[1] if begun else f"r{secrets.token_hex(4)}"
    )  # the letter keeps a parser from reading 269e7080 as a number
    if path.exists():
        write_whole(path, wanted.encode())
    else:
        _write_first(path, wanted)
    return _kept_id(path) or wanted


def _kept_id(path: Path) -> str | None:
    text = path.read_text(errors="replace") if path.is_file() else ""
    return text if _ID.fullmatch(text) else None


def _write_first(path: Path, wanted: str) -> None:
    draft = path.with_name(f"{WANDB_ID}.{secrets.token_hex(8)}")
    write_whole(draft, wanted.encode())
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)  # of several processes the first one names the run
    draft.unlink()


__all__ = ["BEST", "WANDB_ID", "MetricsLogger", "TensorBoardRunLogger", "WandbRunLogger", "place_loggers"]

_JOBS = {"InpaintingModule": "inpaint", "DistillationModule": "distill"}


def place_loggers(trainer: Namespace, folder: Path, subfolder: str, home: Path, model: str) -> None:
    """Point the configured loggers to `folder/subfolder` and put a MetricsLogger first; `logger: false` stays without any.

    Args:
        trainer: the trainer's part of the configuration, changed in place.
        folder: the run folder that is written to.
        subfolder: an evaluation's own, so that training's files stay as they are; empty for training.
        home: the run folder whose W&B run this belongs to: that run takes its name, and its parent's as the group, unless configured.
        model: the class path of the module, from which the W&B run's job type follows: "inpaint" or "distill"; that of an evaluation
            of no trained run is the evaluation's name.
    """
    if trainer.logger is False:
        return
    configured = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    others = [logger for logger in configured if isinstance(logger, Namespace) and not _writes_csv(logger)]
    name = f"{__name__}.{MetricsLogger.__name__}"  # as configurations name it
    trainer.logger = [Namespace(class_path=name, init_args=Namespace()), *others]  # type: ignore[no-untyped-call]
    for logger in trainer.logger:
        if _writes_wandb(logger):
            _go_offline_without_key(folder)
            trained = not subfolder or (home / runs.CONFIG).is_file()
            _name_wandb_run(logger.init_args, home, _job_type(model) if trained else subfolder)
        else:
            logger.init_args.name, logger.init_args.version = "", subfolder
        logger.init_args.save_dir = str(folder)


def _writes_csv(logger: Namespace) -> bool:
    return logger.class_path.rsplit(".", 1)[-1] in {"CSVLogger", MetricsLogger.__name__}


def _writes_wandb(logger: Namespace) -> bool:
    return logger.class_path.rsplit(".", 1)[-1] in {"WandbLogger", WandbRunLogger.__name__}


def _job_type(model: str) -> str:
    name = model.rsplit(".", 1)[-1]
    return _JOBS.get(name, name)


def _name_wandb_run(settings: Namespace, home: Path, job: str) -> None:
    """Tell W&B which run to go on in, what it is called and what it does.

    A saved configuration holds the name and group that its own run folder gave it. Those are not kept as if somebody had chosen them.
    """
    saved, home = Path(settings.get("save_dir") or ".").absolute(), home.absolute()
    if settings.get("name") in (None, saved.name):
        settings.name = home.name
    if settings.get("group") in (None, saved.parent.name):
        settings.group = home.parent.name
    settings.id, settings.job_type = wandb_id(home), job
    if "resume" in settings:
        settings.resume = "allow"  # the parser gives a bare WandbLogger None in place of its own default, and W&B would write over the run


def _go_offline_without_key(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)  # wandb falls back to a temporary folder where its own is missing
    if not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") or (Path.home() / ".netrc").is_file()):
        os.environ["WANDB_MODE"] = "offline"
        print(
            f"deocc: no W&B key, logging offline to {folder / 'wandb'}; `wandb login`, then `wandb sync` uploads it",
            flush=True,
        )
