"""Two processes on one machine, started as a person would."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, SMALL, TINY_STAGE1


@pytest.mark.parametrize("stage", ["inpaint", "distill"])
def test_both_stages_train_with_two_processes(stage: str, stage1: Path, tmp_path: Path) -> None:
    own = TINY_STAGE1 if stage == "inpaint" else ["--model.init_args.inpainting_checkpoint", str(stage1)]
    files = ["--config", str(ROOT / f"configs/{stage}.yaml"), "--config", str(ROOT / "configs/trainer/ddp.yaml")]
    two = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
    words = ["fit", *files, "--run", str(tmp_path / "run"), *SMALL, *own, *two, "--trainer.limit_val_batches", "1"]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("deocc")), *words], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == (2 if stage == "inpaint" else 1)
