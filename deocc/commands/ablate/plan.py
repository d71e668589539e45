"""The trainings and tests of a plan as commands of `deocc`, with what each needs before it and a hash of what it depends on.

A run's folder is `NAME-foldF-seedS` below the ablation's, NAME being a variant or `inpaint`.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import PositiveInt

from deocc.evaluation.results import ROWS

STAGE1 = "inpaint"
"""What stage 1's runs are called, where those of stage 2 are called by their variant."""

_STAGES = ("stage1", "stage2", "test")


@dataclass(frozen=True)
class Stage:
    """How a stage is trained in every run of it, or how every run is tested."""

    configs: list[str]
    """YAML files of `deocc fit`, or of `deocc test` over the run's own configuration; later ones win."""
    overlay: dict[str, Any] = field(default_factory=dict)
    """What is changed against them, as such a file would say it."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    title: str
    row: str
    """Which row of a test's results it shows."""
    variant: str | None = None
    """Whose test: the name of a variant. None for a row that does not depend on the student: the first variant's."""


@dataclass(frozen=True)
class Plan:
    """Everything that a run of the ablation follows."""

    run: Path
    """The folder that everything is written to."""
    jobs: int
    """How many trainings or tests run at a time."""
    seeds: list[int]
    folds: int | None
    """Folds over people of the face set, each tested once; None for the face set's own split."""
    stage1: Stage
    stage2: Stage
    test: Stage
    """Nothing in it: a run is tested by its own configuration."""
    variants: dict[str, dict[str, Any]]
    """By name, what a stage 2 changes against `stage2`."""
    rows: dict[str, Row]
    """By letter, in the order of the table."""
    compare: list[tuple[str, str]]
    """Pairs of letters: the second is subtracted from the first."""
    wandb: bool
    """Whether every run, and the table, is logged to Weights & Biases, in a group named after the run folder."""

    def variant_of(self, letter: str) -> str:
        """The variant whose tests a row is read from."""
        return self.rows[letter].variant or next(iter(self.variants))


def read_plan(words: Sequence[str]) -> Plan:
    """The plan that the words of the command line ask for: `--config FILE`, and keys that win over the file's.

    Raises:
        FileNotFoundError: a file that is named is not there.
        ValueError: an unknown or missing key, a wrong value, or a name that the plan does not explain.
        SystemExit: after `--help`.
    """
    parser = _parser()
    _require_files([word for before, word in pairwise(words) if before == "--config"], "--config")
    try:
        values = parser.parse_args(list(words)).as_dict()
    except ArgumentError as error:
        raise ValueError(
            f"deocc ablate: {' '.join(str(error).split())}; `deocc ablate --help` lists the keys"
        ) from error
    missing = [key for key in ("stage1", "stage2", "variants", "rows") if not values[key]]
    if missing:
        raise ValueError(
            f"the plan has no {', '.join(missing)}: give one with --config, such as configs/ablation/paper.yaml"
        )
    plan = _plan(values)
    _check(plan)
    return plan


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="deocc ablate", description="Train, test and compare the variants of a plan.", exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="The plan, a YAML file with the keys below.")
    parser.add_argument("--run", type=str, default="runs/ablation", help="The folder that everything is written to.")
    parser.add_argument("--jobs", type=PositiveInt, default=1, help="How many trainings or tests run at a time.")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="Every variant is trained once a seed and fold."
    )
    parser.add_argument(
        "--folds", type=int | None, default=None, help="Folds over people; null: the face set's own split."
    )
    parser.add_argument("--stage1", type=Stage, help="How stage 1 is trained: `configs`, and an `overlay` over them.")
    parser.add_argument("--stage2", type=Stage, help="The same of stage 2.")
    parser.add_argument(
        "--test",
        type=Stage,
        default=Stage([]),
        help="The same of the tests, such as another face set. Default: as trained.",
    )
    parser.add_argument("--variants", type=dict[str, dict[str, Any]], default={}, help="Overlays of stage 2 by name.")
    parser.add_argument(
        "--rows", type=dict[str, Row], default={}, help="`title`, `row` of the results and `variant`, by letter."
    )
    parser.add_argument("--compare", type=list[tuple[str, str]], default=[], help="Pairs of letters.")
    parser.add_argument("--wandb", action="store_true", help="Log every run and the table to Weights & Biases.")
    return parser


def _plan(values: dict[str, Any]) -> Plan:
    given: dict[str, Any] = {key: value for key, value in values.items() if key != "config"}
    given |= {name: Stage(**given[name]) for name in _STAGES}
    rows = {letter: Row(**dict(row)) for letter, row in given["rows"].items()}
    return Plan(**{**given, "run": Path(given["run"]), "rows": rows})


def _check(plan: Plan) -> None:
    for name in _STAGES:
        _require_files(getattr(plan, name).configs, f"{name}.configs")
        _require_mappings(getattr(plan, name).configs, f"{name}.configs")
    _require_names(list(plan.variants))
    _require_known([row.row for row in plan.rows.values()], list(ROWS), "rows: unknown row")
    _require_known(
        [row.variant for row in plan.rows.values() if row.variant], list(plan.variants), "rows: unknown variant"
    )
    _require_known([letter for pair in plan.compare for letter in pair], list(plan.rows), "compare: unknown letter")
    if plan.folds is not None and plan.folds < 2:
        raise ValueError(f"folds is {plan.folds}: give 2 or more, or null for the face set's own split")
    if plan.folds is not None and _names_face_set(plan.test):
        raise ValueError(
            f"folds is {plan.folds}, but test names a face set of its own, which has no part in them: give folds: null"
        )
    if len(set(plan.seeds)) < len(plan.seeds) or min(plan.seeds) < 0:
        raise ValueError(f"seeds are {plan.seeds}: give different whole numbers of at least 0")


def _require_files(files: Sequence[str], key: str) -> None:
    absent = [file for file in files if not Path(file).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{key}: no file {absent[0]} (looked in {Path.cwd()}): run from the repository's root or give its path"
        )


def _require_mappings(files: Sequence[str], key: str) -> None:
    for file in files:
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{key}: cannot read {file} as YAML ({' '.join(str(error).split())}): mend the file"
            ) from error
        if not isinstance(content, dict):
            raise ValueError(
                f"{key}: {file} holds {type(content).__name__}, not keys with values: give a file as `deocc fit` reads it"
            )


def _require_names(variants: Sequence[str]) -> None:
    """A variant's name begins the names of its run folders."""
    for name in variants:
        if not name or "/" in name:
            raise ValueError(f"variants: {name!r} cannot name a folder: give a name without '/' that is not empty")
        if name == STAGE1:
            raise ValueError(f"variants: {name!r} is the name of stage 1's runs: choose another")


def _names_face_set(stage: Stage) -> bool:
    contents = [stage.overlay, *(yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in stage.configs)]
    face_sets = [(content.get("data") or {}).get("face_set") for content in contents]
    return any(isinstance(face_set, str) or "class_path" in (face_set or {}) for face_set in face_sets)


def _require_known(given: Sequence[str], known: Sequence[str], problem: str) -> None:
    strange = [name for name in given if name not in known]
    if strange:
        raise ValueError(f"{problem} {strange[0]!r}: choose among {', '.join(known)}")


WANDB = {
    "trainer": {"logger": {"class_path": "deocc.callbacks.loggers.WandbRunLogger", "init_args": {"project": "deocc"}}}
}
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
    stages = {"stage1": plan.stage1.overlay, "stage2": plan.stage2.overlay} | (
        {"test": plan.test.overlay} if plan.test.overlay else {}
    )
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
    return Job(
        (*_program(), "test", *words, "--trainer.enable_progress_bar=false"), fit.folder, "test", fingerprint, (fit,)
    )


def _fit(
    plan: Plan, stage: Stage, name: str, overlays: list[str], fold: int | None, seed: int, after: tuple[Job, ...]
) -> Job:
    folder = run_folder(plan, name, fold, seed)
    files = [
        *stage.configs,
        *(str(_overlay_file(plan, overlay)) for overlay in [*overlays, *(["wandb"] if plan.wandb else [])]),
    ]
    settings = _settings(fold, seed)
    before = [f"--model.init_args.inpainting_checkpoint={job.folder}" for job in after]
    words = [
        *(f"--config={file}" for file in files),
        f"--run={folder}",
        *settings,
        *before,
        "--trainer.enable_progress_bar=false",
    ]
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
