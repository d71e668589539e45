"""Jobs run in order and once, resume after an interruption, repeat after a change, and fail alone."""

import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from deocc.commands.ablate import _start_process, hold_folder, main, run_jobs
from deocc.commands.ablate_plan import Job, list_jobs, read_plan
from tests.commands.ablate.conftest import write_plan
from tests.commands.ablate.fake_deocc import FakeDeocc, write_checkpoint

STAGE2 = {
    f"{name}-fold{fold}-seed0 {action}" for name in ("task", "masked") for fold in (0, 1) for action in ("fit", "test")
}
ALL = STAGE2 | {"inpaint-fold0-seed0 fit", "inpaint-fold1-seed0 fit"}


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time; `test_summary.py` checks them."""
    monkeypatch.setattr("deocc.commands.ablate_report._draw_figures", lambda *_: None)


def again(program: FakeDeocc, argv: list[str]) -> set[str]:
    """Return the jobs that another `deocc ablate` starts."""
    program.started.clear()
    main(argv)
    return set(program.started)


def test_jobs_run_once_in_order(program: FakeDeocc) -> None:
    main(write_plan())
    assert len(program.started) == len(ALL) and set(program.started) == ALL
    place = {name: number for number, name in enumerate(program.started)}
    for fold in (0, 1):
        for variant in ("task", "masked"):
            assert place[f"inpaint-fold{fold}-seed0 fit"] < place[f"{variant}-fold{fold}-seed0 fit"]
            assert place[f"{variant}-fold{fold}-seed0 fit"] < place[f"{variant}-fold{fold}-seed0 test"]
    assert again(program, write_plan()) == set()


def test_commands(program: FakeDeocc) -> None:
    main([*write_plan(), "--seeds", "0", "10"])
    assert len(program.started) == 2 * len(ALL)
    command = program.commands["task-fold1-seed10 fit"]
    assert command[2:] == [
        "--config=two.yaml",
        "--config=out/overlays/stage2.yaml",
        "--config=out/overlays/variant-task.yaml",
        "--config=out/overlays/fold-fold1.yaml",
        "--run=out/task-fold1-seed10",
        "--seed_everything=11",
        "--data.seed=11",
        "--model.init_args.inpainting_checkpoint=out/inpaint-fold1-seed10",
        "--trainer.enable_progress_bar=false",
    ]
    stage1 = program.commands["inpaint-fold0-seed0 fit"]
    assert stage1[2:4] == ["--config=one.yaml", "--config=out/overlays/stage1.yaml"]
    assert Path("out/overlays/stage1.yaml").read_text() == "trainer:\n  max_epochs: 3\n"


def test_commands_without_folds(program: FakeDeocc) -> None:
    main(write_plan(folds={}))
    assert "masked-seed0 test" in program.started
    assert not any("fold-" in argument for command in program.commands.values() for argument in command)


@pytest.mark.parametrize(
    ("intact", "damaged", "resumed", "reason"),
    [
        ("last.ckpt", None, "last.ckpt", ""),
        ("next.ckpt", None, "next.ckpt", ""),
        ("previous.ckpt", None, "previous.ckpt", ""),
        ("previous.ckpt", "last.ckpt", "previous.ckpt", ""),
        (None, "last.ckpt", None, "all of its checkpoints are damaged"),
        (None, None, None, "it was interrupted before its first checkpoint"),
    ],
)
def test_interrupted_training_resumes(
    program: FakeDeocc,
    intact: str | None,
    damaged: str | None,
    resumed: str | None,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From its newest intact checkpoint; a run without one is kept."""
    program.failing = {"task-fold0-seed0 fit": "broke"}
    with pytest.raises(RuntimeError):
        main(write_plan())
    program.failing = {}
    folder = Path("out/task-fold0-seed0/checkpoints")
    (folder / "last.ckpt").unlink()
    if intact is not None:
        write_checkpoint(folder / intact)
    if damaged is not None:
        (folder / damaged).write_bytes(b"PK")
    assert again(program, write_plan()) == {"task-fold0-seed0 fit", "task-fold0-seed0 test"}
    given = [argument for argument in program.commands["task-fold0-seed0 fit"] if argument.startswith("--ckpt_path")]
    assert given == ([f"--ckpt_path={folder / resumed}"] if resumed is not None else [])
    printed = capsys.readouterr().out
    assert reason in printed and ("starts again, because" in printed) == (resumed is None)


def test_replaced_run_is_kept(program: FakeDeocc, capsys: pytest.CaptureFixture[str]) -> None:
    main(write_plan())
    for number in (1, 2):
        Path("out/task-fold0-seed0/mine").write_text(str(number))
        Path("two.yaml").write_text(f"model: {{class_path: Two{number}}}\n")
        capsys.readouterr()
        assert again(program, write_plan()) == STAGE2
        assert "task-fold0-seed0 fit starts again, because " in capsys.readouterr().out
    for number in (1, 2):
        kept = Path(f"out/task-fold0-seed0.replaced-{number}")
        assert (kept / "mine").read_text() == str(number) and (kept / "checkpoints/last.ckpt").is_file()
    assert not Path("out/task-fold0-seed0/mine").exists() and not Path("out/inpaint-fold0-seed0.replaced-1").exists()


def test_changed_test_repeats_tests_only(program: FakeDeocc) -> None:
    main(write_plan())
    tests = {name for name in ALL if name.endswith("test")}
    assert again(program, write_plan(test={"configs": ["three.yaml"], "overlay": {"data": {"size": 64}}})) == tests
    argv = ["--config=three.yaml", "--config=out/overlays/test.yaml", "--run=out/task-fold0-seed0"]
    argv = ["test", "--checkpoint", "out/task-fold0-seed0", *argv, "--trainer.enable_progress_bar=false"]
    assert program.commands["task-fold0-seed0 test"][1:] == argv
    assert Path("out/overlays/test.yaml").read_text() == "data:\n  size: 64\n"
    Path("three.yaml").write_text("data: {batch_size: 2}\n")
    assert again(program, write_plan(test={"configs": ["three.yaml"], "overlay": {"data": {"size": 64}}})) == tests
    assert again(program, write_plan()) == tests


@pytest.mark.parametrize("name", ["results.json", "scores.npz", "clean_scores.npz"])
def test_changed_results_are_repeated(name: str, program: FakeDeocc, capsys: pytest.CaptureFixture[str]) -> None:
    main(write_plan())
    with Path("out/task-fold1-seed0", name).open("ab") as file:
        file.write(b" ")
    assert again(program, write_plan()) == {"task-fold1-seed0 test"}
    message = f"task-fold1-seed0 test is run again: {name} in out/task-fold1-seed0 changed since it wrote them"
    assert message in capsys.readouterr().out
    Path("out/task-fold1-seed0", name).unlink()
    assert again(program, write_plan()) == {"task-fold1-seed0 test"}
    assert again(program, write_plan()) == set()


def test_missing_results_fail(program: FakeDeocc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_test", lambda folder, fold: None)
    message = r"4 of 10 runs .*succeeded, but left no results\.json in out/task-fold0-seed0"
    with pytest.raises(RuntimeError, match=message):
        main(write_plan())


def test_folder_is_locked(program: FakeDeocc, tmp_path: Path) -> None:
    """Also by a child that outlives the runner."""
    with hold_folder(Path("out")) as lock:
        message = rf"^out is in use by another `deocc ablate` \(process {os.getpid()}, or a run that it left"
        with pytest.raises(RuntimeError, match=message):
            main(write_plan())
        orphan = _start_process(["sleep", "60"], tmp_path / "sleep.log", os.environ, [lock])
    try:
        with pytest.raises(RuntimeError, match="is in use"):
            main(write_plan())
        assert program.started == [] and not Path("out/overlays").exists()
    finally:
        orphan.kill()
        orphan.wait()
    main(write_plan())
    assert set(program.started) == ALL
    assert len(program.kept) == 1  # the lock


@pytest.mark.parametrize(
    ("count", "jobs", "visible", "used"),
    [(2, 2, None, ["0", "1"]), (1, 2, None, [None] * 2), (2, 1, None, [None] * 2), (2, 2, "3", ["3"] * 2)],
    ids=["two GPUs", "one GPU", "one job", "the user's"],
)
def test_parallel_jobs_share_gpus(
    count: int,
    jobs: int,
    visible: str | None,
    used: list[str | None],
    program: FakeDeocc,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    main([*write_plan(), "--jobs", str(jobs)])
    environments = [program.environments[f"inpaint-fold{fold}-seed0 fit"] for fold in (0, 1)]
    assert [environment.get("CUDA_VISIBLE_DEVICES") for environment in environments] == used
    assert {environment.get("CUDA_VISIBLE_DEVICES") for environment in program.environments.values()} == {*used}


def test_launcher_variables_are_removed(program: FakeDeocc, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = ["SLURM_NTASKS", "SLURM_JOB_NAME", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    foreign.append("TORCHELASTIC_RUN_ID")
    for name in [*foreign, "RANKING"]:
        monkeypatch.setenv(name, "1")
    main(write_plan())
    environment = program.environments["inpaint-fold0-seed0 fit"]
    assert not set(foreign) & set(environment)
    assert (environment["RANKING"], environment["PATH"]) == ("1", os.environ["PATH"])


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"variants": {"task": {"model": {"init_args": {"pair_weight": 1.0}}}, "masked": {}}}, "task"),
        ({"stage2": {"configs": ["two.yaml"], "overlay": {"trainer": {"max_epochs": 1}}}}, "stage2"),
        ({"stage1": {"configs": ["one.yaml"]}}, ""),
        ({"jobs": 1, "compare": []}, "nothing"),
        ({"wandb": True, "rows": {"a": {"title": "other", "row": "student"}}, "compare": []}, "nothing"),
    ],
    ids=["variant", "stage2", "stage1", "schedule", "presentation"],
)
def test_changed_plan_retrains(program: FakeDeocc, changes: dict[str, Any], part: str) -> None:
    retrained = STAGE2 if part == "stage2" else {name for name in ALL if part in name}
    main(write_plan())
    assert again(program, write_plan(**changes)) == retrained
    for name in retrained:
        resumed = [argument for argument in program.commands[name] if argument.startswith("--ckpt_path")]
        assert not resumed, "from weights of another plan"


def test_changed_checkpoint_retrains(program: FakeDeocc) -> None:
    """A file that the configuration names, in an overlay or in a file."""
    Path("earlier.ckpt").write_text("one")
    plan = write_plan(
        stage1={}, stage2={"configs": ["two.yaml"], "overlay": {"model": {"x_checkpoint": "earlier.ckpt"}}}
    )
    main(plan)
    assert again(program, plan) == set()
    Path("earlier.ckpt").write_text("two")
    assert again(program, plan) == STAGE2


@pytest.mark.parametrize("named", ["runs/first", "newest"])
def test_retrained_run_folder_retrains(program: FakeDeocc, named: str) -> None:
    """A run that the plan names as an earlier stage; a setting that the plan overrides does not count."""
    file = Path("runs/first/checkpoints/last.ckpt")
    write_checkpoint(file, "one")
    Path("runs/first/config.yaml").write_text("model: {class_path: deocc.modules.InpaintingModule}\n")
    Path("two.yaml").write_text(f"model: {{init_args: {{inpainting_checkpoint: {named}}}}}\n")
    plan = write_plan(stage1={})
    main(plan)
    assert again(program, plan) == set()
    write_checkpoint(file, "two")
    assert again(program, plan) == STAGE2
    overridden = {"model": {"init_args": {"inpainting_checkpoint": None}}}
    plan = write_plan(stage1={}, stage2={"configs": ["two.yaml"], "overlay": overridden})
    main(plan)
    write_checkpoint(file, "three")
    assert again(program, plan) == set()


def test_unused_earlier_run_changes_nothing(program: FakeDeocc) -> None:
    """The configuration of stage 2 names the newest stage 1, but the plan trains its own."""
    Path("two.yaml").write_text("model: {init_args: {inpainting_checkpoint: newest}}\n")
    main(write_plan())
    write_checkpoint(Path("runs/first/checkpoints/last.ckpt"))
    Path("runs/first/config.yaml").write_text("model: {class_path: deocc.modules.InpaintingModule}\n")
    assert again(program, write_plan()) == set()


@pytest.mark.parametrize("share", [False, True])
def test_shared_outputs_are_deleted_at_the_end(program: FakeDeocc, share: bool) -> None:
    """Once all runs are done; a folder of another purpose stays."""
    Path("out/shared").mkdir(parents=True)
    program.failing = {"task-fold0-seed0 fit": "broke"}
    with pytest.raises(RuntimeError):
        main(write_plan(share_outputs=share))
    assert Path("out/.shared-outputs-fold1").is_dir() == share
    program.failing = {}
    main(write_plan(share_outputs=share))
    assert not list(Path("out").glob(".shared*")) and Path("out/shared").is_dir()


def test_failing_job_fails_alone(program: FakeDeocc, capsys: pytest.CaptureFixture[str]) -> None:
    program.failing = {"inpaint-fold0-seed0 fit": "deocc: no room left"}
    with pytest.raises(RuntimeError) as error:
        main(write_plan())
    assert set(program.started) == {name for name in ALL if "fold1" in name} | {"inpaint-fold0-seed0 fit"}
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("5 of 10 runs are missing, first inpaint-fold0-seed0 fit (exit code 1, ")
    assert "fit.log: deocc: no room left)" in text and "masked-fold0-seed0 test" in text
    assert "| (b) teacher | n/a, 1 of 2 runs |" in Path("out/table.md").read_text()
    assert "[5/10] " in capsys.readouterr().out


class Interrupted(FakeDeocc):
    """One command runs until it is terminated; all others end at once."""

    child: subprocess.Popen[bytes] | None = None

    def __call__(self, argv: list[str], log: Path, environment: Mapping[str, str], keep_open: Collection[int]) -> Any:
        if log.parent.name != "task-fold0-seed0":
            return super().__call__(argv, log, environment, keep_open)
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        os.kill(os.getpid(), 15)  # like `kill`; Ctrl-C is handled in the same way
        return self.child


def test_interrupt_terminates_children(program: FakeDeocc, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = Interrupted()
    monkeypatch.setattr("deocc.commands.ablate._start_process", interrupted)
    plan = read_plan(write_plan())
    with pytest.raises(KeyboardInterrupt):
        run_jobs(list_jobs(plan), plan.jobs)
    assert interrupted.child is not None and interrupted.child.poll() is not None
    assert not Path("out/task-fold0-seed0/fit.done").exists()


@pytest.mark.parametrize(("given", "expected"), [(None, "0"), ("1", "1")])
def test_rows_compute_in_float32(
    given: str | None, expected: str, program: FakeDeocc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEOCC_BFLOAT16")
    if given is not None:
        monkeypatch.setenv("DEOCC_BFLOAT16", given)
    main(write_plan())
    assert {environment["DEOCC_BFLOAT16"] for environment in program.environments.values()} == {expected}


def test_real_jobs_run_in_parallel(tmp_path: Path) -> None:
    """Each waits for the file that the other writes, so neither can end alone."""
    code = "import os, sys, time\nopen(sys.argv[1], 'w').write(os.environ['OMP_NUM_THREADS'])\n"
    code += "while not os.path.exists(sys.argv[2]): time.sleep(0.01)\nprint('met')"
    files = [str(tmp_path / name) for name in ("first", "second")]
    jobs = [
        Job((sys.executable, "-c", code, one, other), tmp_path / f"job{number}", "fit", "same")
        for number, (one, other) in enumerate([files, files[::-1]])
    ]
    begun = time.monotonic()
    assert run_jobs(jobs, 2) == {} and time.monotonic() - begun < 60
    assert all((job.folder / "fit.log").read_text() == "met\n" for job in jobs)
    assert {Path(file).read_text() for file in files} == {str(max(1, (os.cpu_count() or 1) // 2))}
