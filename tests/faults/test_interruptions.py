"""Signals, full disks, lost processes and losses that are not finite lose nothing, and the message has a remedy."""

import json
import os
import shutil
import signal
import stat
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, TINY_STAGE1
from tests.faults.accidents import DEOCC, SHORT, TWO_PROCESSES, fit, resume, run, struck
from tests.faults.test_exact_resume import differing, last, rows

pytestmark = pytest.mark.slow
FIT = [DEOCC, "fit", "--config", str(ROOT / "configs/inpaint.yaml"), *SMALL, *TINY_STAGE1, *SHORT]


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "through"
    done = fit("--run", str(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_signal_stops_after_the_step(signum: int, code: int, through: Path, tmp_path: Path) -> None:
    """Within an epoch, at a batch without a regular checkpoint."""
    run_folder = tmp_path / "run"
    stopped = fit("--run", str(run_folder), "--data.num_workers", "1", *struck(epoch=1, batch=2, signum=signum))
    assert stopped.returncode == code, stopped.stderr[-2000:]
    assert f"deocc fit --resume {run_folder}" in stopped.stderr
    assert last(run_folder)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] == 3
    assert resume(run_folder, "--data.num_workers", "0", "--trainer.callbacks.init_args.epoch=99").returncode == 0
    assert list(differing(last(through), last(run_folder))) == []
    assert rows(run_folder) == rows(through)


def test_second_ctrl_c_stops_at_once(through: Path, tmp_path: Path) -> None:
    """During the step; earlier checkpoints are complete."""
    run_folder = tmp_path / "run"
    stopped = fit("--run", str(run_folder), *struck(epoch=1, batch=3, signum=signal.SIGINT, times=2))
    assert stopped.returncode == 130, stopped.stderr[-2000:]
    assert "at once" in stopped.stderr and "Traceback" not in stopped.stderr
    assert resume(run_folder, "--trainer.callbacks.init_args.epoch=99").returncode == 0
    assert list(differing(last(through), last(run_folder))) == []


def test_processes_stop_together(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    stopped = fit("--run", str(run_folder), *TWO_PROCESSES, *struck(epoch=1, batch=2, signum=signal.SIGTERM, rank=1))
    assert stopped.returncode == 143, stopped.stderr[-2000:]
    assert last(run_folder)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_process_ends_the_other(rank: int, tmp_path: Path) -> None:
    begun = time.monotonic()
    ended = fit("--run", str(tmp_path / "run"), *TWO_PROCESSES, *struck(epoch=0, batch=2, rank=rank), timeout=120)
    assert ended.returncode != 0
    assert time.monotonic() - begun < 120
    assert "another process of this training has ended" in ended.stderr, ended.stderr[-2000:]


def test_slurm_job_is_requeued(through: Path, tmp_path: Path) -> None:
    """SIGUSR1 before the limit: a checkpoint, `scontrol requeue`, and the same command continues in the same folder."""
    scontrol, asked, run_folder = tmp_path / "bin" / "scontrol", tmp_path / "asked", tmp_path / "run"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    job = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1"}
    job |= {"SLURM_JOB_NAME": "bash", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    stopped = run([*FIT, "--run", str(run_folder), *struck(epoch=1, batch=2, signum=signal.SIGUSR1)], 240, **job)
    assert stopped.returncode == 138, stopped.stderr[-2000:]
    assert asked.read_text().split() == ["requeue", "77"]
    again = run([*FIT, "--run", str(run_folder)], 240, SLURM_RESTART_COUNT="1", **job)
    assert again.returncode == 0, again.stderr[-2000:]
    assert not run_folder.with_name("run-2").exists()
    assert list(differing(last(through), last(run_folder))) == []


@pytest.mark.parametrize("harm", ["cut", "flipped", "half-written"])
def test_damaged_checkpoint_is_replaced(harm: str, through: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(through, run_folder)
    newest = run_folder / "checkpoints" / ("next.ckpt" if harm == "half-written" else "last.ckpt")
    content = bytearray((run_folder / "checkpoints" / "last.ckpt").read_bytes())
    if harm == "flipped":
        content[len(content) // 2] ^= 1
    newest.write_bytes(content if harm == "flipped" else content[: len(content) // 2])
    resumed = resume(run_folder)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert f"{newest} is damaged" in resumed.stderr
    assert list(differing(last(through), last(run_folder))) == []
    assert rows(run_folder) == rows(through)


@pytest.mark.parametrize(("epoch", "batch"), [(0, 1), (1, 4)], ids=["within", "last"])
def test_full_disk_delays_checkpoint(epoch: int, batch: int, through: Path, tmp_path: Path) -> None:
    """The training continues and tries again; the final checkpoint is retried until it succeeds."""
    run_folder = tmp_path / "run"
    full = [
        "--trainer.callbacks+",
        "tests.faults.accidents.FillDisk",
        "--trainer.callbacks.init_args.epoch",
        str(epoch),
    ]
    done = fit("--run", str(run_folder), *full, "--trainer.callbacks.init_args.batch", str(batch))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "cannot write" in done.stderr and "No space left" in done.stderr
    ours, theirs = last(through), last(run_folder)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert list(differing(ours[part], theirs[part])) == []
    assert rows(run_folder) == rows(through)


def test_unwritable_run_folder_is_refused(tmp_path: Path) -> None:
    done = fit("--run", "/proc/deocc-run")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("deocc: ")]
    assert len(lines) == 1 and "/proc/deocc-run" in lines[0] and "--run" in lines[0]


@pytest.mark.parametrize("stage", ["inpaint", "distill"])
@pytest.mark.parametrize("action", ["stop", "skip"])
def test_loss_that_is_not_finite(stage: str, action: str, stage1: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    argv = ["--model.init_args.inpainting_checkpoint", str(stage1)] if stage == "distill" else []
    spoiled = ["--trainer.callbacks+", "tests.faults.accidents.Spoil"]
    done = fit(*argv, "--run", str(run_folder), "--non_finite.action", action, *spoiled, stage=stage)
    told = [json.loads(path.read_text()) for path in sorted((run_folder / "non_finite").iterdir())]
    assert told[0]["epoch"] == 1 and "nan" in told[0]["terms"].values()
    assert len(told[0]["index"]) == len(told[0]["seed"]) == 4
    assert done.returncode == (2 if action == "stop" else 0), done.stderr[-2000:]
    state = last(run_folder)["state_dict"]
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    if action == "stop":
        assert "not finite" in done.stderr and "non_finite.action skip" in done.stderr


def test_both_processes_skip_bad_step(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    spoiled = ["--trainer.callbacks+", "tests.faults.accidents.Spoil", "--trainer.callbacks.init_args.rank=1"]
    done = fit("--run", str(run_folder), *TWO_PROCESSES, "--non_finite.action", "skip", *spoiled)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name.split("-process-")[1] for path in (run_folder / "non_finite").iterdir()} == {"0.json", "1.json"}
    assert all(value.isfinite().all() for value in last(run_folder)["state_dict"].values() if value.is_floating_point())


def test_clock_change_is_harmless(through: Path, tmp_path: Path) -> None:
    """The newest checkpoint follows from its name, not from its date."""
    run_folder = tmp_path / "run"
    shutil.copytree(through, run_folder)
    future = time.time() + 10**8
    os.utime(run_folder / "checkpoints" / "previous.ckpt", (future, future))
    resumed = resume(run_folder, "--trainer.max_epochs", "2")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert last(run_folder)["global_step"] == last(through)["global_step"]
