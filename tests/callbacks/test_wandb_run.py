"""Which W&B run a command goes on in, what it is called, and what happens where W&B does not answer."""

import os
from pathlib import Path
from typing import Any

import pytest
import wandb
from jsonargparse import Namespace

from deocc.callbacks.loggers import BEST, WandbRunLogger, place_loggers

STAGE1 = "deocc.modules.InpaintingModule"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # as somebody chose, so that no key is looked for


def placed(folder: Path, home: Path | None = None, subfolder: str = "", model: str = STAGE1, **settings: Any) -> Namespace:
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
    assert [tested[key] for key in ("id", "name", "group", "job_type")] == [trained[key] for key in ("id", "name", "group", "job_type")]


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

    class Begun:
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
