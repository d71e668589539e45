"""Where a run logs to: always `metrics.csv` in its folder, which the report draws its loss curves from, and what the configuration adds."""

import contextlib
import csv
import os
import secrets
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from deocc import runs
from deocc.evaluation.results import ROWS

WANDB_ID = "deocc_run_id"
"""The file in a run's `wandb/` that holds its W&B id, so that resuming and testing go on in the same W&B run."""

BEST = {f"val/{row}/{score}": best for row in ROWS for score, best in (("eer", "min"), ("rank1", "max"))} | {
    f"val/{source}/{score}": "max" for source in ("given_mask", "predicted_mask") for score in ("psnr", "ssim")
}
"""The validation scores whose best value a W&B run's summary keeps beside the last one, and which value is the best."""

_JOBS = {"InpaintingModule": "inpaint", "DistillationModule": "distill"}
_STEP = "trainer/global_step"  # WandbLogger's horizontal axis; a metric with a definition of its own loses the general one


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


class WandbRunLogger(WandbLogger):
    """A WandbLogger that goes on offline where W&B does not answer at the start, and whose summary keeps the scores in `BEST`.

    A connection that is lost later stops nothing: wandb writes to the run folder first and tries again by itself.

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

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run."""
        if self._experiment is None:
            run = self._begin()
            for name, best in BEST.items():
                run.define_metric(name, step_metric=_STEP, step_sync=True, summary=f"{best},last")
        return self._experiment

    def _begin(self) -> Any:
        import wandb

        try:
            return super().experiment
        except wandb.errors.CommError as error:
            reason = " ".join(str(error).split())
            wandb.teardown()  # the attempt that failed holds the run's id
            os.environ["WANDB_MODE"] = "offline"
            print(f"deocc: W&B does not answer ({reason}), logging offline to {self.save_dir}/wandb; `wandb sync` uploads it", flush=True)
            return super().experiment


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
    name = f"{MetricsLogger.__module__}.{MetricsLogger.__name__}"
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
    settings.id, settings.job_type = _wandb_id(home), job
    if "resume" in settings:
        settings.resume = "allow"  # the parser gives a bare WandbLogger None in place of its own default, and W&B would write over the run


def _go_offline_without_key(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)  # wandb falls back to a temporary folder where its own is missing
    if not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") or (Path.home() / ".netrc").is_file()):
        os.environ["WANDB_MODE"] = "offline"
        print(f"deocc: no W&B key, logging offline to {folder / 'wandb'}; `wandb login`, then `wandb sync` uploads it", flush=True)


def _wandb_id(home: Path) -> str:
    path = home / "wandb" / WANDB_ID
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{WANDB_ID}.{secrets.token_hex(8)}")
        draft.write_text(f"r{secrets.token_hex(4)}")  # the letter keeps a parser from reading 269e7080 as a number
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # of several processes the first one names the run
        draft.unlink()
    return path.read_text()
