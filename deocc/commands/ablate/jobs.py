"""The trainings and tests of a plan as `deocc` commands, with their order and a hash of what each depends on.

A run folder is `NAME-foldF-seedS` below the ablation's folder, where NAME is a variant or `inpaint`.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deocc import runs
from deocc.commands.ablate.plan import STAGE1, Plan, Stage
from deocc.files import checksum, write_file


@dataclass(frozen=True)
class Job:
    """One `deocc fit` or `deocc test`.

    Attributes:
        command: program and arguments, without those for resuming.
        folder: run folder.
        action: "fit" or "test"; jobs with the same folder differ in it.
        fingerprint: hash of the arguments, the contents of the configuration files and the fingerprints of `after`.
        after: jobs that must have succeeded before.
    """

    command: tuple[str, ...]
    folder: Path
    action: str
    fingerprint: str
    after: tuple["Job", ...] = ()

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"{self.folder.name} {self.action}"


def list_jobs(plan: Plan) -> list[Job]:
    """Return all jobs in an order in which each follows those it needs; stage 1 of all folds and seeds comes first."""
    jobs = []
    for fold, seed in plan.fold_seeds():
        shared = None
        for variant in plan.variants:
            if variant in plan.own_stage1:
                overlays = ["stage1", f"stage1-{variant}"]
                stage1 = _fit(plan, plan.stage1, f"{STAGE1}-{variant}", overlays, fold, seed)
                jobs.append(stage1)
            else:
                if shared is None:
                    shared = _fit(plan, plan.stage1, STAGE1, ["stage1"], fold, seed)
                    jobs.append(shared)
                stage1 = shared
            stage2 = _fit(plan, plan.stage2, variant, ["stage2", f"variant-{variant}"], fold, seed, stage1)
            jobs.append(stage2)
            if plan.people == "test":
                jobs.append(_test(plan, stage2))
    return sorted(jobs, key=lambda job: bool(job.after))


def write_overlays(plan: Plan) -> None:
    """Write the plan's overlays as the YAML files that the commands name."""
    for name, content in _overlays(plan).items():
        write_file(_overlay_file(plan, name), yaml.safe_dump(content, sort_keys=False))


def _overlays(plan: Plan) -> dict[str, Mapping[str, Any]]:
    overlays: dict[str, Mapping[str, Any]] = {"stage1": plan.stage1.overlay, "stage2": plan.stage2.overlay}
    if plan.test.overlay:
        overlays["test"] = plan.test.overlay
    for name, overlay in plan.variants.items():
        overlays[f"variant-{name}"] = overlay
    for name, overlay in plan.own_stage1.items():
        overlays[f"stage1-{name}"] = overlay
    return overlays


def _overlay_file(plan: Plan, name: str) -> Path:
    return plan.run / "overlays" / f"{name}.yaml"


def _fit(
    plan: Plan, stage: Stage, name: str, overlays: list[str], fold: int | None, seed: int, stage1: Job | None = None
) -> Job:
    folder = plan.run_folder(name, fold, seed)
    files = [*stage.configs, *(str(_overlay_file(plan, overlay)) for overlay in overlays)]
    if plan.wandb:
        files.append(str(runs.find_config("logger/wandb")))
    own_seed = seed + (fold or 0)  # otherwise all folds would share a lucky or unlucky initialisation
    settings = [f"--seed_everything={own_seed}", f"--data.seed={own_seed}"]
    if fold is not None:
        settings.insert(0, f"--data.face_set.init_args.fold={fold}")
    argv = [*(f"--config={file}" for file in files), f"--run={folder}", *settings]
    if stage1 is not None:
        argv.append(f"--model.init_args.inpainting_checkpoint={stage1.folder}")
    before = [] if stage1 is None else [stage1.fingerprint]
    changes = [_overlays(plan)[overlay] for overlay in overlays]  # without W&B, which changes no result
    fingerprint = _hash(["fit", _contents(stage), changes, settings, before])
    command = (_program(), "fit", *argv, "--trainer.enable_progress_bar=false")
    return Job(command, folder, "fit", fingerprint, () if stage1 is None else (stage1,))


def _test(plan: Plan, fit: Job) -> Job:
    stage = plan.test
    files = [*stage.configs, *([str(_overlay_file(plan, "test"))] if stage.overlay else [])]
    argv = ["--checkpoint", str(fit.folder), *(f"--config={file}" for file in files)]
    argv.append(f"--run={fit.folder}")  # a test on another face set would write to another folder
    changes = [_contents(stage), stage.overlay] if files else []
    command = (_program(), "test", *argv, "--trainer.enable_progress_bar=false")
    return Job(command, fit.folder, "test", _hash(["test", fit.fingerprint, *changes]), (fit,))


def _contents(stage: Stage) -> list[Any]:
    return [yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in stage.configs]


def _program() -> str:
    return str(Path(sys.executable).with_name("deocc"))


def _hash(content: list[Any]) -> str:
    return checksum(json.dumps(content, default=str))[:16]
