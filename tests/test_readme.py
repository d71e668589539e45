"""Every command of the README is run as it stands there, with a few words added that make it short."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, TINY_STAGE1, run_deocc

README = (ROOT / "README.md").read_text()
LINES = [line.split("#")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
COMMANDS = sorted(
    {line for line in LINES if line.startswith("deocc ")} | set(re.findall(r"`(deocc fit [^`]+)`", README.replace("\n  ", " ")))
)
TARGETS = sorted(set(re.findall(r"\bmake ([a-z]+)", README)))


def test_the_readme_names_the_main_commands() -> None:
    assert {"deocc test", "deocc predict", "deocc validate"} <= set(COMMANDS)
    assert {"demo", "test"} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_a_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command: str, stage1: Path, stage2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "inpaint").symlink_to(stage1)
    (tmp_path / "runs" / "distill").symlink_to(stage2)
    words = shlex.split(command)[1:]
    tiny = TINY_STAGE1 if "configs/inpaint.yaml" in words else []
    people = ["--data.eval_batch_size", "16"] if words[0] == "test" else []  # two, by whom to draw a confidence interval
    run_deocc(*words, *SMALL, *tiny, *people, "--trainer.fast_dev_run", "true")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:configs|deocc)/[\w/.]+)`", README))))
def test_a_named_file_exists(name: str) -> None:
    assert (ROOT / name).exists()
