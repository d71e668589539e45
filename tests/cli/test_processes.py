"""Two processes on one machine, started as a person would, do what one does with the batch of both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ONE_STEP, ROOT, SMALL, TINY_STAGE1, run_deocc

RELATIONS = ["--model.init_args.identity_weight", "0"]
"""Pair, triplet and instance relation alone."""


def train(stage: str, run: Path, own: list[str], processes: int) -> dict[str, Any]:
    """The checkpoint after one step on eight images."""
    words = ["fit", "--config", str(ROOT / f"configs/{stage}.yaml"), "--run", str(run), *SMALL, *own, *ONE_STEP]
    if processes == 1:
        run_deocc(*words, "--data.batch_size", "8")
    else:
        words += ["--config", str(ROOT / "configs/trainer/ddp.yaml"), "--trainer.accelerator", "cpu", "--trainer.devices", str(processes)]
        command = [str(Path(sys.executable).with_name("deocc")), *words, "--data.batch_size", str(8 // processes)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


def gradients(checkpoint: dict[str, Any]) -> list[torch.Tensor]:
    """The gradient of each optimiser's parameters as one vector, up to a factor: Adam's first moment after one step."""
    return [
        torch.cat([state["exp_avg"].flatten() for state in optimizer["state"].values()]) for optimizer in checkpoint["optimizer_states"]
    ]


@pytest.mark.parametrize(("stage", "tolerance"), [("inpaint", 1e-4), ("distill", 1e-3)])
def test_two_processes_take_the_step_that_one_takes(stage: str, tolerance: float, stage1: Path, tmp_path: Path) -> None:
    """Both stages, up to rounding."""
    own = TINY_STAGE1 if stage == "inpaint" else ["--model.init_args.inpainting_checkpoint", str(stage1), *RELATIONS]
    one, two = (train(stage, tmp_path / str(processes), own, processes) for processes in (1, 2))
    assert two["global_step"] == one["global_step"] == (2 if stage == "inpaint" else 1)
    for ours, theirs in zip(gradients(one), gradients(two), strict=True):
        assert (ours - theirs).norm() < tolerance * ours.norm()
    if stage == "distill":
        assert all(torch.allclose(value, two["state_dict"][key], rtol=0, atol=1e-5) for key, value in one["state_dict"].items())


def test_two_processes_share_a_test_and_find_what_one_finds(stage2: Path, tmp_path: Path) -> None:
    few = ["--data.kinds", "[surgical]", "--data.test_seeds", "[1]", "--data.face_set.init_args.fold", "0"]
    words = ["test", "--checkpoint", str(stage2), *SMALL, *few, "--trainer.accelerator", "cpu"]
    run_deocc(*words, "--run", str(tmp_path / "1"))
    apart = [*words, "--run", str(tmp_path / "2"), "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    command = [str(Path(sys.executable).with_name("deocc")), *apart]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in "12")
    for row, scores in one["rows"].items():
        assert two["rows"][row]["pairs"] == scores["pairs"]
        assert two["rows"][row]["eer"] == pytest.approx(scores["eer"], abs=2e-3)  # batches of other sizes round otherwise
    assert two["restoration"]["given_mask"] == pytest.approx(one["restoration"]["given_mask"], rel=1e-4)
