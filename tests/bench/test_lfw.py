"""The command behind the LFW model: its order, what it resumes and skips, and how it fails. No network is trained."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import lfw
from tests.conftest import ROOT

FAKE = """#!{python}
import json, os, pathlib, shutil, sys, time
words, here = sys.argv[1:], pathlib.Path({here!r})
with (here / "calls").open("a") as calls:
    calls.write(json.dumps([words, os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]]) + "\\n")
print("output of", words[0])
if (here / "broken").exists() and (here / "broken").read_text() in " ".join(words):
    sys.exit(2)
if (here / "slow").exists() and (here / "slow").read_text() in " ".join(words):
    (here / "draft").write_text(str(os.getpid()))
    (here / "draft").rename(here / "pid")
    time.sleep(60)
run = pathlib.Path(words[words.index("--resume" if "--resume" in words else "--run") + 1])
if words[0] == "fit":
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("trainer: {{max_epochs: 3}}")
    shutil.copyfile(here / "whole.ckpt", run / "checkpoints/last.ckpt")
else:
    (run / "model").mkdir(exist_ok=True)
    for name in ("results.json", "model/config.json"):
        (run / name).write_text("{{}}")
with (here / "ended").open("a") as ended:
    ended.write("/".join(run.parts[-2:]) + "\\n")
"""


def _checkpoint(path: Path, epochs: int) -> None:
    progress = {"current": {"processed": epochs, "completed": epochs - 1}}
    torch.save({"state_dict": {}, "hyper_parameters": {}, "loops": {"fit_loop": {"epoch_progress": progress}}}, path)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program in place of `deocc`, which trains at once and notes its calls."""
    program = tmp_path / "deocc"
    program.write_text(FAKE.format(python=sys.executable, here=str(tmp_path)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    _checkpoint(tmp_path / "whole.ckpt", 3)
    (tmp_path / "faces").mkdir()
    monkeypatch.setattr(lfw, "DEOCC", (str(program),))
    monkeypatch.setattr(lfw, "_POLL", 0.01)
    return tmp_path


def _run(fake: Path, *words: str) -> tuple[int, list[list[str]]]:
    """The exit status and the arguments of every call of `deocc`."""
    (fake / "calls").write_text("")
    status = lfw.main(["--data", str(fake / "faces"), "--runs", str(fake / "runs"), *words])
    return status, [json.loads(line)[0] for line in (fake / "calls").read_text().splitlines()]


def _kinds(calls: list[list[str]]) -> list[str]:
    """Command and run of each call, such as "fit a/segment"."""
    named = [words[words.index("--resume" if "--resume" in words else "--run") + 1] for words in calls]
    return [f"{words[0]} {'/'.join(Path(run).parts[-2:])}" for words, run in zip(calls, named, strict=True)]


def test_stages_run_once_in_order(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, calls = _run(fake)
    stages = ["fit {}/segment", "fit {}/inpaint", "fit {}/distill", "test {}/inpaint", "test {}/distill"]
    assert status == 0 and _kinds(calls) == [stage.format(half) for half in "ab" for stage in stages]
    assert (fake / "runs/b/distill.log").read_text() == "output of fit\n"
    assert _run(fake) == (0, [])
    assert "b: test-distill is finished" in capsys.readouterr().out


def test_arguments_of_a_half(fake: Path) -> None:
    _, calls = _run(fake, "--halves", "b")
    for words in calls[:3]:
        assert words[words.index("--data.face_set.init_args.test_folds") + 1] == "[5,6,7,8,9]"
    for words in calls:
        assert words[words.index("--data.face_set.init_args.root") + 1] == str(fake / "faces")
    distill = calls[2]
    assert distill[distill.index("--model.init_args.inpainting_checkpoint") + 1] == str(fake / "runs/b/inpaint")
    assert distill[distill.index("--model.init_args.segmenter_checkpoint") + 1] == str(fake / "runs/b/segment")
    assert "configs/test/perceptual.yaml" in calls[3] and "configs/test/perceptual.yaml" not in calls[4]


def test_chosen_stages(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stage runs after those that it needs, which another call may have run."""
    chosen = ("--halves", "b", "--stages")
    assert _run(fake, *chosen, "distill") == (1, [])
    assert "need inpaint, segment, which has not run: add it to --stages" in capsys.readouterr().err
    assert _kinds(_run(fake, *chosen, "segment", "inpaint")[1]) == ["fit b/segment", "fit b/inpaint"]
    assert _kinds(_run(fake, *chosen, "distill")[1]) == ["fit b/distill"]


def test_unfinished_training_resumes(fake: Path) -> None:
    _run(fake, "--halves", "a")
    checkpoint = fake / "runs/a/distill/checkpoints/last.ckpt"
    _checkpoint(checkpoint, 2)
    status, calls = _run(fake, "--halves", "a")
    assert status == 0 and _kinds(calls) == ["fit a/distill", "test a/distill"]
    assert calls[0][:3] == ["fit", "--resume", str(fake / "runs/a/distill")] and "--config" not in calls[0]


def test_failed_stage_names_log(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fake / "broken").write_text("inpaint.yaml")
    status, calls = _run(fake, "--halves", "a")
    assert status == 1 and _kinds(calls) == ["fit a/segment", "fit a/inpaint"]
    error = capsys.readouterr().err
    assert error == f"bench.lfw: inpaint of half a failed with exit status 2: see {fake / 'runs/a/inpaint.log'}\n"
    (fake / "broken").unlink()
    assert _kinds(_run(fake, "--halves", "a")[1])[0] == "fit a/inpaint"


def test_failed_stage_stops_other(fake: Path) -> None:
    (fake / "slow").write_text("segment.yaml")
    (fake / "broken").write_text("inpaint.yaml")
    start = time.monotonic()
    assert _run(fake, "--halves", "a", "--jobs", "2")[0] == 1
    assert time.monotonic() - start < 50 and not (fake / "ended").exists()


def test_sigterm_stops_the_stages(fake: Path) -> None:
    (fake / "slow").write_text("segment.yaml")
    argv = ["--data", str(fake / "faces"), "--runs", str(fake / "runs"), "--halves", "a"]
    program = f"import sys; from bench import lfw; lfw.DEOCC = {lfw.DEOCC!r}; sys.exit(lfw.main({argv!r}))"
    with subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}) as runner:
        while runner.poll() is None and not list(fake.glob("pid")):
            time.sleep(0.05)
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((fake / "pid").read_text()), 0)


@pytest.mark.parametrize(("gpu", "cpu"), [(True, False), (False, True), (False, False)])
def test_bfloat16_only_if_fast(gpu: bool, cpu: bool, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(lfw, "has_bfloat16_instructions", lambda: cpu)
    assert lfw.has_fast_bfloat16() is (gpu or cpu)
    monkeypatch.setattr(lfw, "has_fast_bfloat16", lambda: gpu or cpu)
    for call in _run(fake, "--halves", "a")[1]:
        assert ("bf16-mixed" in call) is ((gpu or cpu) and call[0] == "fit")


def test_missing_last_epoch_fails(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _checkpoint(fake / "whole.ckpt", 2)
    assert _run(fake, "--halves", "a")[0] == 1
    assert "ended without its result" in capsys.readouterr().err


def test_two_jobs_share_cores(fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    status, calls = _run(fake, "--jobs", "2")
    assert status == 0 and len(calls) == 10
    started = [line.split(" started")[0] for line in capsys.readouterr().out.splitlines() if " started" in line]
    assert started[:2] == ["a: segment", "b: segment"]  # the calls of processes may come in another order
    assert {tuple(json.loads(line)[1:]) for line in (fake / "calls").read_text().splitlines()} == {("3", "passive")}
    ended = (fake / "ended").read_text().splitlines()
    for half in "ab":
        places = [ended.index(f"{half}/{name}") for name in ("segment", "inpaint", "distill")]
        assert max(places[:2]) < places[2]


def test_two_jobs_of_one_half(tmp_path: Path) -> None:
    stages = lfw.stages_of(["a"], tmp_path, 2)
    assert [stage.name for stage in stages if stage.is_ready(set())] == ["segment", "inpaint"]
    assert not lfw.Stage("a", "distill", tmp_path / "a").is_ready({stages[0]})


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        lfw.main(["--data", str(tmp_path / "nowhere")])
    assert "give the folder of LFW as --data" in capsys.readouterr().err
