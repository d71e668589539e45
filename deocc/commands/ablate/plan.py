"""The plan of an ablation, read from YAML and the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import PositiveInt

from deocc import runs
from deocc.evaluation.results import ROWS
from deocc.messages import one_line

STAGE1 = "inpaint"
"""Name of the stage-1 runs; stage-2 runs are named after their variant."""


@dataclass(frozen=True)
class Stage:
    """Configuration of a stage, or of all tests.

    Attributes:
        configs: files or names as `--config` of `deocc fit` takes them; later ones win. Tests add them to the
            configuration of the tested run.
        overlay: changes to the files.
    """

    configs: list[str] = field(default_factory=list)
    overlay: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        title: text in the table.
        row: row of a test's results that it shows.
        variant: the tested variant; None for a row that does not depend on the student, which shows the first variant.
    """

    title: str
    row: str
    variant: str | None = None


@dataclass(frozen=True)
class Plan:
    """An ablation.

    Attributes:
        run: output folder.
        jobs: number of simultaneous trainings or tests.
        seeds: each repeats everything.
        folds: number of folds over people, each tested once; None for the split of the face set.
        people: "test", or "validation" to compare the last validation figures and leave the test people unused.
        stage1: configuration of stage 1.
        stage2: configuration of stage 2.
        test: changes to a run's configuration for its test.
        variants: overlay of stage 2 by variant.
        own_stage1: overlay of stage 1 by variant, for variants that do not share the common stage 1.
        rows: rows of the table by letter.
        compare: pairs of letters; the second row is subtracted from the first.
        wandb: log the runs to Weights & Biases, in a group named after the output folder.
    """

    run: Path
    jobs: int
    seeds: list[int]
    folds: int | None
    people: Literal["test", "validation"]
    stage1: Stage
    stage2: Stage
    test: Stage
    variants: dict[str, dict[str, Any]]
    own_stage1: dict[str, dict[str, Any]]
    rows: dict[str, Row]
    compare: list[tuple[str, str]]
    wandb: bool

    def variant_of(self, letter: str) -> str:
        """Return the variant whose tests a row shows."""
        return self.rows[letter].variant or next(iter(self.variants))

    def fold_seeds(self) -> list[tuple[int | None, int]]:
        """Return every fold (None = the split of the face set) with every seed, seed by seed."""
        folds: list[int | None] = [None] if self.folds is None else list(range(self.folds))
        return [(fold, seed) for seed in self.seeds for fold in folds]

    def run_folder(self, name: str, fold: int | None, seed: int) -> Path:
        """Return the run folder of a variant or of stage 1."""
        return self.run / (f"{name}-seed{seed}" if fold is None else f"{name}-fold{fold}-seed{seed}")


def read_plan(argv: Sequence[str]) -> Plan:
    """Read a plan from `--config FILE` and from options, which override the file.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: unknown or missing key, wrong value, or unknown name.
        SystemExit: after `--help`.
    """
    argv = list(argv)
    for place, argument in enumerate(argv[:-1]):
        if argument == "--config":
            argv[place + 1] = str(runs.find_config(argv[place + 1]))
    try:
        values = _parser().parse_args(argv).as_dict()
    except ArgumentError as error:
        raise ValueError(f"deocc ablate: {one_line(error)}; `deocc ablate --help` lists the keys") from error
    missing = [key for key in ("stage1", "stage2", "variants", "rows") if not values[key]]
    if missing:
        raise ValueError(f"the plan has no {', '.join(missing)}: give one with --config, such as ablation/paper")
    values.pop("config", None)
    for name in ("stage1", "stage2", "test"):
        stage = Stage(**values[name])
        values[name] = Stage([str(_find_stage_config(config, name)) for config in stage.configs], stage.overlay)
    values["run"] = Path(values["run"])
    values["rows"] = {letter: Row(**dict(row)) for letter, row in values["rows"].items()}
    plan = Plan(**values)
    _check(plan)
    return plan


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="deocc ablate", description="Train, test and compare the variants of a plan.", exit_on_error=False
    )
    overlays = dict[str, dict[str, Any]]
    add = parser.add_argument
    add("--config", action="config", help="The plan, a YAML file with the keys below, or its name.")
    add("--run", type=str, default="runs/ablation", help="Output folder.")
    add("--jobs", type=PositiveInt, default=1, help="Number of simultaneous trainings or tests.")
    add("--seeds", type=int, nargs="+", default=[0], help="Every variant is trained once per seed and fold.")
    add("--folds", type=int | None, default=None, help="Folds over people; null: the split of the face set.")
    add("--people", type=Literal["test", "validation"], default="test", help="Whose figures are compared.")
    add("--stage1", type=Stage, help="Configuration of stage 1: `configs`, and an `overlay` that changes them.")
    add("--stage2", type=Stage, help="Configuration of stage 2.")
    add("--test", type=Stage, default=Stage(), help="Changes for the tests, such as another face set.")
    add("--variants", type=overlays, default={}, help="Overlays of stage 2 by name.")
    add("--own_stage1", type=overlays, default={}, help="Overlays of stage 1 for variants with a stage 1 of their own.")
    add("--rows", type=dict[str, Row], default={}, help="`title`, `row` of the results and `variant`, by letter.")
    add("--compare", type=list[tuple[str, str]], default=[], help="Pairs of letters.")
    add("--wandb", action="store_true", help="Log every run to Weights & Biases.")
    return parser


def _find_stage_config(name: str, stage: str) -> Path:
    """Find a configuration file and check that it is a mapping."""
    try:
        file = runs.find_config(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{stage}.configs: {error}") from None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{stage}.configs: {file} is not valid YAML ({one_line(error)}): correct the file") from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ValueError(f"{stage}.configs: {file} holds {found}, not keys with values: give a file for `deocc fit`")
    return file


def _check(plan: Plan) -> None:
    """Raise ValueError if names are unknown or values contradict each other."""
    for name in plan.variants:
        if not name or "/" in name:
            raise ValueError(f"variants: {name!r} is not a folder name: give a name without '/' that is not empty")
        if name == STAGE1:
            raise ValueError(f"variants: {name!r} is the name of stage 1's runs: choose another")
    _check_known("rows: unknown row", [row.row for row in plan.rows.values()], list(ROWS))
    row_variants = [row.variant for row in plan.rows.values() if row.variant is not None]
    _check_known("rows: unknown variant", row_variants, list(plan.variants))
    _check_known("own_stage1: unknown variant", list(plan.own_stage1), list(plan.variants))
    _check_known("compare: unknown letter", [letter for pair in plan.compare for letter in pair], list(plan.rows))
    if plan.folds is not None and plan.folds < 2:
        raise ValueError(f"folds is {plan.folds}: give 2 or more, or null for the split of the face set")
    if plan.folds is not None and _has_face_set(plan.test):
        raise ValueError(
            f"folds is {plan.folds}, but test has another face set, which is not split into them: give folds: null"
        )
    if plan.people == "validation" and plan.compare:
        raise ValueError("compare needs the pairs of a test, which people: validation does not have: leave it out")
    if len(set(plan.seeds)) < len(plan.seeds) or min(plan.seeds) < 0:
        raise ValueError(f"seeds are {plan.seeds}: give different whole numbers of at least 0")


def _check_known(problem: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{problem} {name!r}: choose among {', '.join(known)}")


def _has_face_set(stage: Stage) -> bool:
    """Return whether a stage's configuration names the class of a face set."""
    contents = [stage.overlay, *(yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in stage.configs)]
    face_sets = [(content.get("data") or {}).get("face_set") for content in contents]
    return any(isinstance(face_set, str) or "class_path" in (face_set or {}) for face_set in face_sets)
