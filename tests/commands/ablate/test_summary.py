"""Figures, comparisons and tests against values computed by hand."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from deocc.commands.ablate import main
from deocc.commands.ablate_plan import Comparison, Plan, Row, read_plan
from deocc.commands.ablate_report import bar_figure, loss_figure, read_curves
from deocc.commands.ablate_summary import Outcome, compare_rows, mean_and_deviation, row_figures, summarise, verdict
from deocc.evaluation.bootstrap import bootstrap_figures, simultaneous_intervals
from deocc.evaluation.verification import PairScores, equal_error_rate, read_scores
from tests.commands.ablate.conftest import write_plan
from tests.commands.ablate.fake_deocc import SAME, TEACHER, FakeDeocc


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


def run(fold: str, seed: int, scores: Mapping[str, PairScores]) -> Outcome:
    return Outcome(fold, seed, {"rows": {row: {} for row in scores}}, scores.get)


def plan_of(compare: list[Comparison]) -> Plan:
    """Two folds, two seeds; teacher (b), student (d), student of another variant (i)."""
    plan = read_plan([*write_plan(), "--seeds", "0", "1"])
    return Plan(**{**vars(plan), "compare": compare})


def known_outcomes(better: float, worse: float) -> dict[str, list[Outcome]]:
    """Return outcomes whose students have less noise in row d than in row i, by letter."""
    known: dict[str, list[Outcome]] = {"b": [], "d": [], "i": []}
    for seed in (0, 1):
        for fold in ("fold0", "fold1"):
            number = 10 * seed + int(fold[-1])
            teacher = {"teacher_masked": noisy(100 + int(fold[-1]), 0.9)}
            known["b"].append(run(fold, seed, teacher))
            for letter, noise in (("d", better), ("i", worse)):
                student = {"student": noisy(number, noise), "student_predicted_mask": noisy(number + 5, noise + 0.1)}
                known[letter].append(run(fold, seed, student))
    return known


def test_comparisons_equal_bootstrap(program: FakeDeocc) -> None:
    """The seeds of a fold are averaged, with the same draws of people; both claims share their intervals' width."""
    known = known_outcomes(0.3, 0.9)
    found = compare_rows(plan_of([Comparison("d", "i", "Less noise"), Comparison("d", "b")]), known, 200)
    assert [pair["claim"] for pair in found] == ["Less noise", ""]
    rows = {}
    for letter, row in (("d", "student"), ("d", "student_predicted_mask"), ("i", "student"), ("b", "teacher_masked")):
        parts = [[test.read_pairs(row) for test in known[letter] if test.fold == fold] for fold in ("fold0", "fold1")]
        rows[letter, row] = bootstrap_figures(parts, 200)["eer"]  # type: ignore[arg-type]
        rates = [equal_error_rate(*pairs[:2]) for part in parts for pairs in part if pairs is not None]
        assert float(rows[letter, row][0]) == pytest.approx(sum(rates) / 4)
    given = rows["d", "student"] - rows["i", "student"]
    eer = found[0]["masks"]["given"]["eer"]
    assert eer["estimate"] == pytest.approx(float(given[0])) and eer["low"] < eer["estimate"] < eer["high"] < 0
    assert found[0]["masks"]["given"]["verdict"] == "holds"
    alone = simultaneous_intervals(given[None])[0].tolist()
    assert eer["low"] < alone[0] and alone[1] < eer["high"], "corrected for the other comparisons"
    predicted = rows["d", "student_predicted_mask"] - rows["b", "teacher_masked"]
    assert found[1]["masks"]["predicted"]["eer"]["estimate"] == pytest.approx(float(predicted[0]))
    assert math.isnan(found[0]["masks"]["given"]["accuracy"]["estimate"]), "there are no folds of pairs"


def test_reversed_claim_is_refuted(program: FakeDeocc) -> None:
    found = compare_rows(plan_of([Comparison("i", "d")]), known_outcomes(0.3, 0.9), 200)
    assert {mask: figures["verdict"] for mask, figures in found[0]["masks"].items()} == {
        "given": "refuted here",
        "predicted": "refuted here",
    }


def test_bare_rows_have_one_source_of_masks(program: FakeDeocc) -> None:
    """The predicted mask of bare faces belongs to the row: it is not compared with that of another row."""
    plan = plan_of([Comparison("a", "k")])
    plan.rows["k"] = Row("bare", "student_clean_predicted_mask", "task")
    rows = ("teacher_clean", "teacher_clean_predicted_mask", "student_clean_predicted_mask")
    known = {"a": list[Outcome](), "k": list[Outcome]()}
    for fold, seed in (("fold0", 0), ("fold1", 0), ("fold0", 1), ("fold1", 1)):
        scores = {row: noisy(number, 0.5) for number, row in enumerate(rows)}
        known["a"].append(run(fold, seed, scores))
        known["k"].append(run(fold, seed, scores))
    (pair,) = compare_rows(plan, known, 50)
    expected = equal_error_rate(*noisy(0, 0.5)[:2]) - equal_error_rate(*noisy(2, 0.5)[:2])
    assert list(pair["masks"]) == ["none"] and pair["masks"]["none"]["eer"]["estimate"] == pytest.approx(expected)


def test_different_pairs_are_not_compared(program: FakeDeocc) -> None:
    known = known_outcomes(0.3, 0.9)
    fewer = {
        row: PairScores(*(part[1:] for part in noisy(0, 0.3)[:4])) for row in ("student", "student_predicted_mask")
    }
    known["i"] = [run(test.fold or "", test.seed, fewer) for test in known["i"]]
    with pytest.raises(ValueError, match="compare d and i: the two systems scored different pairs"):
        compare_rows(plan_of([Comparison("d", "i")]), known, 50)


def test_claim_waits_for_its_runs(program: FakeDeocc) -> None:
    known = known_outcomes(0.3, 0.9)
    known["i"].pop()
    (pair,) = compare_rows(plan_of([Comparison("d", "i")]), known, 50)
    assert (pair["runs"], pair["of"]) == (3, 4) and "masks" not in pair


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (math.nan, math.nan, "cannot be told apart"),
        (-2, -1, "holds"),
        (1, 2, "refuted here"),
        (-1, 1, "cannot be told apart"),
        (0, 1, "cannot be told apart"),
    ],
)
def test_verdict(low: float, high: float, said: str) -> None:
    assert verdict({"estimate": 0.0, "low": low, "high": high}) == said


def test_table(program: FakeDeocc) -> None:
    """EER by hand: 1/3 for the teacher, 0 for the student; their results files contain 10 and 12 %."""
    main(write_plan())
    table = Path("out/table.md").read_text()
    assert table.startswith("4 people of OrlFaces, folds fold0, fold1, each with models of its own, one seed (0); ")
    assert "|  | mask | EER % | rank-1 % |" in table
    assert "| (a) clean | none | 11.00 ± 1.41 | 50.00 ± 0.00 |\n" in table
    assert "| (d) student | given | 11.00 ± 1.41 | 50.00 ± 0.00 |\n|  | predicted | 11.00 ± 1.41 | 50.00" in table
    assert "| (b) teacher | none | 11.00 ± 1.41 | 50.00 ± 0.00 |\n|  | bare pairs | 11.00 ± 1.41 |" in table
    assert "| It helps (d - b) | given | -33.33 (-33.33 to -33.33) | holds |" in table
    assert "| (i - b) | given | +0.00 (+0.00 to +0.00) | cannot be told apart |" in table
    assert "corrected for the number of comparisons (2)" in table and "seeds" not in table
    assert equal_error_rate(torch.tensor(TEACHER), torch.tensor(SAME)) == pytest.approx(1 / 3)


def test_written_files(program: FakeDeocc) -> None:
    main(write_plan())
    written = json.loads(Path("out/ablation.json").read_text())
    assert written["plan"]["stage1"]["overlay"] == {"trainer": {"max_epochs": 3}}
    assert set(written["runs"]) == {f"{name}-fold{fold}-seed0" for name in ("task", "masked") for fold in (0, 1)}
    assert written["runs"]["task-fold1-seed0"]["command"] == "deocc test out/task-fold1-seed0"
    assert written["rows"]["d"]["figures"]["eer"]["values"] == pytest.approx([0.1, 0.12])
    assert "40 people, grey, frontal" in Path("out/table.md").read_text()
    assert {path.name for path in Path("out").glob("*.*g")} == {"bars.svg", "bars.png", "losses.svg", "losses.png"}
    drawn = {path: path.read_bytes() for path in Path("out").glob("*.svg")}
    main(write_plan())
    assert {path: path.read_bytes() for path in drawn} == drawn, "a figure drawn again does not differ"


def test_table_of_validation_people(program: FakeDeocc) -> None:
    rows = {"d": {"title": "student", "row": "student", "variant": "task"}}
    own = {"masked": {"model": {"init_args": {"width": 8}}}}
    main(write_plan(folds={}, people="validation", own_stage1=own, rows=rows, compare=[]))
    assert program.started == [f"{name}-seed0 fit" for name in ("inpaint", "inpaint-masked", "task", "masked")]
    assert program.commands["masked-seed0 fit"][-2].endswith("inpainting_checkpoint=out/inpaint-masked-seed0")
    table = Path("out/table.md").read_text()
    assert table.startswith("Validation people of OrlFaces, last validation of each training, one seed (0); ")
    assert "| (d) student | given | 25.00 | 50.00 |" in table and "claim" not in table


def test_table_without_folds(program: FakeDeocc) -> None:
    main(write_plan(folds={}))
    table = Path("out/table.md").read_text()
    assert "| (d) student | given | 10.00 | 50.00 |" in table, "one run has no deviation"
    assert draw_labels() == ["EER %"]


def test_table_with_pair_folds(program: FakeDeocc) -> None:
    """By hand: fold 0 has the pairs 0 and 2, fold 1 the others.

    The student's thresholds are 0.5 and 0.75, the teacher's 0.3 and 0.75. The student is wrong on the third pair, 0.6,
    the teacher also on the second, 0.4. Of the same pairs the student has all right, of the different ones two of
    three; the teacher one of two and two of three.
    """
    program.pair_folds = [0, 1, 0, 1, 1]
    program.scores = {}
    main([*write_plan(folds={}), "--seeds", "0", "1"])
    table = Path("out/table.md").read_text()
    assert table.startswith("2 people of OrlFaces, the split of the face set, 2 seeds (0, 1); ")
    assert "| It helps (d - b) | given | +25.00 (+25.00 to +25.00) | -33.33 (-33.33 to -33.33) | holds |" in table
    assert "means over the seeds" in table


def test_row_figures_by_source() -> None:
    rows: dict[str, Any] = {
        "student": {"eer": 0.1, "accuracy": {"mean": 0.9}, "rank1": None},
        "student_predicted_mask": {"eer": 0.2},
        "student_clean_predicted_mask": {"eer": 0.3},
        "teacher_masked": {"eer": 0.4},
        "teacher_clean": {"eer": 0.5},
        "teacher_clean_predicted_mask": {"eer": 0.6},
    }
    tests = [Outcome("a", 0, {"rows": rows}, lambda row: None)]
    student = {"accuracy": [0.9], "eer": [0.1], "eer_predicted_mask": [0.2], "eer_bare": [0.3]}
    assert row_figures(tests, "student") == student
    assert row_figures(tests, "teacher_masked") == {"eer": [0.4], "eer_bare": [0.5]}, "it has no mask to predict"
    assert row_figures(tests, "teacher_clean") == {"eer": [0.5]}


def test_parts_are_averaged(program: FakeDeocc) -> None:
    """By occluder and tenth of coverage, with the predicted mask where a row has one."""
    plan = plan_of([])
    tests = []
    for number, fold in enumerate(("fold0", "fold1")):
        eer = {
            "student": {"eer": 0.9},
            "student_predicted_mask": {"eer": 0.1 + 0.2 * number},
            "teacher_masked": {"eer": 0.4},
        }
        tenth = {"low": 0.1 + 0.1 * number, "high": 0.5, "rows": eer}
        results = {"people": 2, "rows": eer, "per_kind": {"hand": {"rows": eer}}, "per_coverage": [tenth]}
        tests.append(Outcome(fold, 0, results, lambda row: None))
    summary = summarise(plan, {"task": tests, "masked": []})
    expected = {"a": None, "b": 0.4, "d": pytest.approx(0.2), "i": None}
    assert summary["per_kind"] == {"hand": expected}
    assert summary["per_coverage"] == [{"low": pytest.approx(0.15), "high": 0.5, "rows": expected}]
    assert summary["people"] == 4


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
    main(write_plan(compare=[{"first": "d", "second": "b"}]))
    assert {tuple(rows) for rows in asked} >= {("student",), ("teacher_masked",)}
    assert all(len(rows) == 1 for rows in asked) and len(asked) <= 12, (
        "few times: once for each test, and for the check of the pairs"
    )


def test_figures(program: FakeDeocc) -> None:
    main(write_plan())
    curves = read_curves([Path(f"out/task-{name}-seed0") for name in ("fold0", "fold1", "gone")])
    assert curves == {"instance": {4: 1.5, 9: 3.5}} and read_curves([]) == {}
    (lines,) = loss_figure({"task": curves, "none": {}}).axes
    assert lines.lines[0].get_xydata().tolist() == [[4, 1.5], [9, 3.5]]  # type: ignore[union-attr]
    bars = bar_figure(json.loads(Path("out/ablation.json").read_text())).axes
    assert [axes.get_xlabel() for axes in bars] == ["EER %"]
    rows = [label.get_text() for label in bars[0].get_yticklabels()]
    assert rows == ["(a) clean", "(b) teacher", "(d) student", "(i) masked"]
    widths = [round(bar.get_width(), 2) for bar in bars[0].patches]  # type: ignore[attr-defined]
    assert widths == [11.0] * 6, "four rows, two of them with the predicted mask too"
