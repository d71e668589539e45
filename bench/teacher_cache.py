"""Training step of stage 2 with cached teacher embeddings, compared with running the teacher."""

import os
import statistics
import time
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytorch_lightning as pl
import yaml

from bench.measuring import Row, in_own_process, median_ratio
from bench.training import CONFIGS, STEPS, CachedBatches, Setting, build_module, fit, read_setting
from deocc.data import MaskedFaceDataModule
from deocc.modules import DistillationModule
from deocc.modules.teacher_cache import TeacherCache


class Alternation(pl.Callback):
    """Hides the teacher cache in every second step and times all steps; the first two are a warm-up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._known: TeacherCache | None = None
        self._left = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the cache that is hidden."""
        self._known = cast(DistillationModule, pl_module)._teacher_cache
        if self._known is None:
            raise ValueError("there is no teacher cache: use data settings without augmentation other than flips")
        self._left = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the time since the last call, which includes the lookup."""
        now = time.perf_counter()
        self.seconds.append(now - self._left)
        cast(DistillationModule, pl_module)._teacher_cache = None if len(self.seconds) % 2 else self._known
        self._left = time.perf_counter()


def measure_teacher_cache() -> Row:
    """Compare images per second with and without the cache, on prepared batches."""
    setting = plain_setting()
    known, run = in_own_process(times, setting, STEPS)
    size = setting.data["batch_size"]
    return {
        "what": f"distill.yaml and data/flip.yaml, a step of {size} images, teacher cached or run",
        "unit": "images/s",
        "ours": size / statistics.median(known),
        "reference": size / statistics.median(run),
        "ratio": median_ratio(run, known),
    }


def plain_setting() -> Setting:
    """Return the setting of stage 2 with flips as the only augmentation."""
    setting, overlay = read_setting("distill"), yaml.safe_load((CONFIGS / "data" / "flip.yaml").read_text())
    return setting._replace(data=setting.data | overlay["data"])


def times(setting: Setting, pairs: int) -> tuple[list[float], list[float]]:
    """Return the seconds of `pairs` alternating steps with and without the cache."""
    alternation, steps = Alternation(), 2 * (pairs + 1)
    with TemporaryDirectory() as folder:
        os.environ["DEOCC_CACHE"] = folder
        fit(
            build_module(setting),
            CachedBatches(MaskedFaceDataModule(**setting.data), steps),
            setting,
            steps,
            alternation,
        )
    return alternation.seconds[2:steps:2], alternation.seconds[3:steps:2]
