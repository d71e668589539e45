"""Where a run logs to: always `metrics.csv` in its folder, which the report draws its loss curves from, and what the configuration adds."""

import os
from pathlib import Path

from jsonargparse import Namespace

from deocc import runs
from deocc.callbacks.metrics_logger import MetricsLogger
from deocc.callbacks.tensorboard_logger import TensorBoardRunLogger
from deocc.callbacks.wandb_logger import BEST, WANDB_ID, WandbRunLogger, wandb_id

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
        print(f"deocc: no W&B key, logging offline to {folder / 'wandb'}; `wandb login`, then `wandb sync` uploads it", flush=True)
