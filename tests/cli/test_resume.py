"""An interrupted run goes on where it was: the same weights, the same log, the same folder, and no other run needed."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deocc import runs
from tests.conftest import ROOT, SMALL, TINY_STAGE1, run_deocc

SHORT = ["--trainer.max_epochs", "3", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
SHORT += ["--trainer.log_every_n_steps", "1"]
BREAK = ["--trainer.callbacks+", "tests.cli.stopping.BreakInSecondEpoch"]


def last(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def logged(run: Path) -> dict[int, dict[str, float]]:
    """The training's rows by step; a repeated step must have repeated its figures."""
    rows: dict[int, dict[str, float]] = {}
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            values = {key: float(value) for key, value in row.items() if value and key.startswith("train/")}
            if values:
                assert rows.setdefault(int(row["step"]), values) == values
    return rows


def fit(stage: str, *words: str) -> None:
    run_deocc("fit", "--config", str(ROOT / f"configs/{stage}.yaml"), *SMALL, *SHORT, *words)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("inpaint", TINY_STAGE1),
        ("inpaint", [*TINY_STAGE1, "--model.init_args.adversarial", "wgan"]),
        ("distill", ["--model.init_args.inpainting_checkpoint", "stage1"]),
    ],
    ids=["inpaint-hinge", "inpaint-wgan", "distill"],
)
def test_a_broken_and_resumed_run_equals_one_in_one_go(
    stage: str, words: list[str], stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, optimiser, averages, learning rate, order, augmentation and masks; stage 2 even where its stage 1 is gone by then."""
    monkeypatch.chdir(tmp_path)
    through, halved = tmp_path / "through", tmp_path / "halved"
    Path("stage1").symlink_to(stage1)
    fit(stage, *words, "--run", str(through))
    with pytest.raises(SystemExit):
        fit(stage, *words, "--run", str(halved), *BREAK)
    assert last(halved)["epoch"] == 0, "the first epoch's checkpoint was not written when the epoch ended"
    Path("stage1").unlink()
    named = yaml.safe_load((halved / runs.CONFIG).read_text())["model"]["init_args"].get("inpainting_checkpoint")
    fit(stage, *words, "--ckpt_path", str(halved / "checkpoints" / "last.ckpt"))
    ours, theirs = last(through), last(halved)
    assert theirs["global_step"] == ours["global_step"]
    assert [key for key, value in ours["state_dict"].items() if not torch.equal(value, theirs["state_dict"][key])] == []
    assert logged(halved) == logged(through) and len(logged(through)) == 3
    assert (
        yaml.safe_load((halved / runs.CONFIG).read_text())["model"]["init_args"].get("inpainting_checkpoint") == named
    )


def test_resuming_into_another_run_leaves_that_run_alone(
    stage1: Path, stage2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed = ["--ckpt_path", str(stage1 / "checkpoints" / "last.ckpt"), "--trainer.fast_dev_run", "true"]
    fit("inpaint", *TINY_STAGE1, *resumed, "--run", str(stage2))
    assert f"writing to {stage2}-2" in capsys.readouterr().out
    fit("inpaint", *TINY_STAGE1, *resumed)
    assert f"writing to {stage1}\n" in capsys.readouterr().out
