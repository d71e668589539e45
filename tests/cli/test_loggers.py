"""Weights & Biases without an account, and a metrics.csv whatever else is logged to."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from tests.conftest import ROOT, SMALL, run_deocc

ONE_KIND = ["--data.kinds", "[surgical]", "--data.test_seeds", "[1]"]
SHORT = [*SMALL, *ONE_KIND, "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "2"]
SHORT += ["--trainer.log_every_n_steps", "1", "--trainer.check_val_every_n_epoch", "1"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home without a key, in an environment that says nothing of W&B."""
    for name in {"WANDB_MODE", *(name for name in os.environ if name.startswith("WANDB_"))}:
        monkeypatch.setenv(name, "")  # so that what the command sets is taken back as well
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    wandb.finish()


def run_apart(*words: str) -> None:
    """Run `deocc` as in a process of its own, whose end ends its W&B run."""
    run_deocc(*words)
    wandb.finish()


def newest_records(run: Path, *needles: bytes) -> bytes:
    """What W&B recorded last. It writes in a process of its own, after `finish` has returned, so this waits for the needles."""
    for _ in range(100):
        records = list(offline_runs(run).values())[-1]
        if all(needle in records for needle in needles):
            break
        time.sleep(0.1)
    return records


def offline_runs(run: Path) -> dict[str, bytes]:
    """The records of each offline W&B run in a run folder, oldest first, by the folder, whose name ends with the W&B id."""
    return {
        path.parent.name: path.read_bytes()
        for path in sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    }


def test_wandb_without_a_key_keeps_losses_panels_and_test_results_offline(
    home: Path, stage1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    fit = ["fit", "--config", str(ROOT / "configs/distill.yaml"), "--config", str(ROOT / "configs/logger/wandb.yaml"), *SHORT]
    fit += ["--model.init_args.inpainting_checkpoint", str(stage1)]
    run_apart(*fit, "--run", str(run), "--trainer.max_epochs", "1")
    assert f"logging offline to {run / 'wandb'}" in capsys.readouterr().out
    wanted = (b"train/loss", b"val/student/eer", b"val/panel")
    assert [needle for needle in wanted if needle not in newest_records(run, *wanted)] == []
    assert list(run.glob("wandb/offline-run-*/files/media/images/val/panel_*.png"))
    assert "train/loss" in (run / "metrics.csv").read_text()

    run_apart("test", "--checkpoint", str(run), *SMALL, *ONE_KIND, "--trainer.limit_test_batches", "4")
    wanted = (b"test/student/eer", b"test/Verification")
    assert [needle for needle in wanted if needle not in newest_records(run, *wanted)] == []
    assert any("Verification" in path.name for path in run.glob("wandb/offline-run-*/files/media/images/test/*.png"))

    run_apart(*fit, "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--trainer.max_epochs", "2")
    names = list(offline_runs(run))
    assert len(names) == 3 and len({name.rsplit("-", 1)[-1] for name in names}) == 1, "every part goes on in the one W&B run"


def test_tensorboard_beside_metrics_csv(stage1: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit = ["fit", "--config", str(ROOT / "configs/distill.yaml"), "--config", str(ROOT / "configs/logger/tensorboard.yaml"), *SHORT]
    fit += ["--model.init_args.inpainting_checkpoint", str(stage1), "--trainer.max_epochs", "1"]
    run_deocc(*fit, "--run", str(run))
    (events,) = run.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes() and b"val/panel" in events.read_bytes()
    assert "train/loss" in (run / "metrics.csv").read_text()
