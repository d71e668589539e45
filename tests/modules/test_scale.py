"""Parts of a batch, processes and half precision do the step that one whole batch in one process does in float32."""

import gc
import os
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import deocc  # isort: skip  # noqa: F401  # lets a fresh process import torchvision, which Lightning does
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import yaml
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from deocc.batch import MaskedFaceBatch
from deocc.modules import DistillationModule, InpaintingModule
from deocc.modules.identity_head import check_loadable, check_shareable
from deocc.modules.optimization import take_apart
from tests.conftest import ROOT
from tests.modules.test_inpainting import SMALL, faces, fit, moved, snapshot

PROCESSES, IMAGES, LIMIT = 2, 8, 120  # LIMIT in seconds, after which a hang is a failure
UNTAUGHT = {"identity_weight": 0.0, "perceptual_weight": 0.0}
BARE = (1, 4, 5)  # images that nothing covers: every half and quarter of the batch has another number of them


class Watch(pl.Callback):
    """Keeps the gradients with which the optimisers step, in turn, before they are clipped; which backward passes exchanged them."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.exchanged: list[bool] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.gradients.append(
            torch.cat([parameter.grad.flatten().clone() for parameter in parameters if parameter.grad is not None])
        )

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self.exchanged.append(getattr(trainer.model, "require_backward_grad_sync", True))


def partly_bare() -> MaskedFaceBatch:
    batch = faces(IMAGES)
    for image in BARE:
        batch["mask"][image], batch["masked_face"][image] = 0, batch["face"][image]
    return batch


def rows(batch: MaskedFaceBatch, taken: slice) -> MaskedFaceBatch:
    return cast(MaskedFaceBatch, {key: cast(Tensor, value)[taken] for key, value in batch.items()})


def build(**settings: Any) -> InpaintingModule:
    """Equal networks every time, whose spectral norms stand still: they would take an iteration more with every part."""
    torch.manual_seed(0)
    module = InpaintingModule(**SMALL, **settings)
    assert module.discriminator is not None
    module.discriminator.eval()
    return module


def watched(module: InpaintingModule, folder: Path, batch: MaskedFaceBatch, **settings: Any) -> Watch:
    """A step in float64, where nothing else is said: Adam's first one turns a rounding of a gradient near 0 into a whole rate."""
    watch = Watch()
    fit(module, folder, steps=1, batch=batch, callbacks=[watch], **(settings or {"precision": "64-true"}))
    return watch


def assert_same_gradients(found: Watch, expected: Watch) -> None:
    assert len(found.gradients) == len(expected.gradients) == 2
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()


@pytest.mark.parametrize("parts", [3, 20])
def test_parts_step_both_optimisers_with_the_gradients_of_the_whole_batch(parts: int, tmp_path: Path) -> None:
    whole = watched(build(), tmp_path, partly_bare())
    assert_same_gradients(watched(build(accumulate=parts), tmp_path, partly_bare()), whole)


def test_one_step_an_optimiser_counts_however_many_the_parts(tmp_path: Path) -> None:
    module = build(**UNTAUGHT, accumulate=2)
    trainer = fit(module, tmp_path, steps=3)
    assert trainer.global_step == 2 * 3
    assert int(module.average.n_averaged) == 3
    assert all(scheduler["scheduler"].last_epoch == 3 for scheduler in map(vars, trainer.lr_scheduler_configs))


def test_every_image_is_in_one_part_and_the_shares_average_to_one() -> None:
    parts = take_apart(partly_bare(), 3, torch.clone)
    assert [len(part.batch["face"]) for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat([part.batch["index"] for part in parts]), torch.arange(IMAGES))
    assert torch.equal(torch.stack([part.covered for part in parts]), torch.tensor([2 / 5, 1 / 5, 2 / 5]))
    assert torch.equal(torch.stack([part.images for part in parts]), torch.tensor([3 / 8, 3 / 8, 2 / 8]))


def test_a_batch_that_nothing_covers_has_no_share_of_the_covered_pixels() -> None:
    batch = faces(2)
    batch["mask"].zero_()
    (part,) = take_apart(batch, 1, torch.clone)
    assert (float(part.images), float(part.covered), float(part.visible)) == (1, 0, 1)


def test_no_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="accumulate must be at least 1"):
        InpaintingModule(**SMALL, **UNTAUGHT, accumulate=0)


def half_precision(scale: float) -> MixedPrecision:
    """What Lightning builds for a GPU, on the CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_steps_with_unscaled_gradients_near_those_of_float32(precision: str, tmp_path: Path) -> None:
    lower: dict[str, Any] = (
        {"plugins": [half_precision(2.0**10)]} if precision == "float16" else {"precision": "bf16-mixed"}
    )
    exact = watched(build(accumulate=2), tmp_path, partly_bare(), precision="32-true")
    low = watched(build(accumulate=2), tmp_path, partly_bare(), **lower)
    limit = (
        0.1 if precision == "float16" else 0.2
    )  # gradients for real and completed faces nearly cancel out in the discriminators
    for ours, theirs in zip(low.gradients, exact.gradients, strict=True):
        assert 0 < (ours - theirs).norm() < limit * theirs.norm()


def test_a_step_that_float16_leaves_out_moves_neither_weights_nor_rates_nor_average(tmp_path: Path) -> None:
    module = build(**UNTAUGHT)
    before = snapshot(module)
    precision = half_precision(2.0**100)
    trainer = fit(module, tmp_path, steps=1, plugins=[precision])
    assert precision.scaler is not None and precision.scaler.get_scale() == 2.0**98  # lowered once by each optimiser
    assert not moved(module, before)
    assert int(module.average.n_averaged) == 0
    assert all(scheduler["scheduler"].last_epoch == 0 for scheduler in map(vars, trainer.lr_scheduler_configs))


class Shared(DistillationModule):
    """Knows its identity centres without a data module."""

    def on_fit_start(self) -> None:
        self.center = torch.full_like(self.center, 0.1)
        self.identity_centers = torch.eye(IMAGES, len(self.center))


def student(folder: Path, batch: MaskedFaceBatch, **settings: Any) -> dict[str, Tensor]:
    """The weights that two steps give a student and its average, from a checkpoint's one file."""
    torch.manual_seed(0)
    module = Shared(student_input="masked", interpolation=0.75)
    trainer = fit(module, folder, batch=batch, enable_checkpointing=False, gradient_clip_val=5.0, **settings)
    trainer.save_checkpoint(folder / "student.ckpt")
    trainer.strategy.barrier()
    state: dict[str, Tensor] = torch.load(folder / "student.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith(("student.", "average.network."))}


def one_process(rank: int, folder: str) -> None:
    """Trains either stage on every second half of the batch; what comes of it goes to a file of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Lightning's, about its own call of torch.load
    os.environ["LOCAL_RANK"] = str(rank)  # tells Lightning that the processes are there already
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=LIMIT / 2)
    )
    own = rows(partly_bare(), slice(rank * IMAGES // PROCESSES, (rank + 1) * IMAGES // PROCESSES))
    ddp = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    watch = watched(
        build(**UNTAUGHT, accumulate=2), Path(folder), own, strategy=ddp, devices=PROCESSES, precision="64-true"
    )
    given = yaml.safe_load((ROOT / "configs/trainer/fsdp.yaml").read_text())["trainer"]["strategy"]["init_args"]
    fsdp = ModelParallelStrategy(**given | {"data_parallel_size": PROCESSES})
    weights = student(Path(folder), own, strategy=fsdp, devices=PROCESSES)
    torch.save({"gradients": watch.gradients, "exchanged": watch.exchanged, "student": weights}, f"{folder}/{rank}.pt")
    dist.barrier()  # neither leaves while the other still needs it
    gc.collect()  # DDP's modules lie in cycles that hold the process group
    dist.destroy_process_group()
    os._exit(
        0
    )  # gloo's threads, where any are left, may abort while an interpreter is taken down: nothing that is tested here


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Both processes' results; fails where they do not end in time."""
    folder, deadline = tmp_path_factory.mktemp("processes"), time.monotonic() + LIMIT
    context = spawn(one_process, (str(folder),), nprocs=PROCESSES, join=False)
    try:
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                pytest.fail(f"the processes did not end within {LIMIT} s")
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.slow
def test_two_processes_in_parts_step_with_the_gradients_of_one_and_exchange_them_once_an_optimiser(
    outcomes: list[dict[str, Any]], tmp_path: Path
) -> None:
    expected = watched(build(**UNTAUGHT), tmp_path, partly_bare())
    for outcome in outcomes:
        found = Watch()
        found.gradients = outcome["gradients"]
        assert_same_gradients(found, expected)
        assert outcome["exchanged"] == [False, True, False, True]


@pytest.mark.slow
def test_a_student_shared_out_to_two_processes_learns_what_one_process_learns(
    outcomes: list[dict[str, Any]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    start = Shared(student_input="masked", interpolation=0.75).state_dict()
    expected = student(tmp_path, partly_bare())
    for outcome in outcomes:
        assert outcome["student"].keys() == expected.keys()
        for prefix in ("student.", "average.network."):
            names = [name for name in expected if name.startswith(prefix)]
            before, whole, shared = (
                torch.cat([of[name].flatten() for name in names]) for of in (start, expected, outcome["student"])
            )
            assert (shared - whole).norm() < 1e-3 * (whole - before).norm()


def test_a_classifier_beside_a_shared_out_student_and_a_checkpoint_without_weights_are_refused() -> None:
    mesh: Any = object()
    check_shareable(None, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="identity_weight 0"):
        check_shareable(mesh, torch.nn.Linear(2, 2))
    check_loadable({"state_dict": {}})
    with pytest.raises(ValueError, match="cannot be resumed"):
        check_loadable({"epoch": 1})
