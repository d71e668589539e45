"""A plan that cannot be followed is refused in one line before anything starts; the one in `configs/` is sound."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from deocc.commands.ablate.plan import Job, list_jobs, read_plan, write_overlays
from tests.apps.conftest import PLAN, write_plan
from tests.apps.stand_in import Program
from tests.conftest import ROOT, SMALL, run_deocc
from tests.fake_sets.lfw import write_lfw

ROW = {"a": {"title": "x", "row": "student"}}


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
        (
            {"rows": {"a": {"title": "x", "row": "pupil"}}, "compare": []},
            "unknown row 'pupil': choose among teacher_clean, ",
        ),
        (
            {"rows": {"a": {"title": "x", "row": "student", "variant": "none"}}, "compare": []},
            "unknown variant 'none': .* task, masked",
        ),
        ({"rows": {"a": {"title": "x"}}}, "row"),
        (
            {"stage1": {"configs": ["broken.yaml"]}},
            r"stage1.configs: cannot read broken.yaml as YAML \(.*\): mend the file",
        ),
        ({"test": {"configs": ["broken.yaml"]}}, "test.configs: cannot read broken.yaml as YAML"),
        ({"stage2": {"configs": ["list.yaml"]}}, "stage2.configs: list.yaml holds list, not keys with values"),
        ({"test": {"configs": ["gone.yaml"]}}, "test.configs: no file gone.yaml"),
        (
            {"test": {"configs": [], "overlay": {"data": {"face_set": "Lfw"}}}},
            "folds is 2, but test names a face set of its own",
        ),
        (
            {"variants": {"inpaint": {}}, "rows": ROW, "compare": []},
            "variants: 'inpaint' is the name of stage 1's runs",
        ),
        ({"variants": {"a/b": {}}, "rows": ROW, "compare": []}, "variants: 'a/b' cannot name a folder"),
        ({"variants": {"": {}}, "rows": ROW, "compare": []}, "variants: '' cannot name a folder"),
        ({"compare": [["d", "z"]]}, "compare: unknown letter 'z': choose among a, b, d, i"),
    ],
)
def test_a_bad_plan_gets_one_clear_line(program: Program, changes: dict[str, Any], message: str) -> None:
    Path("broken.yaml").write_text("model: [1\nnext: {")
    Path("list.yaml").write_text("- 1\n")
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
    assert (
        plan.variants == PLAN["variants"]
        and plan.rows["d"].variant == "task"
        and plan.compare == [("d", "b"), ("i", "b")]
    )


def test_every_command_of_the_paper_plan_parses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the parser of `deocc fit` itself; W&B's overlay included."""
    monkeypatch.chdir(ROOT)
    plan = read_plan(["--config", "configs/ablation/paper.yaml", "--run", str(tmp_path), "--wandb", "--folds", "2"])
    write_overlays(plan)
    fits = [job for job in list_jobs(plan) if job.action == "fit" and job.folder.name.endswith("fold0-seed0")]
    assert len(fits) == 1 + len(plan.variants)
    for job in fits:
        with pytest.raises(SystemExit) as end:
            run_deocc(*job.command[1:], "--print_config")
        shown = capsys.readouterr().out
        assert (
            end.value.code in (0, None)
            and f"run: {job.folder}" in shown
            and "fold: 0" in shown
            and "WandbRunLogger" in shown
        )


def test_every_command_of_the_plan_at_paper_scale_parses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each test over the configuration that its training would leave, and with LFW in place of CelebA."""
    monkeypatch.chdir(ROOT)
    plan = read_plan(["--config", "configs/paper/ablation.yaml", "--run", str(tmp_path)])
    write_overlays(plan)
    jobs = [job for job in list_jobs(plan) if job.folder.name.endswith("seed2")]
    assert len(jobs) == 1 + 2 * len(plan.variants) and plan.seeds == [0, 1, 2]
    for job in jobs:
        shown = _shown(job, capsys)
        assert f"run: {job.folder}" in shown and "seed: 2" in shown
        assert ("LfwFaces" in shown, "CelebaFaces" in shown) == (job.action == "test", job.action == "fit")
        if job.action == "fit":
            (job.folder / "checkpoints").mkdir(parents=True)
            zipfile.ZipFile(job.folder / "checkpoints" / "last.ckpt", "w").close()
            (job.folder / "config.yaml").write_text(shown)


def test_the_plan_at_paper_scale_has_the_rows_of_the_embedded_faces() -> None:
    small, large = (
        yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text()) for name in ("ablation/paper", "paper/ablation")
    )
    assert large["compare"] == small["compare"] and list(large["rows"]) == list(small["rows"])
    assert all(large["rows"][letter] == small["rows"][letter] for letter in "abcdefghi")
    beta = {name: _beta(f"configs/{path}.yaml") for name, path in (("small", "distill"), ("large", "paper/distill"))}
    settings = [
        {"beta": beta[size], **plan["variants"][plan["rows"]["j"]["variant"]].get("model", {}).get("init_args", {})}
        for size, plan in (("small", small), ("large", large))
    ]
    assert settings[0] == settings[1], "row j is the same by another default"


@pytest.mark.slow
def test_a_test_on_other_faces_writes_beside_its_training(
    stage2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another face set than the run's own, whose results would go to a folder of their own."""
    monkeypatch.chdir(ROOT)
    plan = read_plan(["--config", "configs/paper/ablation.yaml", "--run", str(tmp_path), "--seeds", "0"])
    job = next(job for job in list_jobs(plan) if job.action == "test")
    shutil.copytree(stage2, job.folder)
    lfw = f"--data.face_set.init_args.root={write_lfw(tmp_path / 'lfw')}"
    run_deocc(*job.command[1:], *SMALL, "--data.kinds", "[surgical]", lfw)
    results = json.loads((job.folder / "results.json").read_text())
    assert results["data"] == "LfwFaces" and (job.folder / "scores.npz").is_file()


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


def _shown(job: Job, capsys: pytest.CaptureFixture[str]) -> str:
    """The configuration that a job would run by."""
    with pytest.raises(SystemExit) as end:
        run_deocc(*job.command[1:], "--print_config")
    assert end.value.code in (0, None)
    return capsys.readouterr().out


def _beta(file: str) -> float:
    return float(yaml.safe_load((ROOT / file).read_text())["model"]["init_args"].get("beta", 0.0))


def _absolute() -> list[str]:
    """The stages' files from anywhere."""
    return [
        f"--{stage}.configs=[{ROOT / 'configs' / name}.yaml]"
        for stage, name in (("stage1", "inpaint"), ("stage2", "distill"))
    ]
