"""Train and test the LFW models: `python -m bench.lfw --data data/lfw --halves a b`.

Half "a" tests on the pairs of folds 1-5 and trains on everyone who is in none of them, half "b" on folds 6-10; together
they test 6,000 pairs. In each half the mask predictor, the generator and the student are trained (`configs/lfw`), then
generator and student are tested. Every stage is a run of `deocc` with a log `RUNS/HALF/STAGE.log`. Run the command
again after an interruption: finished stages are skipped, interrupted trainings are resumed.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from deocc import runs
from deocc.modules.precision import has_bfloat16_instructions
from deocc.networks.weights import read_checkpoint

DEOCC = (str(Path(sys.executable).with_name("deocc")),)
RUNS = Path("runs/lfw")
TEST_FOLDS = {"a": "[0,1,2,3,4]", "b": "[5,6,7,8,9]"}
"""By half, the folds to test on, counted from 0."""

AFTER: dict[str, tuple[str, ...]] = {
    "segment": (),
    "inpaint": (),
    "distill": ("segment", "inpaint"),
    "test-inpaint": ("inpaint",),
    "test-distill": ("distill",),
}
"""By stage of a half, the stages that it needs."""

_ROOT = "--data.face_set.init_args.root"
_LAST_OUTPUT = {"inpaint": "results.json", "distill": "model/config.json"}  # of a test, in its run folder
_POLL = 0.2  # seconds


class StageFailedError(Exception):
    """A stage ended without its result; the message names the log."""


class Stage(NamedTuple):
    """A training or a test of one half."""

    half: str
    name: str
    folder: Path
    """The folder of the half."""

    @property
    def run(self) -> Path:
        """The run folder that it trains or tests."""
        return self.folder / self.name.removeprefix("test-")

    @property
    def log(self) -> Path:
        """The file that receives its output."""
        return self.folder / f"{self.name}.log"

    def is_ready(self, finished: set["Stage"]) -> bool:
        return all(self._replace(name=name) in finished for name in AFTER[self.name])

    def is_finished(self) -> bool:
        """Check whether its run is fully trained, or tested since it was trained last."""
        if not self.name.startswith("test-"):
            return is_trained(self.run)
        output, checkpoint = self.run / _LAST_OUTPUT[self.run.name], runs.find_checkpoint(self.run, resume=True)
        return output.is_file() and output.stat().st_mtime >= checkpoint.stat().st_mtime

    def argv(self, data: str) -> list[str]:
        """The arguments of `deocc`; data: the folder of LFW."""
        run, root = str(self.run), [_ROOT, data]
        if self.name == "test-distill":
            return ["test", "--checkpoint", run, "--run", run, *root]
        if self.name == "test-inpaint":
            config = ["--config", "configs/test/perceptual.yaml"]
            mixed = ["--data.mixed_kinds", "true", "--data.test_seeds", "[1]"]  # the masks of the student's test
            return ["test", "--checkpoint", run, *config, "--run", run, *root, *mixed]
        if (self.run / runs.CONFIG).is_file():
            return ["fit", "--resume", run, *root]
        folds, earlier = ["--data.face_set.init_args.test_folds", TEST_FOLDS[self.half]], list[str]()
        if self.name == "distill":
            earlier += ["--model.init_args.inpainting_checkpoint", str(self.folder / "inpaint")]
            earlier += ["--model.init_args.segmenter_checkpoint", str(self.folder / "segment")]
        precision = ["--trainer.precision", "bf16-mixed"] if has_fast_bfloat16() else []
        return ["fit", "--config", f"configs/lfw/{self.name}.yaml", "--run", run, *root, *folds, *earlier, *precision]


def has_fast_bfloat16() -> bool:
    """Check for a CUDA GPU or a CPU with instructions for bfloat16."""
    return torch.cuda.is_available() or has_bfloat16_instructions()


def is_trained(run: Path) -> bool:
    """Check whether the newest checkpoint of a run is that of its last epoch, by `max_epochs` of its configuration."""
    if not (run / runs.CONFIG).is_file() or not any((run / runs.CHECKPOINTS).glob("*.ckpt")):
        return False
    epochs = yaml.safe_load((run / runs.CONFIG).read_text())["trainer"]["max_epochs"]
    progress = read_checkpoint(runs.find_checkpoint(run, resume=True))["loops"]["fit_loop"]["epoch_progress"]
    return bool(progress["current"]["processed"] >= epochs)


def stages_of(halves: Sequence[str], folder: Path, jobs: int, names: Sequence[str] = tuple(AFTER)) -> list[Stage]:
    """The named stages in the order of their start: one half after the other, or with several jobs side by side."""
    stages = [Stage(half, name, folder / half) for half in halves for name in AFTER if name in names]
    return stages if jobs == 1 else sorted(stages, key=lambda stage: list(AFTER).index(stage.name))


def run_stages(stages: Sequence[Stage], data: str, jobs: int, environment: Mapping[str, str]) -> None:
    """Run the unfinished stages, as many at a time as `jobs`.

    Raises:
        StageFailedError: a stage failed, and those beside it were stopped; or a stage needs one that has not run.
    """
    waiting, running = list(stages), dict[Stage, subprocess.Popen[bytes]]()
    earlier = {stage._replace(name=name) for stage in stages for name in AFTER[stage.name]} - set(stages)
    finished = {stage for stage in earlier if stage.is_finished()}
    if missing := sorted(stage.name for stage in earlier - finished):
        raise StageFailedError(f"the stages need {', '.join(missing)}, which has not run: add it to --stages")
    try:
        while waiting or running:
            for stage in [stage for stage in waiting if stage.is_ready(finished)][: jobs - len(running)]:
                waiting.remove(stage)
                if stage.is_finished():
                    print(f"{stage.half}: {stage.name} is finished", flush=True)
                    finished.add(stage)
                else:
                    running[stage] = _start(stage, data, environment)
            for stage in [stage for stage, process in running.items() if process.poll() is not None]:
                _check(stage, running.pop(stage).returncode)
                finished.add(stage)
            time.sleep(_POLL if running else 0)
    finally:
        for process in running.values():
            process.terminate()  # a training saves its last step first
        for process in running.values():
            process.wait()


def _start(stage: Stage, data: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    print(f"{stage.half}: {stage.name} started at {time.strftime('%H:%M')}, log {stage.log}", flush=True)
    stage.folder.mkdir(parents=True, exist_ok=True)
    with stage.log.open("ab") as log:
        return subprocess.Popen(
            [*DEOCC, *stage.argv(data)], stdout=log, stderr=subprocess.STDOUT, env=dict(environment)
        )


def _check(stage: Stage, status: int) -> None:
    name = f"{stage.name} of half {stage.half}"
    if status != 0:
        raise StageFailedError(f"{name} failed with exit status {status}: see {stage.log}")
    if not stage.is_finished():
        raise StageFailedError(f"{name} ended without its result in {stage.run}: see {stage.log}")
    print(f"{stage.half}: {stage.name} ended at {time.strftime('%H:%M')}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lfw", description="Train and test the LFW models; resumes.")
    parser.add_argument(
        "--data", default="data/lfw", help="the folder of LFW, as of deocc.data.LfwFaces (default: data/lfw)"
    )
    parser.add_argument("--halves", nargs="+", choices=list(TEST_FOLDS), default=list(TEST_FOLDS), help="default: both")
    parser.add_argument("--stages", nargs="+", choices=list(AFTER), default=list(AFTER), help="default: all")
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"where to write (default: {RUNS})")
    parser.add_argument(
        "--jobs", type=int, choices=(1, 2), default=1, help="stages side by side, which share the cores (default: 1)"
    )
    chosen = parser.parse_args(argv)
    if not Path(chosen.data).is_dir():
        parser.error(f"no folder {chosen.data}: give the folder of LFW as --data")
    threads = max(1, len(os.sched_getaffinity(0)) // chosen.jobs)
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads)}
    earlier = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # stops the stages as Ctrl-C does
    try:
        stages = stages_of(chosen.halves, chosen.runs, chosen.jobs, chosen.stages)
        run_stages(stages, chosen.data, chosen.jobs, environment)
    except StageFailedError as error:
        print(f"bench.lfw: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, earlier)
    return 0


if __name__ == "__main__":
    sys.exit(main())
