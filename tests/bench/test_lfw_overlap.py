"""Pairs that show the people of the other half's choices, and the error rates without them."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console

from bench import lfw_overlap
from deocc.data import LfwFaces
from deocc.evaluation.protocol import ListedPairs
from deocc.evaluation.verification import PairScores

NAMES = ["Ann", "Bea", "Cyd", "Dan", "Eve"]
FIRST, SECOND, SAME = np.array([2, 2, 4, 6]), np.array([3, 8, 5, 9]), np.array([True, False, True, False])


def _half(validation: list[str]) -> LfwFaces:
    """Two photos of each person; the pairs show Bea, Cyd, Dan and Eve."""
    split = {number: "val" if name in validation else "test" for number, name in enumerate(NAMES)}
    protocol = ListedPairs(FIRST, SECOND, SAME, np.zeros(4, np.int64))
    faces = SimpleNamespace(
        protocol=protocol, identity=np.arange(10) // 2, identity_names=NAMES, split_of_identity=split
    )
    return cast(LfwFaces, faces)


def _scores(similarity: list[float]) -> PairScores:
    first, second = torch.from_numpy(FIRST // 2 - 1), torch.from_numpy(SECOND // 2 - 1)  # Bea is the first test person
    return PairScores(torch.tensor(similarity), torch.from_numpy(SAME), first, second, torch.zeros(4).long())


def test_pairs_that_show_people() -> None:
    shown = lfw_overlap.shows_any(_scores([0.0] * 4), _half([]), {"Eve", "Ann"})
    assert shown.tolist() == [False, True, False, True]


def test_scores_of_other_pairs_are_refused() -> None:
    other = _scores([0.0] * 4)._replace(second_identity=torch.tensor([0, 0, 0, 0]))
    with pytest.raises(ValueError, match="other pairs"):
        lfw_overlap.shows_any(other, _half([]), {"Eve"})


def test_table_leaves_out_the_other_halfs_people() -> None:
    """Without Cyd's pair, which the teacher gets wrong, all similarities are in order."""
    teacher, student = _scores([0.9, 0.2, 0.1, 0.3]), _scores([0.9, 0.2, 0.8, 0.3])
    rows: dict[str, Any] = {"teacher_masked": teacher, "student_predicted_mask": student}
    halves = {"a": _half(["Ann"]), "b": _half(["Cyd"])}
    with (console := Console(width=120)).capture() as capture:
        console.print(lfw_overlap.table_of({"a": rows}, halves))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│ a" in line]
    assert [line[1:4] for line in lines] == [
        ["all", "4", "50.00"],
        ["with validation people", "1", "nan"],
        ["without", "3", "0.00"],
    ]
