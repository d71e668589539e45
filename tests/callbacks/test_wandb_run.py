"""Which W&B run a command goes on in, what it is called, and what happens where W&B does not answer."""

import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wandb
from jsonargparse import Namespace

from deocc.callbacks.loggers import BEST, WANDB_ID, WandbRunLogger, place_loggers

STAGE1 = "deocc.modules.InpaintingModule"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # as somebody chose, so that no key is looked for
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "")  # so that what the logger sets is taken back
    monkeypatch.delenv("WANDB_FINISH_TIMEOUT")


class FakeRun:
    """A W&B run that keeps its rows, but for those that `fault` hinders."""

    def __init__(self, folder: Path | None = None) -> None:
        self.dir, self.ends = f"{folder}/wandb/run-1/files", 0
        self.rows: list[dict[str, Any]] = []
        self.fault: OSError | None = None

    def define_metric(self, name: str, **definition: Any) -> None: ...

    def log(self, row: dict[str, Any]) -> None:
        if self.fault is not None:
            raise self.fault
        self.rows.append(row)

    def finish(self) -> None:
        self.ends += 1


def logger_to(run: FakeRun, folder: Path, monkeypatch: pytest.MonkeyPatch) -> WandbRunLogger:
    """A logger whose W&B run is this one."""
    monkeypatch.setattr(wandb, "init", lambda **settings: run)
    monkeypatch.setattr(wandb, "run", None)
    return WandbRunLogger(save_dir=str(folder), id="r1")


def placed(
    folder: Path, home: Path | None = None, subfolder: str = "", model: str = STAGE1, **settings: Any
) -> Namespace:
    """What the configuration of the W&B logger becomes."""
    logger = Namespace(class_path="deocc.callbacks.loggers.WandbRunLogger", init_args=Namespace(**settings))
    trainer = Namespace(logger=logger)
    place_loggers(trainer, folder, subfolder, home or folder, model)
    init_args: Namespace = trainer.logger[1].init_args
    return init_args


def test_a_run_is_named_after_its_folder_and_grouped_by_the_parent(tmp_path: Path) -> None:
    found = placed(tmp_path / "ablation" / "hard")
    assert (found.name, found.group, found.job_type) == ("hard", "ablation", "inpaint")
    assert found.save_dir == str(tmp_path / "ablation" / "hard")


def test_configured_names_stay(tmp_path: Path) -> None:
    found = placed(tmp_path / "run", name="mine", group="ours")
    assert (found.name, found.group) == ("mine", "ours")


def test_names_that_another_run_folder_gave_do_not_come_along_with_its_configuration(tmp_path: Path) -> None:
    first = placed(tmp_path / "a" / "first", group="ours")
    second = placed(tmp_path / "b" / "second", **vars(first))
    assert (second.name, second.group) == ("second", "ours")
    assert second.id != first.id


@pytest.mark.parametrize(
    ("model", "job"),
    [(STAGE1, "inpaint"), ("deocc.modules.DistillationModule", "distill"), ("mine.OtherModule", "OtherModule")],
)
def test_a_test_goes_on_in_the_run_of_the_training(model: str, job: str, tmp_path: Path) -> None:
    """Under its name, group and job type too, wherever the test writes to: it would rename the training's run."""
    home = tmp_path / "runs" / "trained"
    trained = placed(home, model=model)
    (home / "config.yaml").write_text("")
    tested = placed(tmp_path / "elsewhere", home, "test", model)
    assert tested.job_type == job
    assert [tested[key] for key in ("id", "name", "group", "job_type")] == [
        trained[key] for key in ("id", "name", "group", "job_type")
    ]


def test_a_test_without_a_training_is_a_run_of_its_own(tmp_path: Path) -> None:
    assert placed(tmp_path / "run", subfolder="test").job_type == "test"


def test_lightnings_own_logger_resumes_too(tmp_path: Path) -> None:
    """The parser hands WandbLogger `resume: null`, with which W&B starts the run afresh."""
    logger = Namespace(class_path="pytorch_lightning.loggers.WandbLogger", init_args=Namespace(resume=None))
    trainer = Namespace(logger=logger)
    place_loggers(trainer, tmp_path, "", tmp_path, STAGE1)
    assert trainer.logger[1].init_args.resume == "allow"


def test_a_server_that_does_not_answer_sends_the_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the best scores are named in whichever W&B run begins."""
    defined: dict[str, Any] = {}

    class Begun(FakeRun):
        def define_metric(self, name: str, **definition: Any) -> None:
            defined[name] = definition

    def init(**settings: Any) -> Begun:
        if os.environ["WANDB_MODE"] != "offline":
            raise wandb.errors.CommError("timed out\n after 90 s")
        assert (settings["id"], settings["resume"]) == ("r1", "allow")
        return Begun()

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "run", None)
    logger = WandbRunLogger(save_dir=str(tmp_path), id="r1")
    assert isinstance(logger.experiment, Begun) and logger.experiment is logger.experiment
    assert "W&B does not answer (timed out after 90 s), logging offline" in capsys.readouterr().out
    assert set(defined) == set(BEST)
    assert defined["val/student/eer"]["summary"] == "min,last" and defined["val/student/rank1"]["summary"] == "max,last"


def test_at_the_end_w_and_b_gets_a_minute_or_what_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ = logger_to(FakeRun(), tmp_path, monkeypatch).experiment
    assert os.environ["WANDB_FINISH_TIMEOUT"] == "60"
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "7")
    _ = logger_to(FakeRun(), tmp_path, monkeypatch).experiment
    assert os.environ["WANDB_FINISH_TIMEOUT"] == "7"


@pytest.mark.parametrize(("limit", "wait", "said"), [("60", 59.0, False), ("60", 60.5, True), ("0", 7200.0, False)])
def test_a_run_that_the_server_did_not_take_in_time_is_named_in_one_line(
    limit: str,
    wait: float,
    said: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """0 seconds are no limit, as for wandb."""
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", limit)
    times = iter([100.0, 100.0 + wait])
    monkeypatch.setattr("deocc.callbacks.wandb_logger.time", SimpleNamespace(monotonic=lambda: next(times)))
    run = FakeRun(tmp_path)
    logger = logger_to(run, tmp_path, monkeypatch)
    _ = logger.experiment
    logger.finish()
    folder = tmp_path / "wandb" / "run-1"
    line = f"deocc: W&B did not take all of the run; it lies in {folder}, and `wandb sync --include-online {folder}` uploads it\n"
    assert capsys.readouterr().out == (line if said else "") and run.ends == 1


def test_nothing_is_begun_to_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    logger_to(run, tmp_path, monkeypatch).finish()
    assert run.ends == 0


def test_a_full_disk_costs_pictures_only_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """wandb hands numbers to its own process, and writes pictures in ours."""
    run = FakeRun()
    logger = logger_to(run, tmp_path, monkeypatch)
    picture = np.zeros((4, 4, 3), np.uint8)
    logger.log_metrics({"train/loss": 1.0}, 0)
    run.fault = OSError(errno.ENOSPC, "No space left on device")
    for step in (1, 2):
        logger.log_image("val/panel", [picture], step)
        logger.log_table("test/rows", ["row"], [[1]], step=step)
    run.fault = None
    logger.log_image("val/panel", [picture], 3)
    assert [row["trainer/global_step"] for row in run.rows] == [0, 3]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"deocc: cannot write {tmp_path / 'wandb'} (No space left on device): training goes on")
    assert second == f"deocc: {tmp_path / 'wandb'} can be written again"


def id_file(home: Path, content: bytes | None) -> Path:
    file = home / "wandb" / WANDB_ID
    file.parent.mkdir(parents=True)
    if content is not None:
        file.write_bytes(content)
    return file


def test_the_id_stays_as_it_is(tmp_path: Path) -> None:
    id_file(tmp_path, b"r0123abcd")
    assert placed(tmp_path).id == "r0123abcd" == placed(tmp_path).id


@pytest.mark.parametrize("left", [None, b"", b"r", b"r0123ab", b"\0" * 9, b"\xff\xfe", b"r0123abcd\0"])
@pytest.mark.parametrize("begun", [False, True])
def test_an_id_that_a_crash_cut_is_found_again_or_made_anew_and_then_stays(
    left: bytes | None, begun: bool, tmp_path: Path
) -> None:
    file = id_file(tmp_path, left)
    file.with_name(f"{WANDB_ID}.0011223344556677").write_bytes(b"r9999")  # the draft of a process that was killed
    if begun:
        earlier = [f"run-202601{day:02}_000000-r1111aaaa" for day in range(1, 9)]
        for name in (*earlier, "offline-run-20260109_000000-r0123abcd", "offline-run-20260110_000000-other"):
            (file.parent / name).mkdir()
    found = placed(tmp_path).id
    assert re.fullmatch("r[0-9a-f]{8}", found) and file.read_text() == found == placed(tmp_path).id
    assert found == "r0123abcd" or not begun
