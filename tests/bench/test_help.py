"""Every command of `bench` explains itself and runs nothing if asked for help."""

import runpy
from pathlib import Path

import pytest

import bench

FOLDER = Path(bench.__file__).parent
COMMANDS = sorted(path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_runs_nothing(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert end.value.code == 0 and capsys.readouterr().out.startswith("usage: ")
