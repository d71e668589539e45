"""Images, figures, tables and the configuration to W&B and TensorBoard alike; a logger that takes numbers only is passed over.

Keys are `stage/name`, by whose first part either groups its panels.
"""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import yaml
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from deocc import runs
from deocc.evaluation import png_bytes
from deocc.evaluation.tables import MISSING, Cells, markdown_cells

UNFINISHED_CONFIG = f".{runs.CONFIG}"
"""What Lightning is to write a run's configuration to."""

_SECRET = re.compile(r"(^|_)(api_?key|token|password|secret)$", re.IGNORECASE)


class DashboardConfigCallback(SaveConfigCallback):
    """Writes `config.yaml` and shows all of it, but secrets, on the dashboards; Lightning logs the arguments of module and data only."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called once the file is written, in the first process: give it its name, which a half-written one must not have."""
        folder = Path(trainer.default_root_dir)
        (folder / UNFINISHED_CONFIG).replace(folder / runs.CONFIG)
        log_config(trainer, yaml.safe_load(self.parser.dump(self.config, skip_none=False)))


def logged_step(trainer: pl.Trainer) -> int:
    """The step under which Lightning logs the numbers beside it: the batch, from 0, where `global_step` counts every optimiser's steps."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped  # as Lightning's own callbacks read it


def shows_images(trainer: pl.Trainer) -> bool:
    """Whether there is a dashboard, so that it is worth drawing for one."""
    return any(isinstance(logger, WandbLogger | TensorBoardLogger) for logger in trainer.loggers)


def log_image(trainer: pl.Trainer, key: str, image: NDArray[np.uint8]) -> None:
    """One picture, (H, W, 3) in 0..255. Logged again under its key, it becomes the next picture of the same slider."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [image], step=logged_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, image, logged_step(trainer), dataformats="HWC")


def log_figure(trainer: pl.Trainer, key: str, figure: Figure) -> None:
    """A figure, as a picture: add_figure of TensorBoard does the same, but through matplotlib's global state."""
    if shows_images(trainer):
        log_image(trainer, key, np.array(Image.open(io.BytesIO(png_bytes(figure))).convert("RGB")))


def log_table(trainer: pl.Trainer, key: str, cells: Cells) -> None:
    """A table: in W&B one that can be sorted, with a column of numbers wherever all its cells are; in TensorBoard as Markdown text."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            columns, data = _typed(cells)
            logger.log_table(key, columns=columns, data=data, step=logged_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(key, markdown_cells(cells), logged_step(trainer))


def log_config(trainer: pl.Trainer, config: dict[str, Any]) -> None:
    """The run's configuration, without the values whose names say that they are secret."""
    shown = without_secrets(config)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update(shown, allow_val_change=True)
        elif isinstance(logger, TensorBoardLogger):
            text = yaml.safe_dump(shown, sort_keys=False)
            logger.experiment.add_text("config", f"```yaml\n{text}```", logged_step(trainer))


def without_secrets(value: Any) -> Any:
    """The configuration, or a part of it, without the keys whose names say that their values are secret."""
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items() if not _SECRET.search(str(key))}
    return [without_secrets(item) for item in value] if isinstance(value, list) else value


def _typed(cells: Cells) -> tuple[list[str], list[list[Any]]]:
    """Header and rows with numbers in place of their texts; W&B wants one type a column, and None where there is no value."""
    header, body = cells
    columns = [_numbers(column) or list(column) for column in zip(*body, strict=True)]
    return [title or "row" for title in header], [list(row) for row in zip(*columns, strict=True)]


def _numbers(column: tuple[str, ...]) -> list[float | None] | None:
    """The numbers of a column, None for each that is missing; None where a cell is something else."""
    try:
        return [None if cell == MISSING else float(cell) for cell in column]
    except ValueError:
        return None
