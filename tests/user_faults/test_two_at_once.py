"""Two commands that would write to one run folder: the second one is refused, or takes another folder."""

import shutil
from pathlib import Path

import pytest

from deocc import runs
from deocc.cli import main
from deocc.files import hold_lock
from tests.conftest import ONE_STEP, SMALL, TINY_STAGE1, run_deocc


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("deocc: ")]
    return line


def test_second_fit_of_a_new_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first one has not written anything yet."""
    argv = ["fit", "--config", "inpaint", "--run", str(tmp_path / "x"), *SMALL, *TINY_STAGE1, *ONE_STEP]
    with hold_lock(tmp_path / "x" / ".fit.lock"):
        line = refused(capsys, *argv)
    assert f"another `deocc fit` writes to {tmp_path / 'x'}" in line and "--run" in line
    assert [path.name for path in (tmp_path / "x").iterdir()] == [".fit.lock"]


@pytest.mark.parametrize(
    ("command", "option"), [("fit", "--resume"), ("test", "--checkpoint"), ("predict", "--checkpoint")]
)
def test_same_command_in_an_existing_run(
    command: str, option: str, stage1: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hold_lock(stage1 / f".{command}.lock"):
        assert f"another `deocc {command}` writes to {stage1}" in refused(capsys, command, option, str(stage1))


def test_lock_ends_with_the_command(stage1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(stage1, run)
    with hold_lock(run / ".test.lock"):  # another command does not matter
        run_deocc("fit", "--resume", str(run))
    with hold_lock(run / ".fit.lock", wait=False):
        pass
    assert (run / runs.CONFIG).is_file()
