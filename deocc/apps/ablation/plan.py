"""What an ablation trains and compares: one YAML file, read and checked before anything starts."""

from collections.abc import Sequence
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
        raise ValueError(f"deocc ablate: {' '.join(str(error).split())}; `deocc ablate --help` lists the keys") from error
    missing = [key for key in ("stage1", "stage2", "variants", "rows") if not values[key]]
    if missing:
        raise ValueError(f"the plan has no {', '.join(missing)}: give one with --config, such as configs/ablation/paper.yaml")
    plan = _plan(values)
    _check(plan)
    return plan


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="deocc ablate", description="Train, test and compare the variants of a plan.", exit_on_error=False)
    parser.add_argument("--config", action="config", help="The plan, a YAML file with the keys below.")
    parser.add_argument("--run", type=str, default="runs/ablation", help="The folder that everything is written to.")
    parser.add_argument("--jobs", type=PositiveInt, default=1, help="How many trainings or tests run at a time.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="Every variant is trained once a seed and fold.")
    parser.add_argument("--folds", type=int | None, default=None, help="Folds over people; null: the face set's own split.")
    parser.add_argument("--stage1", type=Stage, help="How stage 1 is trained: `configs`, and an `overlay` over them.")
    parser.add_argument("--stage2", type=Stage, help="The same of stage 2.")
    parser.add_argument(
        "--test", type=Stage, default=Stage([]), help="The same of the tests, such as another face set. Default: as trained."
    )
    parser.add_argument("--variants", type=dict[str, dict[str, Any]], default={}, help="Overlays of stage 2 by name.")
    parser.add_argument("--rows", type=dict[str, Row], default={}, help="`title`, `row` of the results and `variant`, by letter.")
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
    _require_known([row.variant for row in plan.rows.values() if row.variant], list(plan.variants), "rows: unknown variant")
    _require_known([letter for pair in plan.compare for letter in pair], list(plan.rows), "compare: unknown letter")
    if plan.folds is not None and plan.folds < 2:
        raise ValueError(f"folds is {plan.folds}: give 2 or more, or null for the face set's own split")
    if plan.folds is not None and _names_face_set(plan.test):
        raise ValueError(f"folds is {plan.folds}, but test names a face set of its own, which has no part in them: give folds: null")
    if len(set(plan.seeds)) < len(plan.seeds) or min(plan.seeds) < 0:
        raise ValueError(f"seeds are {plan.seeds}: give different whole numbers of at least 0")


def _require_files(files: Sequence[str], key: str) -> None:
    absent = [file for file in files if not Path(file).is_file()]
    if absent:
        raise FileNotFoundError(f"{key}: no file {absent[0]} (looked in {Path.cwd()}): run from the repository's root or give its path")


def _require_mappings(files: Sequence[str], key: str) -> None:
    for file in files:
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{key}: cannot read {file} as YAML ({' '.join(str(error).split())}): mend the file") from error
        if not isinstance(content, dict):
            raise ValueError(f"{key}: {file} holds {type(content).__name__}, not keys with values: give a file as `deocc fit` reads it")


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
