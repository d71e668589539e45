"""Two processes on one machine, started as a person would, do what one does with the batch of both: losses, gradients, figures of a test.

Losses are those that `metrics.csv` holds, gradients those of every step before they are clipped. In float64 both differ by what is computed
in float32 there too (crops, embeddings): 2e-7 of a loss, 6e-7 of a gradient's norm after three steps. In float32 Adam turns the rounding of
a gradient near 0 into a whole rate, and a step passes it on to the next ones: 1e-3 of the smallest term, 3e-4 of a gradient.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from deocc.batch import MaskedFaceBatch
from deocc.modules import InpaintingModule
from deocc.modules.optimization import Part, take_apart
from tests.conftest import ROOT, SMALL, TINY_STAGE1, run_deocc
from tests.modules.test_inpainting import SMALL as TINY
from tests.modules.test_scale import partly_bare, rows
from tests.numbers.gradients import Gradients

STEPS = 3
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", str(STEPS), "--trainer.limit_val_batches", "0"]
SHORT += ["--trainer.log_every_n_steps", "1", "--trainer.callbacks+", "tests.numbers.gradients.GradientFile"]
ALL_TERMS = [
    f"--model.init_args.{name}={value}"
    for name, value in {"identity_weight": 0.5, "beta": 0.5, "prediction_weight": 1}.items()
]
SHARDED = ["--model.init_args.identity_head", "sharded"]
WGAN = ["--model.init_args.adversarial", "wgan"]


class Case(NamedTuple):
    """A training, what its two processes are given besides, and by how much they may differ."""

    stage: str
    precision: str
    words: list[str]
    apart: list[str]
    losses: float
    gradients: float


CASES = {
    "inpaint-hinge": Case("inpaint", "64-true", TINY_STAGE1, [], 1e-6, 1e-5),
    "inpaint-wgan": Case("inpaint", "64-true", [*TINY_STAGE1, *WGAN], [], 1e-6, 1e-5),
    "inpaint-hinge-float32": Case("inpaint", "32-true", TINY_STAGE1, [], 5e-3, 2e-3),
    "distill-sharded": Case("distill", "64-true", ALL_TERMS, SHARDED, 1e-6, 1e-5),
    "distill-full-float32": Case("distill", "32-true", ALL_TERMS, [], 1e-4, 2e-3),
}


def start(*words: str) -> None:
    """Run `deocc` in two processes of its own."""
    command = [
        str(Path(sys.executable).with_name("deocc")),
        *words,
        "--trainer.accelerator",
        "cpu",
        "--trainer.devices",
        "2",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # where the callback is found
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def logged(run: Path) -> list[dict[str, float]]:
    """What was logged at each training step, by name."""
    with (run / "metrics.csv").open(newline="") as file:
        found = [
            {key: float(value) for key, value in row.items() if value and key.startswith("train/")}
            for row in csv.DictReader(file)
        ]
    return [row for row in found if row]


def gradients(run: Path) -> list[Gradients]:
    """Of every step; of a classifier whose rows lie on two processes, all rows."""
    first, *others = (torch.load(file, weights_only=True) for file in sorted(run.glob("gradients-*.pt")))
    if not others:
        return list(first)
    (second,) = others
    split = [
        name for name in first[0] if name == "classifier.weight" and not torch.equal(first[0][name], second[0][name])
    ]
    return [
        ours | {name: torch.cat([ours[name], theirs[name]]) for name in split}
        for ours, theirs in zip(first, second, strict=True)
    ]


def joined(step: Gradients) -> torch.Tensor:
    return torch.cat([step[name].flatten() for name in sorted(step)])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_log_the_losses_and_step_with_the_gradients_of_one(
    name: str, stage1: Path, tmp_path: Path
) -> None:
    """Three steps with every term; a gradient's norm at the embeddings counts as one of the losses."""
    case, one, two = CASES[name], tmp_path / "1", tmp_path / "2"
    own = [*SMALL, *case.words, *SHORT, "--trainer.precision", case.precision]
    own += ["--model.init_args.inpainting_checkpoint", str(stage1)] if case.stage == "distill" else []
    words = ["fit", "--config", str(ROOT / f"configs/{case.stage}.yaml"), *own]
    run_deocc(*words, "--run", str(one), "--data.batch_size", "8")
    start(
        *words,
        *case.apart,
        "--run",
        str(two),
        "--config",
        str(ROOT / "configs/trainer/ddp.yaml"),
        "--data.batch_size",
        "4",
    )
    expected, found = logged(one), logged(two)
    assert len(expected) == STEPS and len(expected[0]) == (7 if case.stage == "inpaint" else 11)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=case.losses)
    steps = gradients(two)
    assert len(steps) == (2 * STEPS if case.stage == "inpaint" else STEPS)
    for step, reference in zip(steps, gradients(one), strict=True):
        assert step.keys() == reference.keys()
        assert (joined(step) - joined(reference)).norm() < case.gradients * joined(reference).norm()


@pytest.mark.parametrize("adversarial", ["hinge", "wgan"])
def test_the_terms_of_two_processes_of_stage_1_average_to_those_of_one(adversarial: str) -> None:
    """A quick twin without processes: also where one holds more bare faces than the other, and of the gradient penalty's draws."""
    torch.manual_seed(0)
    module, batch = InpaintingModule(**TINY, adversarial=adversarial), partly_bare()  # type: ignore[arg-type]
    assert module.discriminator is not None
    module.discriminator.eval()  # its spectral norms would take an iteration more with every part
    (whole,) = take_apart(batch, 1, torch.clone)
    halves = [rows(batch, slice(0, 4)), rows(batch, slice(4, 8))]
    shared = [terms(module, take_apart(half, 1, lambda _: counts(batch) / 2)[0]) for half in halves]
    for name, value in terms(module, whole).items():
        torch.testing.assert_close(
            torch.stack([half[name] for half in shared]).mean(), value, rtol=1e-5, atol=1e-6, msg=name
        )


def counts(batch: MaskedFaceBatch) -> torch.Tensor:
    """(3,), what processes exchange: images, images that have covered pixels, images that have visible ones."""
    covered, visible = ((weight.flatten(1).sum(1) > 0).sum() for weight in (batch["mask"], 1 - batch["mask"]))
    return torch.stack([torch.tensor(len(batch["mask"])), covered, visible]).float()


def terms(module: InpaintingModule, part: Part) -> dict[str, torch.Tensor]:
    """All of a part's, with that of the discriminators."""
    generated = module._generate(part)
    batch: MaskedFaceBatch = part.batch
    return module._generator_terms(part, generated) | {
        "discriminator": part.images * module._discriminator_loss(batch, generated.detach())
    }


@pytest.mark.slow
def test_two_processes_share_a_test_and_find_what_one_finds(stage2: Path, tmp_path: Path) -> None:
    few = ["--data.kinds", "[surgical]", "--data.test_seeds", "[1]", "--data.face_set.init_args.fold", "0"]
    words = ["test", "--checkpoint", str(stage2), *SMALL, *few]
    run_deocc(*words, "--run", str(tmp_path / "1"), "--trainer.accelerator", "cpu")
    start(*words, "--run", str(tmp_path / "2"), "--trainer.strategy", "ddp")
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in "12")
    for row, scores in one["rows"].items():
        assert two["rows"][row]["pairs"] == scores["pairs"]
        assert two["rows"][row]["eer"] == pytest.approx(
            scores["eer"], abs=2e-3
        )  # batches of other sizes round otherwise
    assert two["restoration"]["given_mask"] == pytest.approx(one["restoration"]["given_mask"], rel=1e-4)
