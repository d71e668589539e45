"""Training step of each stage under Lightning, compared with a bare loop over the same networks, losses and batches.

For stage 2 also with cached teacher embeddings, compared with running the teacher.
"""

import inspect
import logging
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, cast

import pytorch_lightning as pl
import torch
import yaml
from torch.utils.data import DataLoader

from bench.bare_loops import BareDistillation, BareInpainting
from bench.measuring import BUSY, Pairs, Row, compared, in_own_process, load, peak_mebibytes
from deocc.batch import FaceBatch, MaskedFaceBatch
from deocc.data import MaskedFaceDataModule
from deocc.data.datamodule import mask_batch
from deocc.masking import draw_kinds
from deocc.modules import DistillationModule, InpaintingModule
from deocc.modules.teacher_cache import TeacherCache
from deocc.networks.deoccluder import Deoccluder

CONFIGS = Path(__file__).parent.parent / "configs"
Stage = Literal["inpaint", "distill"]
Module = InpaintingModule | DistillationModule
Bare = BareInpainting | BareDistillation
CACHED, STEPS, MEMORY_STEPS = 4, 16, 3
"""Prepared batches; timed pairs of steps; steps whose memory is measured."""


class Setting(NamedTuple):
    """Settings of a stage, read from `configs/`."""

    stage: Stage
    model: dict[str, Any]
    data: dict[str, Any]
    trainer: dict[str, Any]


class CachedBatches(pl.LightningDataModule):
    """Repeats a few prepared training batches, so that no loading is measured."""

    def __init__(self, data: MaskedFaceDataModule, steps: int) -> None:
        super().__init__()
        self.num_identities, self.training_identity = data.num_identities, data.training_identity
        self.plain_views, self.blends = data.plain_views, data.blends
        self.training_fingerprint = data.training_fingerprint
        self.reference_dataloader = data.reference_dataloader
        batches = [masked(batch, data) for batch in islice(data.train_dataloader(), min(CACHED, steps))]
        self.batches = [batches[step % len(batches)] for step in range(steps)]

    def train_dataloader(self) -> DataLoader[MaskedFaceBatch]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


TrainingData = MaskedFaceDataModule | CachedBatches


class Alternation(pl.Callback):
    """Runs a bare step after every step of the trainer and times both; the first pair is a warm-up."""

    def __init__(self, batches: Iterator[MaskedFaceBatch] | None = None) -> None:
        """Time the loading of `batches` as part of the bare loop; None reuses the trainer's batches."""
        self.batches = batches
        self.ours: list[float] = []
        self.reference: list[float] = []
        self.bare: Bare
        self._left: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bare = bare_loop(cast(Module, pl_module), int(trainer.estimated_stepping_batches))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: MaskedFaceBatch, batch_idx: int
    ) -> None:
        """Count the time since the last call, including loading, as the trainer's."""
        now = time.perf_counter()
        self.bare.step(batch if self.batches is None else next(self.batches))
        if self._left is not None:
            self.ours.append(now - self._left)
            self.reference.append(time.perf_counter() - now)
        self._left = time.perf_counter()


class CacheAlternation(pl.Callback):
    """Hides the teacher cache in every second step and times all steps; the first two are a warm-up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._known: TeacherCache | None = None
        self._left = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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


def against_bare_loop(stage: Stage, loading: bool) -> Row:
    """Compare images per second under Lightning and in the bare loop, on prepared or loaded batches."""
    setting = read_setting(stage)
    size = setting.data["batch_size"]
    what = f"{stage}.yaml, a step of {size} images" + (", loading and masking included" if loading else "")
    row = compared(what, "images/s", in_own_process(times, setting, loading, STEPS), count=size)
    if not loading:
        row["ours_mib"], row["reference_mib"] = (
            in_own_process(trainer_peak, setting),
            in_own_process(bare_peak, setting),
        )
    return row


def against_fair_share(stage: Stage, idle: float) -> Row:
    """Compare the images per second under load with the fair share of `idle`, those of the machine without load."""
    setting, steps = read_setting(stage), STEPS // 2
    with load():
        taken = in_own_process(times, setting, False, steps).ours
    size, threads, cores = setting.data["batch_size"], torch.get_num_threads(), len(os.sched_getaffinity(0))
    loaded, share = size / statistics.median(taken), idle * fair_share(threads, cores, BUSY)
    return {
        "what": f"{stage}.yaml, a step under load against its fair share",
        "unit": "images/s",
        "ours": idle,
        "loaded": loaded,
        "reference": share,
        "loaded_ratio": loaded / share,
    }


def fair_share(threads: int, cores: int, busy: int) -> float:
    """Return the fraction of its idle speed that a fair scheduler leaves to a process beside `busy` other threads.

    Every runnable thread gets an equal part of the cores, and at most one of them. Two threads beside two busy ones on
    two cores get one core instead of two: 0.5.
    """
    return threads * min(1.0, cores / (threads + busy)) / min(threads, cores)


def times(setting: Setting, loading: bool, steps: int) -> Pairs:
    """Return the seconds of `steps` alternating steps of the trainer and of the bare loop."""
    source = MaskedFaceDataModule(**setting.data)
    pairs = Alternation(loaded(source) if loading else None)
    data = source if loading else CachedBatches(source, steps + 1)
    fit(build_module(setting), data, setting, steps + 1, pairs)
    return Pairs(pairs.ours[:steps], pairs.reference[:steps])


def measure_teacher_cache() -> Row:
    """Compare images per second with and without the cache, on prepared batches whose only augmentation is a flip."""
    setting, overlay = read_setting("distill"), yaml.safe_load((CONFIGS / "data" / "flip.yaml").read_text())
    setting = setting._replace(data=setting.data | overlay["data"])
    size = setting.data["batch_size"]
    what = f"distill.yaml and data/flip.yaml, a step of {size} images, teacher cached or run"
    return compared(what, "images/s", in_own_process(cache_times, setting, STEPS), count=size)


def cache_times(setting: Setting, pairs: int) -> Pairs:
    """Return the seconds of `pairs` alternating steps with and without the cache."""
    alternation, steps = CacheAlternation(), 2 * (pairs + 1)
    with TemporaryDirectory() as folder:
        os.environ["DEOCC_CACHE"] = folder
        data = CachedBatches(MaskedFaceDataModule(**setting.data), steps)
        fit(build_module(setting), data, setting, steps, alternation)
    return Pairs(alternation.seconds[2:steps:2], alternation.seconds[3:steps:2])


def loaded(data: MaskedFaceDataModule) -> Iterator[MaskedFaceBatch]:
    """Yield training batches from a separate loader, without end."""
    while True:
        for batch in data.train_dataloader():
            yield masked(batch, data)


def trainer_peak(setting: Setting) -> float:
    """Return the MiB of a short training under Lightning beyond its networks and batches."""
    module, data = build_module(setting), CachedBatches(MaskedFaceDataModule(**setting.data), MEMORY_STEPS)
    return peak_mebibytes(lambda: fit(module, data, setting, MEMORY_STEPS))


def bare_peak(setting: Setting) -> float:
    """Return the MiB of the same number of bare steps beyond the networks and batches."""
    module, data = build_module(setting), CachedBatches(MaskedFaceDataModule(**setting.data), MEMORY_STEPS)
    if isinstance(module, DistillationModule):
        give_centres(module, data.num_identities)
    bare = bare_loop(module.train(), MEMORY_STEPS)
    return peak_mebibytes(lambda: [bare.step(batch) for batch in data.batches])


def fit(
    module: pl.LightningModule,
    data: TrainingData,
    setting: Setting,
    steps: int,
    *callbacks: pl.Callback,
    accelerator: str = "cpu",
    **options: Any,
) -> None:
    """Train for at least `steps` steps without logs, checkpoints and output; `options` are those of the trainer."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    batches = min(steps, len(data.train_dataloader()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loaders without workers, metrics without a logger
        trainer = pl.Trainer(
            **{**setting.trainer, **options},
            accelerator=accelerator,
            callbacks=[*callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_train_batches=batches,
            max_epochs=math.ceil(steps / batches),
            limit_val_batches=0,
        )
        trainer.fit(module, datamodule=data)


def read_setting(stage: Stage) -> Setting:
    """Return the settings of `configs/STAGE.yaml` over the defaults, without the length of the training."""
    config = yaml.safe_load((CONFIGS / f"{stage}.yaml").read_text())
    model = {
        **_defaults(InpaintingModule if stage == "inpaint" else DistillationModule),
        **config["model"].get("init_args", {}),
    }
    kept = ("gradient_clip_val", "log_every_n_steps")
    trainer = {name: value for name, value in config["trainer"].items() if name in kept}
    data = {**_defaults(MaskedFaceDataModule), **config["data"]}
    data.pop("face_set")
    return Setting(stage, model, data, {**trainer, "use_distributed_sampler": False})


def _defaults(constructor: Callable[..., object]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(constructor).parameters.items()}


def build_module(setting: Setting) -> Module:
    """Return the stage's module; stage 2 gets a random de-occluder of stage 1's size."""
    torch.manual_seed(0)
    if setting.stage == "inpaint":
        return InpaintingModule(**setting.model)
    module = DistillationModule(**{**setting.model, "inpainting_checkpoint": "from_checkpoint"})
    stage1 = read_setting("inpaint").model
    module.deoccluder = Deoccluder(
        {"width": stage1["width"], "attention": stage1["attention"]}, {"width": stage1["segmenter_width"]}
    )
    module.awaits_deoccluder = False
    return module


def bare_loop(module: Module, steps: int) -> Bare:
    return BareInpainting(module, steps) if isinstance(module, InpaintingModule) else BareDistillation(module, steps)


def give_centres(module: DistillationModule, num_identities: int) -> None:
    """Set random identity centres and create the classifier, as the trainer would."""
    module.identity_centers = torch.randn(num_identities, module.teacher.embedding_dim)
    module._build_classifier(num_identities)


def masked(batch: FaceBatch, data: MaskedFaceDataModule) -> MaskedFaceBatch:
    batch["kind"] = draw_kinds(batch["seed"], data.kinds, data.clean_probability)
    return mask_batch(batch)
