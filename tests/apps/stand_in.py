"""Stands in for `deocc fit` and `deocc test`: writes what each would leave behind, with numbers that are known, and fails where told to."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from deocc.commands.ablate import runner
from deocc.evaluation import PairScores, write_scores

SAME = [True, True, False, False, False]
PEOPLE = ([0, 1, 0, 0, 1], [0, 1, 1, 1, 0])
TEACHER = [0.9, 0.4, 0.6, 0.2, 0.1]
STUDENT = [0.9, 0.8, 0.6, 0.2, 0.1]


class FakeProcess:
    """What `subprocess.Popen` gives, already at its end."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        return self.returncode

    def terminate(self) -> None:
        pass

    def wait(self, timeout: float | None = None) -> int:
        return self.returncode


class Program:
    """Takes the place of `runner._start`."""

    def __init__(self) -> None:
        self.folds: list[int] | None = None
        """The folds of the pairs, where the protocol has any."""
        self.started: list[str] = []
        self.commands: dict[str, list[str]] = {}
        self.environments: dict[str, Mapping[str, str]] = {}
        self.failing: dict[str, str] = {}
        """The last line of the log by `FOLDER ACTION`."""
        self.scores: dict[str, list[float]] = {"masked": TEACHER}
        """A student's similarities by variant; `STUDENT` where there are none."""
        self.kept: Collection[int] = ()
        """The file descriptors that the last child was given to keep open."""

    def __call__(self, command: list[str], log: Path, environment: Mapping[str, str], keep: Collection[int]) -> Any:
        action = command[1]
        folder = Path(_value(command, "--run" if action == "fit" else "--checkpoint"))
        name = f"{folder.name} {action}"
        self.started.append(name)
        self.commands[name] = command
        self.environments[name] = environment
        self.kept = keep
        (folder / "checkpoints").mkdir(exist_ok=True)
        if action == "fit":
            (folder / "checkpoints" / "last.ckpt").touch()
        log.write_text(f"begun\n{self.failing.get(name, 'ended')}\n\n")
        if name in self.failing:
            return FakeProcess(1)
        self._fit(folder) if action == "fit" else self._test(folder)
        return FakeProcess(0)

    def _fit(self, folder: Path) -> None:
        fold = int(folder.name.split("fold")[1][0]) if "fold" in folder.name else 0
        (folder / "metrics.csv").write_text(f"step,train/instance_term,val/eer\n4,{1 + fold},\n9,{3 + fold},\n9,,0.5\n")
        (folder / "config.yaml").write_text(yaml.safe_dump({}))

    def _test(self, folder: Path) -> None:
        student = self.scores.get(folder.name.split("-")[0], STUDENT)
        rows = {"teacher_masked": TEACHER, "teacher_completed": TEACHER, "student": student}
        fold = int(folder.name.split("fold")[1][0]) if "fold" in folder.name else 0
        figures = {"eer": 0.1 + 0.02 * fold, "rank1": 0.5, "auc": 0.75, "tar@1e-2": None}
        names = ["teacher_clean", *rows, "student_predicted_mask"]
        provenance = {
            "people": 2,
            "data": "OrlFaces",
            "credit": "us",
            "command": f"deocc test {folder}",
            "versions": {"torch": "2"},
        }
        (folder / "results.json").write_text(json.dumps({**provenance, "rows": dict.fromkeys(names, figures)}))
        write_scores(folder / "scores.npz", {name: pairs(similarity, self.folds) for name, similarity in rows.items()})


def pairs(similarity: list[float], folds: list[int] | None = None) -> PairScores:
    """Five pairs of two people."""
    first, second = (torch.tensor(people) for people in PEOPLE)
    return PairScores(
        torch.tensor(similarity), torch.tensor(SAME), first, second, None if folds is None else torch.tensor(folds)
    )


def install(monkeypatch: Any) -> Program:
    """Let the runner start a `Program` in place of `deocc`."""
    program = Program()
    monkeypatch.setattr(runner, "_start", program)
    return program


def _value(command: list[str], option: str) -> str:
    """The value of `option VALUE` or `option=VALUE`."""
    for word, after in zip(command, [*command[1:], ""], strict=True):
        if word == option:
            return after
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1]
    raise KeyError(option)
