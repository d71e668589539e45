"""Two processes of a command give the losses, gradients and test scores of one process with the batch of both.

Losses are those in `metrics.csv`, gradients those of every step before clipping. In float64 they differ by what is
computed in float32 anyway (crops, embeddings): 2e-7 of a loss, 6e-7 of a gradient's norm after three steps. In float32,
Adam turns the rounding of a gradient near 0 into a whole learning rate: 1e-3 of the smallest loss, 3e-4 of a gradient's
norm, with AVX-512 7e-3.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import torch

from deocc.batch import MaskedFaceBatch
from deocc.modules import InpaintingModule
from deocc.modules.optimization import MicroBatch, split_micro_batches
from tests.conftest import ROOT, SMALL, TINY_STAGE1, run_deocc
from tests.modules.training import SMALL as TINY
from tests.modules.training import partly_bare, rows
from tests.numbers.gradients import Gradients

STEPS = 3
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", str(STEPS), "--trainer.limit_val_batches", "0"]
SHORT += ["--trainer.log_every_n_steps", "1", "--trainer.callbacks+", "tests.numbers.gradients.GradientFile"]
# SGD: AdamW's first steps are as large for gradients that are rounding errors, which differ between the processes.
_DISTILL = ("identity_weight=0.5", "beta=0.5", "prediction_weight=1", "optimizer=sgd")
ALL_TERMS = [f"--model.init_args.{setting}" for setting in _DISTILL]
FLOAT64 = ["--trainer.plugins", "pytorch_lightning.plugins.DoublePrecision"]  # not a precision that `deocc fit` offers
SHARDED = ["--model.init_args.identity_head", "sharded"]
WGAN = ["--model.init_args.adversarial", "wgan"]


class Case(NamedTuple):
    """A training, further arguments of its two processes, and relative tolerances."""

    stage: str
    precision: str
    argv: list[str]
    two: list[str]
    losses: float
    gradients: float


CASES = {
    "inpaint-hinge": Case("inpaint", "64-true", TINY_STAGE1, [], 1e-6, 1e-5),
    "inpaint-wgan": Case("inpaint", "64-true", [*TINY_STAGE1, *WGAN], [], 1e-6, 1e-5),
    "inpaint-hinge-float32": Case("inpaint", "32-true", TINY_STAGE1, [], 5e-3, 2e-2),
    "distill-sharded": Case("distill", "64-true", ALL_TERMS, SHARDED, 1e-6, 1e-5),
    "distill-full-float32": Case("distill", "32-true", ALL_TERMS, [], 1e-4, 2e-3),
}


def run_two_processes(*argv: str) -> None:
    command = [str(Path(sys.executable).with_name("deocc")), *argv]
    command += ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # where the callback is found
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def logged(run: Path) -> list[dict[str, float]]:
    """Return what was logged at each training step, by name."""
    with (run / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    found = [{name: float(value) for name, value in row.items() if value and name[:6] == "train/"} for row in table]
    return [row for row in found if row]


def gradients(run: Path) -> list[Gradients]:
    """Return the gradients of every step; a classifier split over two processes is joined."""
    first, *others = (torch.load(file, weights_only=True) for file in sorted(run.glob("gradients-*.pt")))
    for step, other in zip(first, *others, strict=True) if others else ():
        name = "classifier.weight"
        if name in step and not torch.equal(step[name], other[name]):
            step[name] = torch.cat([step[name], other[name]])
    return list(first)


def flat(step: Gradients) -> torch.Tensor:
    return torch.cat([step[name].flatten() for name in sorted(step)])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, stage1: Path, tmp_path: Path) -> None:
    """Three steps with every term; the logged gradient norms count as losses."""
    case, one, two = CASES[name], tmp_path / "1", tmp_path / "2"
    argv = ["fit", "--config", str(ROOT / f"configs/{case.stage}.yaml"), *SMALL, *case.argv, *SHORT]
    argv += FLOAT64 if case.precision == "64-true" else ["--trainer.precision", case.precision]
    argv += ["--model.init_args.inpainting_checkpoint", str(stage1)] if case.stage == "distill" else []
    run_deocc(*argv, "--run", str(one), "--data.batch_size", "8")
    ddp = ["--config", str(ROOT / "configs/trainer/ddp.yaml"), "--data.batch_size", "4"]
    run_two_processes(*argv, *case.two, "--run", str(two), *ddp)
    expected, found = logged(one), logged(two)
    assert len(expected) == STEPS and len(expected[0]) == (7 if case.stage == "inpaint" else 11)
    for row, reference in zip(found, expected, strict=True):
        assert row == pytest.approx(reference, rel=case.losses)
    steps = gradients(two)
    assert len(steps) == (2 * STEPS if case.stage == "inpaint" else STEPS)
    for step, single in zip(steps, gradients(one), strict=True):
        assert step.keys() == single.keys()
        assert (flat(step) - flat(single)).norm() < case.gradients * flat(single).norm()


@pytest.mark.parametrize("adversarial", ["hinge", "wgan"])
def test_terms_of_two_ranks_average(adversarial: Literal["hinge", "wgan"]) -> None:
    """A quick check without processes, where one rank has more bare faces than the other."""
    torch.manual_seed(0)
    module, batch = InpaintingModule(**TINY, adversarial=adversarial), partly_bare()
    assert module.discriminator is not None
    module.discriminator.eval()  # its spectral norms would take an iteration more per micro-batch
    counts = torch.stack(
        [torch.tensor(8), *((m.flatten(1) > 0).any(1).sum() for m in (batch["mask"], 1 - batch["mask"]))]
    )
    (whole,) = split_micro_batches(batch, 1, torch.clone)
    halves = [rows(batch, slice(0, 4)), rows(batch, slice(4, 8))]
    parts = [terms(module, split_micro_batches(half, 1, lambda _: counts.float() / 2)[0]) for half in halves]
    for name, value in terms(module, whole).items():
        mean = torch.stack([part[name] for part in parts]).mean()
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6, msg=name)


def terms(module: InpaintingModule, micro_batch: MicroBatch) -> dict[str, torch.Tensor]:
    batch: MaskedFaceBatch = micro_batch.batch
    generated = module.generator(batch["masked_face"], batch["mask"])
    discriminator = micro_batch.weight * module._discriminator_loss(batch, generated.detach())
    return {**module._generator_terms(micro_batch, generated), "discriminator": discriminator}


@pytest.mark.slow
def test_two_processes_test_as_one(stage2: Path, tmp_path: Path) -> None:
    few = ["--data.kinds", "[surgical]", "--data.test_seeds", "[1]", "--data.face_set.init_args.fold", "0"]
    argv = ["test", "--checkpoint", str(stage2), *SMALL, *few]
    run_deocc(*argv, "--run", str(tmp_path / "1"), "--trainer.accelerator", "cpu")
    run_two_processes(*argv, "--run", str(tmp_path / "2"), "--trainer.strategy", "ddp")
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in "12")
    for row, scores in one["rows"].items():
        assert two["rows"][row]["pairs"] == scores["pairs"]
        assert two["rows"][row]["eer"] == pytest.approx(scores["eer"], abs=2e-3)  # other batch sizes round differently
    assert two["restoration"]["given_mask"] == pytest.approx(one["restoration"]["given_mask"], rel=1e-4)
