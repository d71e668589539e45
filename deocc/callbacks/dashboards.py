"""Images, figures, tables and the configuration for W&B and TensorBoard, under `stage/name`; other loggers get none."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator
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
from deocc.callbacks.loggers import logged_step
from deocc.evaluation.figures import png_bytes
from deocc.evaluation.report import MISSING, Cells, markdown_cells
from deocc.messages import describe_error

UNFINISHED_CONFIG = f".{runs.CONFIG}"  # Lightning writes a run's configuration to it; it is renamed once it is complete
_SECRET = re.compile(r"(^|_)(api_?key|token|password|secret)$", re.IGNORECASE)
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def continue_without(path: Path) -> Iterator[None]:
    """Log a warning, instead of ending the training, if the file at `path` cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or describe_error(error)
        advice = "the run continues without it; free some space or make it writable"
        _logger.warning("cannot write %s (%s): %s", path, reason, advice)


class DashboardConfigCallback(SaveConfigCallback):
    """Write `config.yaml`, and show it without secrets on the dashboards."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Rename the written file, so that `config.yaml` is always complete, and log the configuration."""
        folder = Path(trainer.default_root_dir)
        (folder / UNFINISHED_CONFIG).replace(folder / runs.CONFIG)
        log_config(trainer, yaml.safe_load(self.parser.dump(self.config, skip_none=False)))


def shows_images(trainer: pl.Trainer) -> bool:
    """Return whether a logger of the trainer takes images."""
    return any(isinstance(logger, WandbLogger | TensorBoardLogger) for logger in trainer.loggers)


def log_image(trainer: pl.Trainer, key: str, image: NDArray[np.uint8]) -> None:
    """Log an image (H, W, 3) in 0..255. Images of one key form a slider over the steps."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            with continue_without(Path(trainer.default_root_dir) / "wandb"):
                logger.log_image(key, [image], step=logged_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, image, logged_step(trainer), dataformats="HWC")


def log_figure(trainer: pl.Trainer, key: str, figure: Figure) -> None:
    """Log a figure as an image; TensorBoard's add_figure would use matplotlib's global state."""
    if shows_images(trainer):
        log_image(trainer, key, np.array(Image.open(io.BytesIO(png_bytes(figure))).convert("RGB")))


def log_table(trainer: pl.Trainer, key: str, cells: Cells) -> None:
    """Log a table: sortable in W&B, as Markdown in TensorBoard.

    W&B needs one type per column: a column of numbers and missing values becomes numbers and None.
    """
    header, body = cells
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            columns: list[Any] = list(zip(*body, strict=True))
            for place, column in enumerate(columns):
                with contextlib.suppress(ValueError):  # a column of text stays as it is
                    columns[place] = [None if cell == MISSING else float(cell) for cell in column]
            rows = [list(row) for row in zip(*columns, strict=True)]
            with continue_without(Path(trainer.default_root_dir) / "wandb"):
                logger.log_table(key, [title or "row" for title in header], rows, step=logged_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(key, markdown_cells(cells), logged_step(trainer))


def log_config(trainer: pl.Trainer, config: dict[str, Any]) -> None:
    """Log the configuration of a run, without secrets."""
    shown = without_secrets(config)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update(shown, allow_val_change=True)
        elif isinstance(logger, TensorBoardLogger):
            text = f"```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```"
            logger.experiment.add_text("config", text, logged_step(trainer))


def without_secrets(value: Any) -> Any:
    """Return a configuration, or a part of it, without the keys that name passwords, tokens or API keys."""
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items() if not _SECRET.search(str(key))}
    return [without_secrets(item) for item in value] if isinstance(value, list) else value
