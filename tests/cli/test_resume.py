"""An interrupted run continues with the same weights, log and folder, and needs no other run."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deocc import runs
from tests.conftest import SMALL, TINY_STAGE1, run_deocc

SHORT = ["--trainer.max_epochs", "3", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
SHORT += ["--trainer.log_every_n_steps", "1"]
BREAK = ["--trainer.callbacks+", "tests.cli.stopping.BreakInSecondEpoch"]


def last(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def stage1_of(run: Path) -> object:
    return yaml.safe_load((run / runs.CONFIG).read_text())["model"]["init_args"].get("inpainting_checkpoint")


def logged(run: Path) -> dict[int, dict[str, float]]:
    """The logged training values by step; a repeated step must have equal values."""
    rows: dict[int, dict[str, float]] = {}
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            values = {key: float(value) for key, value in row.items() if value and key.startswith("train/")}
            if values:
                assert rows.setdefault(int(row["step"]), values) == values
    return rows


def fit(stage: str, *argv: str) -> None:
    run_deocc("fit", "--config", stage, *SMALL, *SHORT, *argv)


@pytest.mark.parametrize(
    ("stage", "own"),
    [
        ("inpaint", TINY_STAGE1),
        ("inpaint", [*TINY_STAGE1, "--model.init_args.adversarial", "wgan"]),
        ("distill", ["--model.init_args.inpainting_checkpoint", "stage1"]),
    ],
    ids=["inpaint-hinge", "inpaint-wgan", "distill"],
)
def test_resumed_run_equals_an_uninterrupted_one(
    stage: str, own: list[str], stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In weights, optimiser, averages, schedule, order, augmentation and masks; stage 2 even without its stage 1."""
    monkeypatch.chdir(tmp_path)
    through, broken = tmp_path / "through", tmp_path / "broken"
    Path("stage1").symlink_to(stage1)
    fit(stage, *own, "--run", str(through))
    with pytest.raises(SystemExit):
        fit(stage, *own, "--run", str(broken), *BREAK)
    assert last(broken)["epoch"] == 0, "the first epoch's checkpoint was not written when the epoch ended"
    Path("stage1").unlink()
    named = stage1_of(broken)
    fit(stage, *own, "--ckpt_path", str(broken / "checkpoints" / "last.ckpt"))
    expected, resumed = last(through), last(broken)
    assert resumed["global_step"] == expected["global_step"]
    for key, value in expected["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
    assert logged(broken) == logged(through)
    assert len(logged(through)) == 3
    assert stage1_of(broken) == named


def test_resuming_into_another_run_leaves_it_unchanged(
    stage1: Path, stage2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed = ["--ckpt_path", str(stage1 / "checkpoints" / "last.ckpt"), "--trainer.fast_dev_run", "true"]
    fit("inpaint", *TINY_STAGE1, *resumed, "--run", str(stage2))
    assert f"writing to {stage2}-2" in capsys.readouterr().out
    fit("inpaint", *TINY_STAGE1, *resumed)
    assert f"writing to {stage1}\n" in capsys.readouterr().out
