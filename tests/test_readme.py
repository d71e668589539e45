"""Every command of the README is run as it stands there, with a few words added that make it short."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, TINY_STAGE1, run_deocc
from tests.fake_sets.celeba import write_celeba

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
    "deocc test --config configs/paper/": "tests/cli/test_paper.py runs it, on a fake twin",
    **{
        f"deocc {name} ": "tests/apps/test_photo_commands.py runs it, on photos"
        for name in ("mask", "verify", "identify", "export")
    },
    "deocc predict photos": "tests/apps/test_photo_commands.py runs it, on photos",
    "deocc demo": "tests/commands/demo/test_server.py starts it, test_browser.py opens it",
    "deocc doctor": "tests/commands/doctor/ runs it",
    "deocc ablate": "tests/commands/ablate/test_real.py runs a small one",
    "deocc fit --config configs/distill.yaml --config ": "tests/cli/test_configs.py or test_loggers.py runs it, as it runs every overlay",
}
"""By how a command begins, where it is run, because it needs data or time that this test has not."""
TARGETS = sorted(set(re.findall(r"\bmake ([a-z]+)", README)))


# No GPU, no weights of one's own, no low precision: what the paper's commands have and this test has not.
PAPER = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.devices",
    "1",
    "--trainer.strategy",
    "auto",
    "--trainer.precision",
    "32-true",
]
PAPER += ["--data.num_workers", "0"]


def test_the_readme_names_the_main_commands() -> None:
    assert {"deocc test", "deocc predict", "deocc validate"} <= set(COMMANDS)
    assert {"demo", "test"} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_a_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(
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
    words = shlex.split(command)[1:]
    tiny = TINY_STAGE1 if any(word.endswith("/inpaint.yaml") for word in words) else []
    people = (
        ["--data.eval_batch_size", "16"] if words[0] == "test" else []
    )  # two, by whom to draw a confidence interval
    paper = PAPER if any("configs/paper/" in word for word in words) else []
    if paper:
        write_celeba(tmp_path / "data/celeba")
    run_deocc(*words, *SMALL, *tiny, *people, *paper, "--trainer.fast_dev_run", "true")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:configs|deocc)/[\w/.]+)`", README))))
def test_a_named_file_exists(name: str) -> None:
    assert (ROOT / name).exists()
