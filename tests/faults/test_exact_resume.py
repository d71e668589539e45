"""A training that is killed and resumed ends bit for bit like an uninterrupted one."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.accidents import TWO_PROCESSES, fit, resume, struck

pytestmark = pytest.mark.slow
INITIAL_WEIGHTS = [f"--model.init_args.{name}" for name in ("initial_weights=pretrained", "interpolation=0.75")]
INITIAL_WEIGHTS += [f"--model.init_args.{name}" for name in ("student_input=both", "mask_channel=true")]
_IGNORED = ("fingerprint",)  # contains the run folder, and that it was resumed


def last(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {key: value for key, value in content.items() if key not in _IGNORED}


def differing(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """Yield the places in which two checkpoints differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        for key, value in ours.items():
            yield from differing(value, theirs[key], f"{place}/{key}")
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        for number, value in enumerate(ours):
            yield from differing(value, theirs[number], f"{place}/{number}")
    elif isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if not torch.equal(ours, theirs):
            yield place
    elif ours != theirs:
        yield f"{place}: {ours} and {theirs}"


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_differing_finds_differences() -> None:
    ours = {"a": [torch.zeros(2), {"b": 1}], "c": 2}
    assert list(differing(ours, ours)) == []
    assert list(differing(ours, {"a": [torch.ones(2), {"b": 3}], "c": 2})) == ["/a/0", "/a/1/b: 1 and 3"]
    assert len(list(differing(ours, {"a": [torch.zeros(2)], "c": 2}))) == 1


@pytest.mark.parametrize(
    ("stage", "argv", "strike"),
    [
        ("inpaint", [], {}),
        ("inpaint", ["--model.init_args.adversarial", "wgan", "--data.num_workers", "2"], {"batch": 4}),
        ("inpaint", ["--trainer.precision", "bf16-mixed", "--model.init_args.accumulate", "2"], {"epoch": 0}),
        ("inpaint", TWO_PROCESSES, {}),
        ("distill", ["--data.num_workers", "2"], {}),
        ("distill", ["--config", "configs/data/flip.yaml", "--trainer.accumulate_grad_batches", "2"], {"batch": 4}),
        ("distill", [*TWO_PROCESSES, "--data.num_workers", "1"], {"rank": 1}),
        ("distill", INITIAL_WEIGHTS, {}),
        ("distill", ["--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null"], {}),
    ],
    ids=[
        "inpaint",
        "workers",
        "bf16",
        "processes",
        "distill",
        "accumulate",
        "distill-processes",
        "initial-weights",
        "validation-between",
    ],
)
def test_killed_and_resumed_run_is_exact(
    stage: str, argv: list[str], strike: dict[str, int], stage1: Path, tmp_path: Path
) -> None:
    """Weights, averages, optimisers, schedules, counters, scaler and log; killed during a step within an epoch."""
    argv = [*argv, *(["--model.init_args.inpainting_checkpoint", str(stage1)] if stage == "distill" else [])]
    through, killed = tmp_path / "through", tmp_path / "killed"
    done = fit(*argv, "--run", str(through), stage=stage)
    assert done.returncode == 0, done.stderr[-2000:]
    assert fit(*argv, "--run", str(killed), *struck(**strike), stage=stage).returncode != 0
    assert last(killed)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] in (2, 4), (
        "not within an epoch"
    )
    resumed = resume(killed, "--trainer.callbacks.init_args.epoch=99")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert list(differing(last(through), last(killed))) == []
    assert rows(killed) == rows(through)
