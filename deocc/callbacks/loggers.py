"""Where a run logs to: always `metrics.csv` in its folder, which the report draws its loss curves from, and what the configuration adds."""

import csv
import os
import secrets
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

WANDB_ID = "deocc_run_id"
"""The file in a run's `wandb/` that holds its W&B id, so that resuming and testing go on in the same W&B run."""


class MetricsLogger(CSVLogger):
    """A CSVLogger that adds to a `metrics.csv` where Lightning's deletes it, so that a resumed run keeps its earlier rows."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the file."""
        if self._experiment is None:
            self._experiment = _AddingWriter(log_dir=self.log_dir)
        return self._experiment


class _AddingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])


def place_loggers(trainer: Namespace, folder: Path, subfolder: str, home: Path) -> None:
    """Point the configured loggers to `folder/subfolder` and put a MetricsLogger first; `logger: false` stays without any.

    Args:
        trainer: the trainer's part of the configuration, changed in place.
        folder: the run folder that is written to.
        subfolder: an evaluation's own, so that training's files stay as they are; empty for training.
        home: the run folder whose W&B run this belongs to.
    """
    if trainer.logger is False:
        return
    configured = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    others = [logger for logger in configured if isinstance(logger, Namespace) and not _writes_csv(logger)]
    name = f"{MetricsLogger.__module__}.{MetricsLogger.__name__}"
    trainer.logger = [Namespace(class_path=name, init_args=Namespace()), *others]  # type: ignore[no-untyped-call]
    for logger in trainer.logger:
        logger.init_args.save_dir = str(folder)
        if "WandbLogger" in logger.class_path:
            _go_offline_without_key(folder)
            logger.init_args.id = _wandb_id(home)
        else:
            logger.init_args.name, logger.init_args.version = "", subfolder


def _writes_csv(logger: Namespace) -> bool:
    return logger.class_path.rsplit(".", 1)[-1] in {"CSVLogger", MetricsLogger.__name__}


def _go_offline_without_key(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)  # wandb falls back to a temporary folder where its own is missing
    if not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") or (Path.home() / ".netrc").is_file()):
        os.environ["WANDB_MODE"] = "offline"
        print(f"deocc: no W&B key, logging offline to {folder / 'wandb'}; `wandb login`, then `wandb sync` uploads it", flush=True)


def _wandb_id(home: Path) -> str:
    path = home / "wandb" / WANDB_ID
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text()
