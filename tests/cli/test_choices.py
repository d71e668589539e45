"""The ablation trains what is not there as a whole, names folders by variant and says how many seeds it had."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import choices
from tests.conftest import ROOT


class Trainings:
    """Stands in for `deocc fit`: keeps the commands, writes the figures of each, and fails where it is told to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: list[list[str]] = []
        self.fails_at = ""

    def __call__(self, command: list[str], cwd: Path, check: bool) -> None:
        run = self.root / self._value(command, "--run")
        assert not run.exists(), "`deocc fit` would write to another folder"
        self.commands.append(command)
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "last.ckpt").touch()
        if run.name == self.fails_at:
            raise subprocess.CalledProcessError(1, command)
        figure = 0.1 + 0.02 * int(self._value(command, "--data.seed"))
        values = [str(figure)] * len(choices.COLUMNS)
        (run / "metrics.csv").write_text(
            ",".join(f"val/{name}" for name in choices.COLUMNS) + "\n" + ",".join(values) + "\n"
        )

    def runs(self) -> list[str]:
        return [self._value(command, "--run") for command in self.commands]

    @staticmethod
    def _value(command: list[str], option: str) -> str:
        return command[command.index(option) + 1]


@pytest.fixture
def trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    fake = Trainings(tmp_path)
    monkeypatch.setattr(choices, "ROOT", tmp_path)
    monkeypatch.setattr(choices.subprocess, "run", fake)
    return fake


def ablate(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["choices.py", *words])
    choices.main()


def test_what_broke_off_is_trained_anew_and_what_ended_is_not(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings.fails_at = "distill_masked"
    with pytest.raises(subprocess.CalledProcessError):
        ablate(monkeypatch)
    trainings.fails_at = ""
    ablate(monkeypatch)
    expected = {f"runs/choices/0/{name}" for name in [*choices.STAGE1, *(f"distill_{name}" for name in choices.STAGE2)]}
    assert set(trainings.runs()) == expected
    assert [run for run in expected if trainings.runs().count(run) > 1] == ["runs/choices/0/distill_masked"]


def test_one_seed_is_said_to_be_one(
    trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ablate(monkeypatch)
    text = (tmp_path / "runs/choices/table.md").read_text()
    assert "one seed (0)" in text and "| all terms | 10.00 |" in text and "±" not in text
    assert capsys.readouterr().out == text


def test_several_seeds_give_mean_and_deviation(
    trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablate(monkeypatch, "--seeds", "0", "1")
    assert "2 seeds (0, 1)" in (tmp_path / "runs/choices/table.md").read_text()
    assert "| all terms | 11.00 ± 1.41 |" in (tmp_path / "runs/choices/table.md").read_text()
    for command in trainings.commands:
        seed = trainings._value(command, "--run").split("/")[-2]
        assert trainings._value(command, "--data.seed") == trainings._value(command, "--seed_everything") == seed


def test_every_overlay_exists() -> None:
    variants: list[Any] = [*choices.STAGE1.values(), *(overlays for _, _, overlays in choices.STAGE2.values())]
    assert all((ROOT / f"configs/ablation/{name}.yaml").is_file() for overlays in variants for name in overlays)
