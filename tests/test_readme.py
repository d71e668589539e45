"""Every command of the README runs as it is printed, with a few arguments that make it short."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, TINY_STAGE1, run_deocc

README = (ROOT / "README.md").read_text()
LINES = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
COMMANDS = sorted(
    {line for line in LINES if line.startswith("deocc ")}
    | set(re.findall(r"`(deocc fit [^`]+)`", README.replace("\n  ", " ")))
)
ELSEWHERE = {
    **dict.fromkeys(
        (f"deocc {name} " for name in ("mask", "verify", "identify", "export", "predict")),
        "tests/commands/test_photo_commands.py",
    ),
    "deocc demo": "tests/commands/demo",
    "deocc doctor": "tests/commands/doctor",
    "deocc ablate": "tests/commands/ablate",
    "deocc fit --config configs/distill.yaml --config ": "tests/cli/test_configs.py and test_loggers.py",
}
"""By how a command begins, which tests run it, since it needs other data or more time."""
TARGETS = sorted(set(re.findall(r"\bmake ([a-z-]+)", README)))


def test_readme_names_the_main_commands() -> None:
    assert {"fit", "test", "ablate", "predict", "verify", "demo"} <= {command.split()[1] for command in COMMANDS}
    assert {"demo", "install"} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(
    command: str, stage1: Path, stage2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for beginning, where in ELSEWHERE.items():
        if command.startswith(beginning):
            pytest.skip(where)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "inpaint").symlink_to(stage1)
    (tmp_path / "runs" / "distill").symlink_to(stage2)
    argv = shlex.split(command)[1:]
    own = TINY_STAGE1 if any(argument.endswith("inpaint.yaml") for argument in argv) else []
    if argv[0] == "test":
        own = ["--data.eval_batch_size", "16"]  # with two people, for a confidence interval
    run_deocc(*argv, *SMALL, *own, "--trainer.fast_dev_run", "true")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:configs|deocc)/[\w/.]+)`", README))))
def test_named_file_exists(name: str) -> None:
    assert (ROOT / name).exists()
