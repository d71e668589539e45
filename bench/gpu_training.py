"""Training steps of both stages on one device, in every precision, compiled or not, under Lightning."""

import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu_kernels import Precision, device_name, peak_flops, peak_mebibytes_on, synchronize, with_memory
from bench.measuring import Row
from bench.training import CACHED, CONFIGS, CachedBatches, Module, Setting, Stage, build_module, fit, read_setting
from deocc.data import MaskedFaceDataModule
from deocc.modules import DistillationModule, InpaintingModule
from deocc.networks.deoccluder import Deoccluder

LIGHTNING: dict[Precision, str] = {"fp32": "32-true", "tf32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
WARM_UP = 3  # steps, in which cuDNN selects algorithms and the compiler compiles


class Measured(NamedTuple):
    """A training of a few steps: median seconds per step, loss of each prepared batch, peak memory on a GPU."""

    seconds: float
    losses: list[float]
    mebibytes: float | None


class Steps(pl.Callback):
    """Times every step, including the trainer's work between two steps, and keeps the losses."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.ends, self.losses = device, list[float](), list[float]()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        synchronize(self.device)
        self.ends.append(time.perf_counter())
        if batch_idx < CACHED:
            self.losses.append(float(trainer.callback_metrics["train/loss"]))


class Operations(pl.Callback):
    """Counts the floating-point operations of matrix products and convolutions, forward and backward."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.counter.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.counter.__exit__(None, None, None)


def step_rows(device: torch.device, setting: Setting, steps: int, backend: str) -> Iterator[Row]:
    """Measure images per second in every precision, and compiled in all but float32."""
    operations, exact = count_operations(device, setting), list[float]()
    for precision in LIGHTNING if device.type == "cuda" else ("fp32", "bf16"):
        plain = train(device, setting, precision, steps, None)
        exact = exact or plain.losses  # float32 comes first
        row = step_row(setting, precision, plain, details(device, precision, operations, plain, exact))
        yield row
        if precision != "fp32":
            found = train(device, setting, precision, steps, backend)
            figures = details(device, precision, operations, found, exact)
            compiled = step_row(setting, f"{precision}, compiled", found, figures)
            yield {**compiled, "reference": row["ours"], "ratio": compiled["ours"] / row["ours"]}


def step_row(setting: Setting, form: str, found: Measured, figures: dict[str, float]) -> Row:
    size, batch = setting.data["size"], setting.data["batch_size"]
    what = f"{setting.stage}, {size} px, batch {batch}, {form}"
    row: Row = {"what": what, "unit": "images/s", "ours": batch / found.seconds, "details": figures}
    return with_memory(row, "ours_mib", found.mebibytes)


def details(
    device: torch.device, precision: Precision, operations: int, found: Measured, exact: list[float]
) -> dict[str, float]:
    """Return operations, utilisation if the peak is known, and the deviation of the losses from those in float32."""
    figures = {
        "operations a step": float(operations),
        "first loss deviation": deviation(found.losses[:1], exact[:1]),  # at equal weights, unlike later ones
        "largest loss deviation": deviation(found.losses, exact),
    }
    peak = peak_flops(device_name(device), precision)
    return figures if peak is None else {**figures, "model-FLOP utilisation": operations / found.seconds / peak}


def deviation(losses: list[float], exact: list[float]) -> float:
    return max(abs(loss / right - 1) for loss, right in zip(losses, exact, strict=True))


def train(device: torch.device, setting: Setting, precision: Precision, steps: int, backend: str | None) -> Measured:
    """Train a few steps from the same weights on the same batches, compiled if a backend is given."""
    module, watch = build(setting), Steps(device)
    if backend is not None:
        compile_networks(module, backend)
    data = CachedBatches(MaskedFaceDataModule(**setting.data), WARM_UP + steps)
    memory = peak_mebibytes_on(device, lambda: fit_on(device, module, data, setting, precision, watch))
    taken = [end - start for start, end in zip(watch.ends[WARM_UP - 1 :], watch.ends[WARM_UP:], strict=False)]
    return Measured(statistics.median(taken), watch.losses, memory)


def count_operations(device: torch.device, setting: Setting) -> int:
    count = Operations()
    fit_on(device, build(setting), CachedBatches(MaskedFaceDataModule(**setting.data), 1), setting, "fp32", count)
    return count.counter.get_total_flops()


def fit_on(
    device: torch.device,
    module: Module,
    data: CachedBatches,
    setting: Setting,
    precision: Precision,
    callback: pl.Callback,
) -> None:
    """Train for one epoch on a device; TensorFloat-32 is allowed for the precision "tf32" only."""
    options: dict[str, Any] = {"precision": LIGHTNING[precision], "devices": 1}
    if device.type == "cuda":
        options |= {"accelerator": "gpu", "devices": [device.index or 0]}
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    fit(module, data, setting, len(data.batches), callback, **options)


def build(setting: Setting) -> Module:
    """Return the stage's module; at the paper's size, stage 2 gets a de-occluder of that size."""
    module, first = build_module(setting), at_paper_size("inpaint")
    if isinstance(module, DistillationModule) and setting.data["size"] == first.data["size"]:
        generator = {"width": first.model["width"], "attention": first.model["attention"]}
        module.deoccluder = Deoccluder(generator, {"width": first.model["segmenter_width"]})
    return module


def compile_networks(module: Module, backend: str) -> None:
    if isinstance(module, InpaintingModule):
        module.generator.compile(backend=backend)
        return
    cast(Deoccluder, module.deoccluder).generator.compile(backend=backend)
    module.student.compile(backend=backend)


def at_paper_size(stage: Stage) -> Setting:
    """Return the setting with crop, batch and widths of `configs/size/` and `configs/paper/`."""
    setting = read_setting(stage)
    size = yaml.safe_load((CONFIGS / "size" / "inpaint_256.yaml").read_text())
    batch = yaml.safe_load((CONFIGS / "paper" / f"{stage}.yaml").read_text())["data"]["batch_size"]
    model = setting.model | size["model"]["init_args"] if stage == "inpaint" else setting.model
    return setting._replace(model=model, data=setting.data | {"size": size["data"]["size"], "batch_size": batch})
