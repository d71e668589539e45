"""The trainings and tests of a plan as commands of `deocc`, with what each needs before it and a hash of what it depends on.

A run's folder is `NAME-foldF-seedS` below the ablation's, NAME being a variant or `inpaint`.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deocc.apps.ablation.plan import STAGE1, Plan, Stage

WANDB = {"trainer": {"logger": {"class_path": "deocc.callbacks.loggers.WandbRunLogger", "init_args": {"project": "deocc"}}}}
"""An overlay. The logger names the W&B run after the run's folder, and its group after the folder above."""

_OVERLAYS = "overlays"


@dataclass(frozen=True)
class Job:
    """One `deocc fit` or `deocc test`."""

    command: tuple[str, ...]
    """The program and its words, without what resuming adds."""
    folder: Path
    """The run folder. Several jobs of one folder have different `action`."""
    action: str
    """"fit" or "test"."""
    fingerprint: str
    """Changes with whatever the outcome depends on: words, contents of the configuration files, the jobs before it."""
    after: tuple["Job", ...] = ()
    """What must have ended well before."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.folder.name} {self.action}"


def fold_seeds(plan: Plan) -> list[tuple[int | None, int]]:
    """Every fold (None: the face set's own split) with every seed."""
    folds: list[int | None] = [None] if plan.folds is None else list(range(plan.folds))
    return [(fold, seed) for seed in plan.seeds for fold in folds]


def run_folder(plan: Plan, name: str, fold: int | None, seed: int) -> Path:
    """Where a variant's or stage 1's run of a fold and seed lies."""
    return plan.run / (f"{name}-seed{seed}" if fold is None else f"{name}-fold{fold}-seed{seed}")


def list_jobs(plan: Plan) -> list[Job]:
    """Every job, the stage 1 of every fold and seed first, so that no core waits for one later; all variants share it."""
    jobs = [job for fold, seed in fold_seeds(plan) for job in _jobs(plan, fold, seed)]
    return sorted(jobs, key=lambda job: bool(job.after))


def write_overlays(plan: Plan) -> None:
    """Write the plan's overlays as the YAML files that the commands name."""
    (plan.run / _OVERLAYS).mkdir(parents=True, exist_ok=True)
    for name, content in _overlays(plan).items():
        _overlay_file(plan, name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _overlays(plan: Plan) -> dict[str, Mapping[str, Any]]:
    stages = {"stage1": plan.stage1.overlay, "stage2": plan.stage2.overlay} | ({"test": plan.test.overlay} if plan.test.overlay else {})
    variants = {f"variant-{name}": overlay for name, overlay in plan.variants.items()}
    return {**stages, **variants, **({"wandb": WANDB} if plan.wandb else {})}


def _overlay_file(plan: Plan, name: str) -> Path:
    return plan.run / _OVERLAYS / f"{name}.yaml"


def _jobs(plan: Plan, fold: int | None, seed: int) -> Iterator[Job]:
    first = _fit(plan, plan.stage1, STAGE1, ["stage1"], fold, seed, ())
    yield first
    for name in plan.variants:
        second = _fit(plan, plan.stage2, name, ["stage2", f"variant-{name}"], fold, seed, (first,))
        yield second
        yield _test(plan, second)


def _test(plan: Plan, fit: Job) -> Job:
    """The test of a training; `--run` keeps its files in the training's folder, whatever face set it is on."""
    stage = plan.test
    files = [*stage.configs, *([str(_overlay_file(plan, "test"))] if stage.overlay else [])]
    words = ["--checkpoint", str(fit.folder), *(f"--config={file}" for file in files), f"--run={fit.folder}"]
    changes = [_contents(stage), stage.overlay] if files else []
    fingerprint = _hash(["test", fit.fingerprint, *changes])
    return Job((*_program(), "test", *words, "--trainer.enable_progress_bar=false"), fit.folder, "test", fingerprint, (fit,))


def _fit(plan: Plan, stage: Stage, name: str, overlays: list[str], fold: int | None, seed: int, after: tuple[Job, ...]) -> Job:
    folder = run_folder(plan, name, fold, seed)
    files = [*stage.configs, *(str(_overlay_file(plan, overlay)) for overlay in [*overlays, *(["wandb"] if plan.wandb else [])])]
    settings = _settings(fold, seed)
    before = [f"--model.init_args.inpainting_checkpoint={job.folder}" for job in after]
    words = [*(f"--config={file}" for file in files), f"--run={folder}", *settings, *before, "--trainer.enable_progress_bar=false"]
    changes = [_overlays(plan)[overlay] for overlay in overlays]  # logging to W&B changes no outcome
    fingerprint = _hash(["fit", _contents(stage), changes, settings, [job.fingerprint for job in after]])
    return Job((*_program(), "fit", *words), folder, "fit", fingerprint, after)


def _contents(stage: Stage) -> list[Any]:
    return [yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in stage.configs]


def _settings(fold: int | None, seed: int) -> list[str]:
    """Each fold has a seed of its own, lest all folds share one lucky or unlucky start."""
    own = seed + (fold or 0)
    face_set = [] if fold is None else [f"--data.face_set.init_args.fold={fold}"]
    return [*face_set, f"--seed_everything={own}", f"--data.seed={own}"]


def _program() -> tuple[str]:
    return (str(Path(sys.executable).with_name("deocc")),)


def _hash(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]
