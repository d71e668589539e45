"""Loggers of a run: always `metrics.csv` in its folder, and what the configuration adds (TensorBoard, W&B)."""

import csv
import importlib.util
import io
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytorch_lightning as pl
from jsonargparse import Namespace
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from deocc import processes, runs
from deocc.evaluation.results import ROWS
from deocc.files import write_file
from deocc.messages import describe_error

# The file in a run's `wandb/` with its W&B id, so that resuming and testing continue the same W&B run
WANDB_ID: Final = "deocc_run_id"

# Validation scores whose best value is in the summary of a W&B run beside the last one, and which value is best
BEST: Final = {f"val/{row}/{score}": best for row in ROWS for score, best in (("eer", "min"), ("rank1", "max"))} | {
    f"val/{source}/{score}": "max" for source in ("given_mask", "predicted_mask") for score in ("psnr", "ssim")
}

_JOB_TYPES: Final = {"InpaintingModule": "inpaint", "DistillationModule": "distill"}
_logger = logging.getLogger(__name__)


def logged_step(trainer: pl.Trainer) -> int:
    """Return the step of Lightning's logs: batches since the start; `global_step` counts optimiser steps."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped  # as in Lightning's own callbacks


def truncate_logs(trainer: pl.Trainer) -> None:
    """Remove what an interrupted run logged after the checkpoint that is resumed, since those steps are repeated.

    W&B rows cannot be removed: W&B shows a repeated step twice, with the same value.
    """
    step = logged_step(trainer)
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, MetricsLogger):
            logger.experiment.truncate(step)
        elif isinstance(logger, TensorBoardLogger) and step > 0:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # an optional dependency

            restart = Event(session_log=SessionLog(status=SessionLog.START))  # hides the steps from here on
            logger.experiment._get_file_writer().add_event(restart, step)


class MetricsLogger(CSVLogger):
    """A CSVLogger that continues an existing `metrics.csv`, which Lightning's deletes, and survives a full disk."""

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsWriter":
        """The writer of the file."""
        if self._experiment is None:
            self._experiment = MetricsWriter(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]


class MetricsWriter(ExperimentWriter):
    """Writes `metrics.csv`. If that fails, a warning is logged, and the rows are kept for the next attempt."""

    def save(self) -> None:
        """Append the new rows; write the file again if there are new columns."""
        if not self.metrics:
            return
        file, columns = Path(self.metrics_file_path), list(self.metrics_keys)
        try:
            if self._record_new_keys() or not file.is_file():
                write_file(file, self._format([*_read_rows(file), *self.metrics], header=True))
            else:
                content, size = self._format(self.metrics).encode(), file.stat().st_size
                try:
                    with file.open("ab", buffering=0) as stream:
                        while content:  # a full disk takes a part; the next write fails
                            content = content[stream.write(content) :]
                except OSError:
                    os.truncate(file, size)
                    raise
            self.metrics = []
        except OSError as error:
            _logger.warning("cannot write %s (%s): the training continues", file, error.strerror)
            self.metrics_keys = columns

    def truncate(self, step: int) -> None:
        """Remove the rows of `step` and later, and incomplete ones.

        Lightning logs a validation under the step of the batch before it, so that it stays with that batch.
        """
        file = Path(self.metrics_file_path)
        rows = [row for row in _read_rows(file) if int(row["step"]) < step]
        self.metrics_keys = sorted({key for row in rows for key, value in row.items() if value})
        if file.is_file():
            write_file(file, self._format(rows, header=bool(rows)))

    def _check_log_dir_exists(self) -> None:
        """Read the columns of an existing file; Lightning deletes it here."""
        self.metrics_keys = list(next(iter(_read_rows(Path(self.metrics_file_path))), {}))

    def _format(self, rows: Sequence[Mapping[str, Any]], header: bool = False) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys, extrasaction="ignore")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def _read_rows(file: Path) -> list[dict[str, str]]:
    """Return the complete rows of a `metrics.csv`; none if there is no such file."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    return [row for row in rows if str(row.get("step")).isdecimal() and None not in row and None not in row.values()]


class WandbRunLogger(WandbLogger):
    """A WandbLogger that logs offline if W&B does not answer at the start, and keeps the best scores (`BEST`).

    wandb itself handles a connection that is lost later; at the end it waits for WANDB_FINISH_TIMEOUT seconds (default
    here: 60). `entity` (the W&B user or team; None: that of the key), `group` and `job_type` are explicit because the
    command line does not find arguments that WandbLogger passes on.
    """

    def __init__(
        self,
        project: str = "deocc",
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(project=project, entity=entity, group=group, job_type=job_type, **kwargs)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run."""
        if self._experiment is None:
            import wandb  # takes a second

            os.environ.setdefault("WANDB_FINISH_TIMEOUT", "60")
            try:
                run = super().experiment
            except wandb.errors.CommError as error:
                _logger.warning("W&B does not answer (%s): logging offline", describe_error(error))
                wandb.teardown()
                os.environ["WANDB_MODE"] = "offline"
                run = super().experiment
            for name, best in BEST.items():
                run.define_metric(name, step_metric="trainer/global_step", step_sync=True, summary=f"{best},last")
        return self._experiment


def place_loggers(trainer: Namespace, folder: Path, subfolder: str, home: Path, model: str) -> None:
    """Point the configured loggers to `folder/subfolder`, and add a MetricsLogger; `logger: false` stays.

    Args:
        trainer: the trainer's part of the configuration, changed in place.
        folder: the run folder.
        subfolder: of an evaluation, whose files must not replace those of the training; empty for a training.
        home: the run folder whose W&B run is continued. Unless configured, the W&B run is called like that folder, and
            its group like the parent folder.
        model: class path of the module, which determines the W&B job type; that of an untrained evaluation is the
            subfolder.
    """
    if trainer.logger is False:
        return
    others = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    metrics = Namespace(class_path=f"{__name__}.MetricsLogger", init_args=Namespace())  # type: ignore[no-untyped-call]
    trainer.logger = []
    for logger in [metrics, *(each for each in others if isinstance(each, Namespace))]:
        name, settings = str(logger.class_path).rsplit(".", 1)[-1], logger.init_args
        if logger is not metrics and name in ("CSVLogger", "MetricsLogger"):
            continue
        trainer.logger.append(logger)
        if name == "TensorBoardLogger" and importlib.util.find_spec("tensorboard") is None:
            raise ImportError('the logger TensorBoardLogger needs tensorboard: pip install "deocc[tensorboard]"')
        if name in ("WandbLogger", "WandbRunLogger"):
            trained = not subfolder or (home / runs.CONFIG).is_file()
            module = model.rsplit(".", 1)[-1]
            settings.job_type = _JOB_TYPES.get(module, module) if trained else subfolder
            _continue_wandb_run(settings, home.absolute())
            folder.mkdir(parents=True, exist_ok=True)  # wandb writes to a temporary folder if it is missing
            configured = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE")
            if not configured and not (Path.home() / ".netrc").is_file():
                os.environ["WANDB_MODE"] = "offline"
                advice = "`wandb login`, then `wandb sync` uploads it"
                print(f"deocc: no W&B key, logging offline to {folder / 'wandb'}; {advice}", flush=True)
        else:
            settings.name, settings.version = "", subfolder
        settings.save_dir = str(folder)


def _continue_wandb_run(settings: Namespace, home: Path) -> None:
    """Set id, name and group; a saved configuration has those of its own run folder, which are replaced."""
    saved = Path(settings.get("save_dir") or ".").absolute()
    if settings.get("name") in (None, saved.name):
        settings.name = home.name
    if settings.get("group") in (None, saved.parent.name):
        settings.group = home.parent.name
    file = home / "wandb" / WANDB_ID
    # the letter keeps YAML from reading 269e7080 as a number
    settings.id = file.read_text() if file.is_file() else f"r{secrets.token_hex(4)}"
    if not file.is_file() and processes.is_first():
        write_file(file, settings.id, durable=True)
    if "resume" in settings:
        settings.resume = "allow"  # the parser gives a plain WandbLogger None, which would replace the W&B run
