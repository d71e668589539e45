"""A plan that cannot be followed is refused in one line before anything starts; the one in `configs/` is sound."""

from pathlib import Path
from typing import Any

import pytest

from deocc.apps.ablation import list_jobs, read_plan
from deocc.apps.ablation.jobs import write_overlays
from tests.apps.conftest import PLAN, write_plan
from tests.apps.stand_in import Program
from tests.conftest import ROOT, run_deocc


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job": 2}, "'job' is not accepted"),
        ({"jobs": 0}, '"jobs": Not of type PositiveInt: 0'),
        ({"folds": 1}, "folds is 1: give 2 or more, or null"),
        ({"seeds": [1, 1]}, r"seeds are \[1, 1\]: give different whole numbers"),
        ({"stage1": {"configs": ["one.yaml"], "overlays": 1}}, "'overlays'"),
        ({"stage2": {"configs": ["gone.yaml"]}}, "stage2.configs: no file gone.yaml"),
        ({"rows": {}}, "the plan has no rows: give one with --config"),
        ({"rows": {"a": {"title": "x", "row": "pupil"}}, "compare": []}, "unknown row 'pupil': choose among teacher_clean, "),
        ({"rows": {"a": {"title": "x", "row": "student", "variant": "none"}}, "compare": []}, "unknown variant 'none': .* task, masked"),
        ({"rows": {"a": {"title": "x"}}}, "row"),
        ({"compare": [["d", "z"]]}, "compare: unknown letter 'z': choose among a, b, d, i"),
    ],
)
def test_a_bad_plan_gets_one_clear_line(program: Program, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read_plan(write_plan(**changes))
    assert "\n" not in str(error.value)
    assert program.started == []


def test_a_plan_that_is_not_there_is_named(program: Program) -> None:
    with pytest.raises(FileNotFoundError, match=r"--config: no file nowhere\.yaml"):
        read_plan(["--config", "nowhere.yaml"])


def test_words_after_the_file_win_over_it(program: Program) -> None:
    words = write_plan()
    plan = read_plan([*words, "--seeds", "3", "4", "--jobs", "1", "--wandb"])
    assert (plan.seeds, plan.jobs, plan.wandb, plan.run) == ([3, 4], 1, True, Path("out"))
    assert plan.variants == PLAN["variants"] and plan.rows["d"].variant == "task" and plan.compare == [("d", "b"), ("i", "b")]


def test_every_command_of_the_paper_plan_parses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the parser of `deocc fit` itself; W&B's overlay included."""
    monkeypatch.chdir(ROOT)
    plan = read_plan(["--config", "configs/ablation/paper.yaml", "--run", str(tmp_path), "--wandb", "--folds", "2"])
    write_overlays(plan)
    fits = [job for job in list_jobs(plan) if job.action == "fit"]
    for job in fits[: 1 + len(plan.variants)]:
        with pytest.raises(SystemExit) as end:
            run_deocc(*job.command[1:], "--print_config")
        shown = capsys.readouterr().out
        assert end.value.code in (0, None) and f"run: {job.folder}" in shown and "fold: 0" in shown and "WandbRunLogger" in shown


def test_the_paper_plan_has_every_row_of_the_method() -> None:
    plan = read_plan(["--config", str(ROOT / "configs/ablation/paper.yaml"), *_absolute()])
    assert list(plan.rows)[:9] == list("abcdefghi")
    off = {
        name: [key for key, value in overlay["model"]["init_args"].items() if value == 0 and key != "beta"]
        for name, overlay in plan.variants.items()
        if overlay
    }
    assert off["task"] == ["instance_weight", "pair_weight", "triplet_weight"]
    assert off["hard"] == off["soft"] == ["pair_weight", "triplet_weight"]
    assert off["soft_pair"] == ["triplet_weight"] and off["soft_pair_triplet"] == off["masked"] == []


def _absolute() -> list[str]:
    """The stages' files from anywhere."""
    return [f"--{stage}.configs=[{ROOT / 'configs' / name}.yaml]" for stage, name in (("stage1", "inpaint"), ("stage2", "distill"))]
