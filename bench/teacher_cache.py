"""Stage 2's step with the teacher's embeddings looked up, against the same step with the teacher run."""

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


class Turns(pl.Callback):
    """Hides what the module knows of the teacher at every other step, and times all steps; the first two are a warm-up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._known: TeacherCache | None = None
        self._left = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what is hidden."""
        self._known = cast(DistillationModule, pl_module)._teacher_cache
        if self._known is None:
            raise ValueError("there is nothing to look up: give a data setting without other augmentation than flips")
        self._left = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """All that the trainer does between two calls is the step's time, looking up too."""
        came = time.perf_counter()
        self.seconds.append(came - self._left)
        cast(DistillationModule, pl_module)._teacher_cache = None if len(self.seconds) % 2 else self._known
        self._left = time.perf_counter()


def teacher_cache_gain() -> Row:
    """Images a second with and without, the steps in turn; the batches are made beforehand, so that no loading is measured."""
    setting = plain_setting()
    known, run = in_own_process(times, setting, STEPS)
    size = setting.data["batch_size"]
    return {
        "what": f"distill.yaml and data/flip.yaml, a step of {size} images, teacher looked up or run",
        "unit": "images/s",
        "ours": size / statistics.median(known),
        "reference": size / statistics.median(run),
        "ratio": median_ratio(run, known),
    }


def plain_setting() -> Setting:
    """Stage 2 as configured, on faces that are mirrored and nothing else."""
    setting, overlay = read_setting("distill"), yaml.safe_load((CONFIGS / "data" / "flip.yaml").read_text())
    return setting._replace(data=setting.data | overlay["data"])


def times(setting: Setting, pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of so many steps with the embeddings known and as many with the teacher run, in turn."""
    turns, steps = Turns(), 2 * (pairs + 1)
    with TemporaryDirectory() as folder:
        os.environ["DEOCC_CACHE"] = folder
        fit(build_module(setting), CachedBatches(MaskedFaceDataModule(**setting.data), steps), setting, steps, turns)
    return turns.seconds[2:steps:2], turns.seconds[3:steps:2]
