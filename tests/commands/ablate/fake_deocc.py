"""A fake `deocc fit` and `deocc test` that writes known results."""

import json
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from deocc.evaluation.verification import PairScores, write_scores

SAME = [True, True, False, False, False]
PEOPLE = ([0, 1, 0, 0, 1], [0, 1, 1, 1, 0])
TEACHER = [0.9, 0.4, 0.6, 0.2, 0.1]
STUDENT = [0.9, 0.8, 0.6, 0.2, 0.1]


class EndedProcess:
    """A finished `subprocess.Popen`."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        return self.returncode

    def terminate(self) -> None:
        pass

    def wait(self, timeout: float | None = None) -> int:
        return self.returncode


class FakeDeocc:
    """Replaces `ablate._start_process`.

    Attributes:
        pair_folds: fold of each pair, for protocols with folds of pairs.
        started: names of the jobs in the order of their start.
        commands: command by job name.
        environments: environment by job name.
        failing: last line of the log of each job that fails.
        scores: similarities of the student by variant; default `STUDENT`.
        kept: file descriptors that the last child inherited.
    """

    def __init__(self) -> None:
        self.pair_folds: list[int] | None = None
        self.started: list[str] = []
        self.commands: dict[str, list[str]] = {}
        self.environments: dict[str, Mapping[str, str]] = {}
        self.failing: dict[str, str] = {}
        self.scores: dict[str, list[float]] = {"masked": TEACHER}
        self.kept: Collection[int] = ()

    def __call__(self, argv: list[str], log: Path, environment: Mapping[str, str], keep_open: Collection[int]) -> Any:
        action, folder = argv[1], log.parent
        name = f"{folder.name} {action}"
        self.started.append(name)
        self.commands[name] = argv
        self.environments[name] = environment
        self.kept = keep_open
        (folder / "checkpoints").mkdir(exist_ok=True)
        if action == "fit":
            write_checkpoint(folder / "checkpoints" / "last.ckpt")
        log.write_text(f"begun\n{self.failing.get(name, 'ended')}\n\n")
        if name in self.failing:
            return EndedProcess(1)
        fold = int(folder.name.split("fold")[1][0]) if "fold" in folder.name else 0
        self._fit(folder, fold) if action == "fit" else self._test(folder, fold)
        return EndedProcess(0)

    def _fit(self, folder: Path, fold: int) -> None:
        header = "step,train/instance_term,val/student/eer,val/student/rank1"
        lines = (f"4,{1 + fold},0.9,", f"9,{3 + fold},,", "9,,0.25,0.5")
        (folder / "metrics.csv").write_text("\n".join([header, *lines, ""]))
        (folder / "config.yaml").write_text(yaml.safe_dump({"data": {}}))

    def _test(self, folder: Path, fold: int) -> None:
        student = self.scores.get(folder.name.split("-")[0], STUDENT)
        rows = {"teacher_masked": TEACHER, "teacher_completed": TEACHER, "student": student}
        figures = {"eer": 0.1 + 0.02 * fold, "rank1": 0.5, "auc": 0.75, "tar@1e-2": None}
        names = ["teacher_clean", *rows, "student_predicted_mask"]
        provenance = {"people": 2, "data": "OrlFaces", "credit": "us", "command": f"deocc test {folder}"}
        (folder / "results.json").write_text(json.dumps({**provenance, "rows": dict.fromkeys(names, figures)}))
        scores = {name: pair_scores(similarity, self.pair_folds) for name, similarity in rows.items()}
        write_scores(folder / "scores.npz", scores)
        write_scores(folder / "clean_scores.npz", {"teacher_clean": pair_scores(STUDENT, self.pair_folds)})


def write_checkpoint(path: Path, content: str = "weights") -> None:
    """Write an intact checkpoint file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", content)


def pair_scores(similarity: list[float], folds: list[int] | None = None) -> PairScores:
    """Return five pairs of two people."""
    first, second = (torch.tensor(people) for people in PEOPLE)
    fold = None if folds is None else torch.tensor(folds)
    return PairScores(torch.tensor(similarity), torch.tensor(SAME), first, second, fold)
