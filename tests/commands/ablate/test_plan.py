"""An invalid plan gives one message before anything starts; the plans in `configs/` are valid."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from deocc.commands.ablate_plan import Comparison, Job, Plan, list_jobs, read_plan, write_overlays
from tests.commands.ablate.conftest import PLAN, write_plan
from tests.commands.ablate.fake_deocc import FakeDeocc
from tests.conftest import ROOT, SMALL, run_deocc
from tests.fake_sets.lfw import write_lfw

ROW = {"a": {"title": "x", "row": "student"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job": 2}, "'job' is not accepted"),
        ({"jobs": 0}, '"jobs": Not of type PositiveInt: 0'),
        ({"folds": {"a/b": {}}}, "folds: 'a/b' is not a folder name"),
        ({"stage1": {}, "own_stage1": {"task": {}}}, "own_stage1 changes the configuration of stage 1, but stage1 has"),
        ({"seeds": [1, 1]}, r"seeds are \[1, 1\]: give different whole numbers"),
        ({"stage1": {"configs": ["one.yaml"], "overlays": 1}}, "'overlays'"),
        ({"stage2": {"configs": ["gone.yaml"]}}, "stage2.configs: no configuration gone.yaml"),
        *(
            ({key: empty}, f"the plan has no {key}: give one with --config")
            for key in ("rows", "stage2", "variants")
            for empty in (dict[str, Any](), None)
        ),
        *(({key: None}, f"the plan has no value for {key}: give one") for key in ("folds", "stage1", "test", "seeds")),
        ({"stage1": {"configs": None}}, "stage1 is {'configs': None, 'overlay': {}}: write stage1: {configs: "),
        ({"stage2": ["two.yaml"]}, r"stage2 is \['two.yaml'\]: write stage2: {configs: "),
        ({"stage1": "one.yaml"}, r"stage1 is a file name: write stage1: {configs: \[one.yaml\]}"),
        ({"stage2": "two.yaml"}, r"stage2 is a file name: write stage2: {configs: \[two.yaml\]}"),
        ({"test": "three.yaml"}, r"test is a file name: write test: {configs: \[three.yaml\]}"),
        (
            {"rows": {"a": ROW["a"] | {"row": "pupil"}}, "compare": []},
            "unknown row 'pupil': choose among teacher_clean, ",
        ),
        ({"rows": {"a": ROW["a"] | {"variant": "no"}}, "compare": []}, "unknown variant 'no': .* task, masked"),
        ({"rows": {"a": {"title": "x"}}}, "row"),
        ({"stage1": {"configs": ["broken.yaml"]}}, r"stage1.configs: broken.yaml is not valid YAML \(.*\): correct"),
        ({"test": {"configs": ["broken.yaml"]}}, "test.configs: broken.yaml is not valid YAML"),
        ({"stage2": {"configs": ["list.yaml"]}}, "stage2.configs: list.yaml holds list, not keys with values"),
        ({"test": {"configs": ["gone.yaml"]}}, "test.configs: no configuration gone.yaml"),
        ({"test": {"overlay": {"data": {"face_set": "Lfw"}}}}, "test has another face set than folds"),
        ({"variants": {"inpaint": {}}, "rows": ROW, "compare": []}, "variants: 'inpaint' is the name of stage 1's"),
        ({"variants": {"a/b": {}}, "rows": ROW, "compare": []}, "variants: 'a/b' is not a folder name"),
        ({"variants": {"": {}}, "rows": ROW, "compare": []}, "variants: '' is not a folder name"),
        ({"people": "validation"}, "compare needs the pairs of a test"),
        ({"own_stage1": {"none": {}}}, "own_stage1: unknown variant 'none'"),
        ({"compare": [{"first": "d", "second": "z"}]}, "compare: unknown letter 'z': choose among a, b, d, i"),
    ],
)
def test_read_plan_invalid(program: FakeDeocc, changes: dict[str, Any], message: str) -> None:
    Path("broken.yaml").write_text("model: [1\nnext: {")
    Path("list.yaml").write_text("- 1\n")
    option, file, *others = write_plan(**changes)
    for argv in ([option, file], [f"{option}={file}"]):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            read_plan([*argv, *others])
        assert "\n" not in str(error.value)
    assert program.started == []


def test_read_plan_empty_run(program: FakeDeocc) -> None:
    with pytest.raises(ValueError, match="the plan has no value for run: give one"):
        read_plan(write_plan(run=None)[:2])


def test_read_plan_missing(program: FakeDeocc) -> None:
    with pytest.raises(FileNotFoundError, match=r"no configuration nowhere\.yaml"):
        read_plan(["--config", "nowhere.yaml"])


def test_plan_by_name_with_equals_sign(program: FakeDeocc) -> None:
    assert read_plan(["--config=ablation/paper"]) == read_plan(["--config", "ablation/paper"])


def test_options_override_file(program: FakeDeocc) -> None:
    plan = read_plan([*write_plan(), "--seeds", "3", "4", "--jobs", "1", "--wandb"])
    assert (plan.seeds, plan.jobs, plan.wandb, plan.run) == ([3, 4], 1, True, Path("out"))
    assert plan.variants == PLAN["variants"] and plan.rows["d"].variant == "task"
    assert plan.compare == [Comparison("d", "b", "It helps"), Comparison("i", "b")]


def prepare(config: str, run: Path, *argv: str) -> tuple[Plan, list[Job]]:
    """Read a plan of the repository and write its overlays."""
    plan = read_plan(["--config", config, "--run", str(run), *argv])
    write_overlays(plan)
    return plan, list_jobs(plan)


def shown(job: Job, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the configuration that a job would use, by the parser of `deocc fit` and `deocc test` itself."""
    with pytest.raises(SystemExit) as end:
        run_deocc(*job.command[1:], "--print_config")
    assert end.value.code in (0, None)
    return capsys.readouterr().out


@pytest.fixture
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("_in_root")
def test_paper_plan_commands_parse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """W&B's overlay included."""
    plan, jobs = prepare("configs/ablation/paper.yaml", tmp_path, "--wandb")
    fits = [job for job in jobs if job.action == "fit" and job.folder.name.endswith("-0-seed0")]
    assert len(fits) == 1 + len(plan.variants)
    for job in fits:
        text = shown(job, capsys)
        assert f"run: {job.folder}" in text and "fold: 0" in text and "Wandb" in text


@pytest.mark.usefixtures("_in_root")
def test_large_plan_commands_parse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each test over the configuration that its training would leave, and with LFW in place of CelebA."""
    plan, jobs = prepare("configs/paper/ablation.yaml", tmp_path)
    jobs = [job for job in jobs if job.folder.name.endswith("seed2")]
    assert len(jobs) == 1 + 2 * len(plan.variants) and plan.seeds == [0, 1, 2]
    for job in jobs:
        text = shown(job, capsys)
        assert f"run: {job.folder}" in text and "seed: 2" in text
        assert ("LfwFaces" in text, "CelebaFaces" in text) == (job.action == "test", job.action == "fit")
        if job.action == "fit":
            (job.folder / "checkpoints").mkdir(parents=True)
            zipfile.ZipFile(job.folder / "checkpoints" / "last.ckpt", "w").close()
            (job.folder / "config.yaml").write_text(text)


@pytest.mark.usefixtures("_in_root")
def test_lfw_plan_commands_parse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row of each half, whose stage 1 exists; rows that share a variant are trained once."""
    plan, jobs = prepare("lfw/ablation", tmp_path)
    assert len(jobs) == 2 * len(plan.variants) * len(plan.folds) * len(plan.seeds)
    assert {row.variant for row in plan.rows.values()} - {None} == set(plan.variants)
    for name, folds in (("task-a-seed0", "- 0"), ("both-b-seed1", "- 9")):
        job = next(job for job in jobs if job.name == f"{name} fit")
        text = shown(job, capsys)
        assert folds in text and f"folder: {plan.shared_folder(name.split('-')[1])}" in text
        assert "deocc.callbacks.SharedOutputsCallback" in text and "size: 192" in text
        assert jobs[jobs.index(job) + 1].name == f"{name} test", "a session that ends early keeps complete rows"


@pytest.mark.usefixtures("_in_root")
@pytest.mark.parametrize("name", ["ablation/paper", "ablation/choices", "paper/ablation"])
def test_stage1_validates_at_its_end(name: str) -> None:
    """The validation calibrates the segmenter's gate."""
    plan, settings = read_plan(["--config", name]), dict[str, int]()
    for content in (*plan.stage1.contents(), plan.stage1.overlay):
        settings |= content.get("trainer", {})
    assert settings.get("limit_val_batches", 1) != 0
    assert settings["max_epochs"] % settings.get("check_val_every_n_epoch", 1) == 0


@pytest.mark.usefixtures("_in_root")
def test_choices_plan_commands_parse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, listed = prepare("ablation/choices", tmp_path)
    jobs = {job.name: job for job in listed}
    assert len(jobs) == 2 + len(plan.variants) and all(job.action == "fit" for job in listed)
    assert {row.variant for row in plan.rows.values()} - {None} == set(plan.variants)
    own = jobs["without_teacher-seed0 fit"].after[0]
    assert own.name == "inpaint-without_teacher-seed0 fit" and "perceptual_weight: 0.0" in shown(own, capsys)
    assert jobs["masked-seed0 fit"].after[0].name == "inpaint-seed0 fit"
    assert all("split: development" in shown(job, capsys) for job in listed)


def test_missing_checkpoint_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a clone, instead of one failed training after the other."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no file bench/lfw_half_a.ckpt, the inpainting_checkpoint of the plan"):
        prepare("lfw/ablation", tmp_path)


@pytest.mark.usefixtures("_in_root")
def test_lfw_choices_commands_parse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, jobs = prepare("lfw/choices", tmp_path)
    assert len(jobs) == len(plan.variants) and all(job.action == "fit" for job in jobs), "test people stay unused"
    assert {row.variant for row in plan.rows.values()} - {None} == set(plan.variants)
    assert all("student_input: both" in shown(job, capsys) for job in jobs)


def test_large_plan_has_same_rows() -> None:
    small, large = (
        yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text()) for name in ("ablation/paper", "paper/ablation")
    )
    assert large["compare"] == small["compare"] and list(large["rows"]) == list(small["rows"])
    assert all(large["rows"][letter] == small["rows"][letter] for letter in "abcdefghi")
    beta = {}
    for size, file in (("small", "distill"), ("large", "paper/distill")):
        module = yaml.safe_load((ROOT / f"configs/{file}.yaml").read_text())["model"]
        beta[size] = module["init_args"].get("beta", 0.0)
    settings = [
        {"beta": beta[size], **plan["variants"][plan["rows"]["j"]["variant"]].get("model", {}).get("init_args", {})}
        for size, plan in (("small", small), ("large", large))
    ]
    assert settings[0] == settings[1], "row j is the same by another default"


@pytest.mark.slow
@pytest.mark.usefixtures("_in_root")
def test_other_face_set_writes_to_run(stage2: Path, tmp_path: Path) -> None:
    """On another face set than the run's own, whose results would go to a folder of their own."""
    _, jobs = prepare("configs/paper/ablation.yaml", tmp_path, "--seeds", "0")
    job = next(job for job in jobs if job.action == "test")
    shutil.copytree(stage2, job.folder)
    lfw = f"--data.face_set.init_args.root={write_lfw(tmp_path / 'lfw')}"
    run_deocc(*job.command[1:], *SMALL, "--data.kinds", "[surgical]", lfw)
    results = json.loads((job.folder / "results.json").read_text())
    assert results["data"] == "LfwFaces" and (job.folder / "scores.npz").is_file()


@pytest.mark.usefixtures("_in_root")
def test_paper_plan_rows(tmp_path: Path) -> None:
    plan, _ = prepare("ablation/paper", tmp_path)
    assert list(plan.rows)[:9] == list("abcdefghi")
    off = {
        name: [key for key, value in overlay["model"]["init_args"].items() if value == 0 and key != "beta"]
        for name, overlay in plan.variants.items()
        if overlay
    }
    assert off["task"] == ["instance_weight", "pair_weight", "triplet_weight"]
    assert off["hard"] == off["soft"] == ["pair_weight", "triplet_weight"]
    assert off["soft_pair"] == ["triplet_weight"] and off["soft_pair_triplet"] == off["masked"] == []
