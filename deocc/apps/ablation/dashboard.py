"""The summary of an ablation as one W&B run, in the group of its trainings."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from matplotlib.figure import Figure
from PIL import Image

from deocc.apps.ablation.jobs import WANDB
from deocc.apps.ablation.tables import comparison_cells, row_cells
from deocc.callbacks.loggers import WandbRunLogger, place_loggers
from deocc.evaluation import png_bytes

_FOLDER = "summary"
"""Below the ablation's: its name names the W&B run, the ablation's the group."""


def log_outcome(run: Path, summary: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
    """Log both tables and the figures; offline where there is no key. The same run goes on when it is logged again."""
    configured = WANDB["trainer"]["logger"]
    trainer = Namespace(logger=Namespace(class_path=configured["class_path"], init_args=Namespace(configured["init_args"])))  # type: ignore[no-untyped-call]
    place_loggers(trainer, run / _FOLDER, "ablation", run / _FOLDER, model="")
    logger = WandbRunLogger(**vars(trainer.logger[1].init_args))
    for name, (header, body) in {"rows": row_cells(summary), "comparisons": comparison_cells(summary)}.items():
        logger.log_table(f"ablation/{name}", columns=[header[0] or "row", *header[1:]], data=body)
    for name, figure in figures.items():
        logger.log_image(f"ablation/{name}", [Image.open(io.BytesIO(png_bytes(figure)))])
    logger.finish()
