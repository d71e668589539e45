"""Results on LFW without the people of the choices: `python -m bench.lfw_overlap --data data/lfw`.

Settings were chosen on validation people. LFW has only a few people with several photos who are in none of its pairs,
so most validation people of one half are in pairs of the other. This scores each half with and without the pairs that
show validation people of the other half, from the scores that `python -m bench.lfw` wrote, or from
`bench/lfw_runs.tar.xz`, unpacked.
"""

import argparse
import ast
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.lfw import RUNS, TEST_FOLDS
from deocc.data import LfwFaces
from deocc.evaluation.protocol import ListedPairs
from deocc.evaluation.verification import SCORES, PairScores, equal_error_rate, read_scores

_ROWS = ("teacher_masked", "student_predicted_mask")


def shows_any(pairs: PairScores, tested: LfwFaces, people: set[str]) -> Tensor:
    """Return (N,) bool: the pairs that show one of these people.

    Raises:
        ValueError: the pairs are not those that the set tests.
    """
    protocol, identity = cast(ListedPairs, tested.protocol), torch.from_numpy(tested.identity)
    sides = torch.stack([identity[protocol.first], identity[protocol.second]])
    people_of_pairs, label = torch.unique(sides, return_inverse=True)  # a test numbers its people alone
    if not torch.equal(label, torch.stack([pairs.first_identity, pairs.second_identity])):
        raise ValueError("the scores are of other pairs than this copy of LFW has: train and test on the same copy")
    names = names_of(tested)
    return torch.tensor([names[number] in people for number in people_of_pairs.tolist()])[label].any(0)


def names_of(faces: LfwFaces) -> list[str]:
    """Return the name of each identity."""
    return list(faces.identity_names or ())


def table_of(scores: Mapping[str, Mapping[str, PairScores]], halves: Mapping[str, LfwFaces]) -> Table:
    """Return EERs of teacher and student by half, with, of, and without pairs that show people of the choices."""
    table = Table("half", "pairs", "number", "teacher, EER %", "student, EER %", "ratio")
    validation = {
        name: {names_of(faces)[number] for number, split in faces.split_of_identity.items() if split == "val"}
        for name, faces in halves.items()
    }
    for name, rows in scores.items():
        others = set().union(*(people for half, people in validation.items() if half != name))
        shown = shows_any(rows[_ROWS[0]], halves[name], others)
        for title, kept in (("all", torch.ones_like(shown)), ("with validation people", shown), ("without", ~shown)):
            teacher, student = (equal_error_rate(rows[row].similarity[kept], rows[row].same[kept]) for row in _ROWS)
            ratio = student / teacher if teacher > 0 else math.nan
            figures = [f"{100 * teacher:.2f}", f"{100 * student:.2f}", f"{ratio:.2f}"]
            table.add_row(name, title, f"{int(kept.sum()):,}", *figures)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Results on LFW without validation people of the other half.")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="the folder of LFW")
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"the folder of the tested halves (default: {RUNS})")
    chosen = parser.parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # photos without a face
            halves = {half: LfwFaces(chosen.data, test_folds=ast.literal_eval(TEST_FOLDS[half])) for half in TEST_FOLDS}
        scores = {half: read_scores(chosen.runs / half / "distill" / SCORES) for half in halves}
        Console().print(table_of(scores, halves))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
