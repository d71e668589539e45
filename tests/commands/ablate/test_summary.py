"""Figures, comparisons and tables against values computed by hand."""

import json
import math
from pathlib import Path

import pytest
import torch

from deocc.commands.ablate import main
from deocc.commands.ablate_report import bar_figure, loss_figure, read_curves
from deocc.commands.ablate_summary import Outcome, compare, mean_and_deviation, right_decisions, row_figures, verdict
from deocc.evaluation.bootstrap import mcnemar, paired_bootstrap_eer
from deocc.evaluation.verification import PairScores, equal_error_rate, fold_accuracy, read_scores
from tests.commands.ablate.conftest import write_plan
from tests.commands.ablate.fake_deocc import SAME, STUDENT, TEACHER, FakeDeocc, pair_scores


def outcome(fold: int, seed: int, similarity: list[float], eer: float = 0.25) -> Outcome:
    results = {"people": 2, "rows": {"student": {"eer": eer, "rank1": 1.0}}}
    return Outcome(fold, seed, results, {"student": pair_scores(similarity)}.get)


def test_fold_uses_threshold_of_others() -> None:
    """Fold 0 alone would be decided at 0.7, fold 1 at 0.5: so fold 0's third pair, 0.6, is wrongly accepted."""
    shifted = [0.6, 0.5, 0.3, -0.1, -0.2]
    tests = [outcome(0, 0, STUDENT), outcome(1, 0, shifted), outcome(0, 1, STUDENT)]
    first, second = right_decisions(tests[:2], [test.read_pairs("student") for test in tests[:2]])
    (alone,) = right_decisions(tests[2:], [tests[2].read_pairs("student")])
    assert first is not None and first.tolist() == [True, True, False, True, True]
    assert second is not None and second.tolist() == [False, False, True, True, True], "fold 0 accepts from 0.8 on"
    assert alone is None, "another seed's fold is no other fold of this one"
    accuracy = row_figures(tests, "student")["accuracy"]
    assert accuracy[:2] == [pytest.approx((1 + 2 / 3) / 2), pytest.approx((0 + 1) / 2)] and accuracy[2] is None


def test_other_folds_are_pooled() -> None:
    """Fold 1 alone has its equal error at 0.36, fold 2 alone at 0.4, both together at 0.38."""
    scores = [[0.37, 0.9, 0.39, 0.1, 0.1], [0.9, 0.36, 0.38, 0.1, 0.1], [0.8, 0.2, 0.5, 0.4, 0.1]]
    tests = [outcome(fold, 0, similarity) for fold, similarity in enumerate(scores)]
    first = right_decisions(tests, [test.read_pairs("student") for test in tests])[0]
    assert first is not None and first.tolist() == [False, True, False, True, True]


def test_mean_and_deviation() -> None:
    assert mean_and_deviation([0.1, 0.3]) == pytest.approx((0.2, math.sqrt(0.02)))
    assert mean_and_deviation([0.1]) == (0.1, None)
    assert mean_and_deviation([0.1, None]) == (None, None) == mean_and_deviation([0.1, float("nan")])


def draw_labels() -> list[str]:
    """Return the titles of the axes of the bar figure."""
    return [axes.get_xlabel() for axes in bar_figure(json.loads(Path("out/ablation.json").read_text())).axes]


def noisy(seed: int, noise: float) -> PairScores:
    """Every pair of 6 people x 4 faces; the noise hides who is who."""
    generator = torch.Generator().manual_seed(seed)
    person = torch.arange(6).repeat_interleave(4)
    row, column = torch.triu_indices(24, 24, 1)
    same = person[row] == person[column]
    return PairScores(same + noise * torch.randn(len(row), generator=generator), same, person[row], person[column])


def run(fold: int, seed: int, scores: PairScores) -> Outcome:
    return Outcome(fold, seed, {"rows": {}}, {"student": scores}.get)


def test_compare_one_seed() -> None:
    firsts, seconds = [noisy(1, 0.4), noisy(2, 0.4)], [noisy(3, 0.9), noisy(4, 0.9)]
    runs = [[run(fold, 0, scores) for fold, scores in enumerate(some)] for some in (firsts, seconds)]
    found = compare(runs[0], "student", runs[1], "student", 200)
    assert found is not None
    assert found["eer"] == pytest.approx(paired_bootstrap_eer(firsts, seconds, 200, 0)._asdict())
    rates = [[equal_error_rate(*scores[:2]) for scores in some] for some in (firsts, seconds)]
    by_hand = (sum(rates[0]) - sum(rates[1])) / 2
    assert found["eer"]["estimate"] == pytest.approx(by_hand) and by_hand < 0
    right = []
    for some in runs:
        decided = right_decisions(some, [test.read_pairs("student") for test in some])
        right.append(torch.cat([part for part in decided if part is not None]))
    assert found["mcnemar"] == mcnemar(*right)._asdict()
    assert found["mcnemar"]["first_only"] > found["mcnemar"]["second_only"]


def test_compare_several_seeds() -> None:
    parts = {
        seed: [
            [run(fold, seed, noisy(10 * seed + fold + add, noise)) for fold in (0, 1)]
            for add, noise in ((0, 0.5), (5, 0.6 + seed))
        ]
        for seed in (0, 1)
    }
    alone = [found for first, second in parts.values() if (found := compare(first, "student", second, "student", 100))]
    firsts, seconds = (parts[0][place] + parts[1][place] for place in (0, 1))
    together = compare(firsts, "student", seconds, "student", 100)
    assert together is not None and len(alone) == 2
    for name, value in together["eer"].items():
        assert value == pytest.approx(sum(one["eer"][name] for one in alone) / 2)
    assert together["mcnemar"] == max((one["mcnemar"] for one in alone), key=lambda outcome: outcome["p_value"])
    assert alone[together["mcnemar_seed"]]["mcnemar"] == together["mcnemar"]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-2, -1, "better"), (1, 2, "worse"), (-1, 1, "cannot be told apart"), (0, 1, "cannot be told apart")],
)
def test_verdict(low: float, high: float, said: str) -> None:
    assert verdict({"low": low, "high": high}) == said


def test_table(program: FakeDeocc) -> None:
    """EER by hand: 1/3 for the teacher, 0 for the student; their results files contain 10 and 12 %."""
    main(write_plan())
    table = Path("out/table.md").read_text()
    assert table.startswith("4 people of OrlFaces, 2 folds over people, each person tested once, one seed (0); ")
    assert "| (a) clean | 11.00 ± 1.41 | n/a | n/a | 50.00 ± 0.00 | 75.00 ± 0.00 | n/a |" in table
    assert "| (d) student | 11.00 ± 1.41 | 11.00 ± 1.41 | 100.00 ± 0.00 |" in table
    assert "| (b) teacher | 11.00 ± 1.41 | n/a | 83.33 ± 0.00 |" in table
    assert "| d - b | -33.33 | -33.33 to -33.33 | better | 2 | 0 | 0.5 |" in table
    assert "| i - b | +0.00 | +0.00 to +0.00 | cannot be told apart | 0 | 0 | 1 |" in table
    assert "| balanced accuracy % |" in table and "at the threshold of equal error of all other folds" in table
    assert "seeds" not in table
    assert equal_error_rate(torch.tensor(TEACHER), torch.tensor(SAME)) == pytest.approx(1 / 3)


def test_written_files(program: FakeDeocc) -> None:
    main(write_plan())
    written = json.loads(Path("out/ablation.json").read_text())
    assert written["plan"]["stage1"]["overlay"] == {"trainer": {"max_epochs": 3}}
    assert set(written["runs"]) == {f"{name}-fold{fold}-seed0" for name in ("task", "masked") for fold in (0, 1)}
    assert written["runs"]["task-fold1-seed0"]["command"] == "deocc test out/task-fold1-seed0"
    assert written["rows"]["d"]["figures"]["eer"]["values"] == pytest.approx([0.1, 0.12])
    assert "40 people, grey, frontal" in Path("out/table.md").read_text()
    assert {path.name for path in Path("out").glob("*.*g")} == {"bars.svg", "losses.svg"}


def test_table_of_validation_people(program: FakeDeocc) -> None:
    rows = {"d": {"title": "student", "row": "student", "variant": "task"}}
    own = {"masked": {"model": {"init_args": {"width": 8}}}}
    main(write_plan(folds=None, people="validation", own_stage1=own, rows=rows, compare=[]))
    assert program.started == [f"{name}-seed0 fit" for name in ("inpaint", "inpaint-masked", "task", "masked")]
    assert program.commands["masked-seed0 fit"][-2].endswith("inpainting_checkpoint=out/inpaint-masked-seed0")
    table = Path("out/table.md").read_text()
    assert table.startswith("Validation people of OrlFaces, last validation of each training, one seed (0); ")
    assert "| (d) student | 25.00 | n/a | n/a | 50.00 | n/a | n/a |" in table and "McNemar" not in table


def test_table_without_folds(program: FakeDeocc) -> None:
    main(write_plan(folds=None))
    table = Path("out/table.md").read_text()
    assert "| (d) student | 10.00 | 10.00 | n/a |" in table, "one run has no deviation"
    assert "| d - b | -33.33 | -33.33 to -33.33 | better | n/a | n/a | n/a |" in table
    assert draw_labels() == ["EER %"]


def test_table_with_pair_folds(program: FakeDeocc) -> None:
    """By hand: fold 0 has the pairs 0 and 2, fold 1 the others.

    The student's thresholds are 0.5 and 0.75, the teacher's 0.3 and 0.75. The student is wrong on the third pair, 0.6,
    the teacher also on the second, 0.4: accuracies of 3/4 and 7/12.
    """
    program.pair_folds = [0, 1, 0, 1, 1]
    program.scores = {}
    main([*write_plan(folds=None), "--seeds", "0", "1"])
    table = Path("out/table.md").read_text()
    assert table.startswith("2 people of OrlFaces, 2 folds of pairs, 2 seeds (0, 1); ")
    assert "| accuracy % |" in table and "at the threshold that is best on the other folds" in table
    assert "alanced" not in table
    found = [fold_accuracy(pair_scores(similarity, program.pair_folds)).mean for similarity in (STUDENT, TEACHER)]
    assert found == pytest.approx([3 / 4, 7 / 12])
    assert "| (d) student | 10.00 ± 0.00 | 10.00 ± 0.00 | 75.00 ± 0.00 |" in table
    assert "| (b) teacher | 10.00 ± 0.00 | n/a | 58.33 ± 0.00 |" in table
    assert "| d - b | -33.33 | -33.33 to -33.33 | better | 1 | 0 | 1 (seed 0) |" in table
    assert "Of the 2 seeds, the one with the largest p-value is shown and named." in table
    assert draw_labels() == ["accuracy %", "EER %"]


def test_accuracy_of_clean_row(program: FakeDeocc) -> None:
    """The pairs of a clean row are not stored. A fold of people has another accuracy."""
    results = {"rows": {"teacher_clean": {"accuracy": {"mean": 0.75}}}}
    for fold, accuracy in ((None, 0.75), (0, None)):
        test = Outcome(fold, 0, results, lambda row: None)
        assert row_figures([test], "teacher_clean")["accuracy"] == [accuracy]


def test_numbers_survive_figure_error(program: FakeDeocc, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("deocc.commands.ablate_report.bar_figure", fail)
    with pytest.raises(RuntimeError, match="no font"):
        main(write_plan())
    assert "(d) student" in Path("out/table.md").read_text()
    assert json.loads(Path("out/ablation.json").read_text())["rows"]


def test_only_needed_rows_are_read(program: FakeDeocc, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def reading(path: Path, rows: list[str]) -> dict[str, PairScores]:
        asked.append(rows)
        return read_scores(path, rows=rows)

    monkeypatch.setattr("deocc.commands.ablate_summary.read_scores", reading)
    main(write_plan(rows={"b": {"title": "teacher", "row": "teacher_masked"}}, compare=[]))
    assert asked and all(rows == ["teacher_masked"] for rows in asked)


def test_figures(program: FakeDeocc) -> None:
    main(write_plan())
    curves = read_curves([Path(f"out/task-{name}-seed0") for name in ("fold0", "fold1", "gone")])
    assert curves == {"instance": {4: 1.5, 9: 3.5}} and read_curves([]) == {}
    (lines,) = loss_figure({"task": curves, "none": {}}).axes
    assert lines.lines[0].get_xydata().tolist() == [[4, 1.5], [9, 3.5]]  # type: ignore[union-attr]
    bars = bar_figure(json.loads(Path("out/ablation.json").read_text())).axes
    assert [axes.get_xlabel() for axes in bars] == ["balanced accuracy %", "EER %"]
    rows = [label.get_text() for label in bars[0].get_yticklabels()]
    assert rows == ["(a) clean", "(b) teacher", "(d) student", "(i) masked"]
    assert [round(bar.get_width(), 2) for bar in bars[1].patches] == [11.0] * 4  # type: ignore[attr-defined]
    assert len(bars[0].patches) == 3, "the clean row has no accuracy and so no bar"
