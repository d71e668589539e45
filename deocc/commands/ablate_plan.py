"""The plan of an ablation, read from YAML and the command line, and its trainings and tests as `deocc` commands.

A run folder is `NAME-FOLD-seedS` below the ablation's folder, where NAME is a variant or `inpaint`.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import PositiveInt

from deocc import runs
from deocc.evaluation.results import ROWS
from deocc.files import checksum, expand_user, write_file
from deocc.inference.model_folder import WEIGHTS, pretrained_folder
from deocc.messages import one_line

STAGE1 = "inpaint"  # name of the stage-1 runs; stage-2 runs are named after their variant
_STAGES = ("stage1", "stage2", "test")  # keys of a plan whose value is a `Stage`
# Settings that may be "newest", and the module of that run.
_EARLIER_MODULES = {"segmenter_checkpoint": "SegmentationModule", "inpainting_checkpoint": "InpaintingModule"}


@dataclass(frozen=True)
class Stage:
    """Configuration of a stage, or what all tests add to that of the tested run."""

    configs: list[str] = field(default_factory=list)  # as `--config` of `deocc fit` takes them; later ones win
    overlay: dict[str, Any] = field(default_factory=dict)  # changes to the files

    def contents(self) -> list[Any]:
        """Return the contents of the files."""
        return [yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in self.configs]


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    title: str
    row: str  # of a test's results
    variant: str | None = None  # the tested one; None shows the first, for a row that does not depend on the student


@dataclass(frozen=True)
class Comparison:
    """The claim that the row with the first letter is better than that with the second."""

    first: str
    second: str
    claim: str = ""


@dataclass(frozen=True)
class Plan:
    """An ablation: the keys of its YAML file and the options of `deocc ablate`."""

    run: Path = Path("runs/ablation")
    jobs: int = 1  # simultaneous trainings or tests
    seeds: list[int] = field(default_factory=lambda: [0])  # each repeats everything
    folds: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name, changes to the configuration of both stages that test other people, such as a fold or a half of the face
    set; empty for its own split."""
    people: Literal["test", "validation"] = "test"  # the latter: last validation figures, without a test
    stage1: Stage = Stage()  # without files, `stage2` or `folds` name an inpainting_checkpoint
    stage2: Stage = Stage()
    test: Stage = Stage()  # changes to a run's configuration for its test
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)  # overlay of stage 2 by variant
    own_stage1: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Overlay of stage 1 by variant, for variants that do not share the common stage 1."""
    rows: dict[str, Row] = field(default_factory=dict)  # by letter
    compare: list[Comparison] = field(default_factory=list)
    share_outputs: bool = False
    """Let runs of a fold share the outputs of their frozen networks (`deocc.callbacks.SharedOutputsCallback`), in a
    folder that is deleted when all are done."""
    wandb: bool = False  # log the runs to Weights & Biases, in a group named after the output folder

    def fold_seeds(self) -> list[tuple[str | None, int]]:
        """Return every fold (None = the split of the face set) with every seed, seed by seed."""
        return [(fold, seed) for seed in self.seeds for fold in self.folds or [None]]

    def run_folder(self, name: str, fold: str | None, seed: int) -> Path:
        """Return the run folder of a variant or of stage 1."""
        return self.run / "-".join(filter(None, [name, fold, f"seed{seed}"]))

    def shared_folder(self, fold: str | None) -> Path:
        """Return the folder of the shared outputs of a fold."""
        return self.run / "-".join(filter(None, [".shared-outputs", fold]))

    def overlays(self) -> dict[str, dict[str, Any]]:
        """Return the overlays by the name of their file."""
        found = {"stage1": self.stage1.overlay, "stage2": self.stage2.overlay}
        if self.test.overlay:
            found["test"] = self.test.overlay
        for kind, overlays in (("variant", self.variants), ("stage1", self.own_stage1), ("fold", self.folds)):
            found |= {f"{kind}-{name}": overlay for name, overlay in overlays.items()}
        return found

    def overlay_file(self, name: str) -> Path:
        """Return where an overlay is written."""
        return self.run / "overlays" / f"{name}.yaml"


def read_plan(argv: Sequence[str]) -> Plan:
    """Read a plan from `--config FILE` and from options, which override the file.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: unknown or missing key, wrong value, or unknown name.
    """
    parser = ArgumentParser(prog="deocc ablate", exit_on_error=False)  # `deocc.commands.arguments` has the help
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Plan, skip={"run", "jobs", "seeds", "wandb"})
    parser.add_argument("--run", type=str, default=str(Plan.run))
    parser.add_argument("--jobs", type=PositiveInt, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--wandb", action="store_true")
    split = [argument.split("=", 1) if argument.startswith("--config=") else [argument] for argument in argv]
    argv = [part for parts in split for part in parts]
    for place, argument in enumerate(argv[:-1]):
        if argument == "--config":
            file = runs.find_config(argv[place + 1])
            _check_stages(file)
            argv[place + 1] = str(file)
    try:
        values = parser.parse_args(argv).as_dict()
    except ArgumentError as error:
        raise ValueError(f"deocc ablate: {one_line(error)}; `deocc ablate --help` lists the keys") from error
    missing = [key for key in ("stage2", "variants", "rows") if not values[key] or values[key] == asdict(Stage())]
    if missing:
        raise ValueError(f"the plan has no {', '.join(missing)}: give one with --config, such as ablation/paper")
    values.pop("config", None)
    empty = [key for key, value in values.items() if value is None]
    if empty:
        raise ValueError(f"the plan has no value for {', '.join(empty)}: give one, or remove the key")
    values |= {name: _read_stage(name, values[name]) for name in _STAGES}
    values["run"] = Path(values["run"])
    values["rows"] = {letter: Row(**dict(row)) for letter, row in values["rows"].items()}
    values["compare"] = [Comparison(**dict(pair)) for pair in values["compare"]]
    plan = Plan(**values)
    _check(plan)
    return plan


def _check_stages(file: Path) -> None:
    """Raise ValueError if a stage of a plan is a file name: jsonargparse would read a stage from that file."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # the parser reports it
    for name in _STAGES:
        if isinstance(content, dict) and isinstance(content.get(name), str):
            raise ValueError(f"{name} is a file name: write {name}: {{configs: [{content[name]}]}}")


def _read_stage(name: str, value: Any) -> Stage:
    """Return a stage of a plan with the paths of its configuration files, each of which must be a mapping."""
    if not isinstance(value, dict) or value.keys() != {"configs", "overlay"} or None in value.values():
        raise ValueError(f"{name} is {value}: write {name}: {{configs: [FILE, ...], overlay: {{...}}}}")
    files = []
    for config in value["configs"]:
        try:
            file = runs.find_config(config)
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{name}.configs: {error}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{name}.configs: {file} is not valid YAML ({one_line(error)}): correct the file"
            ) from error
        if not isinstance(content, dict):
            found = type(content).__name__
            raise ValueError(f"{name}.configs: {file} holds {found}, not keys with values: give a file for `deocc fit`")
        files.append(str(file))
    return Stage(files, value["overlay"])


def _check(plan: Plan) -> None:
    """Raise ValueError if names are unknown or values contradict each other."""
    for key, names in (("variants", plan.variants), ("folds", plan.folds)):
        for name in names:
            if not name or "/" in name:
                raise ValueError(f"{key}: {name!r} is not a folder name: give a name without '/' that is not empty")
    if STAGE1 in plan.variants:
        raise ValueError(f"variants: {STAGE1!r} is the name of stage 1's runs: choose another")
    if plan.own_stage1 and not plan.stage1.configs:
        raise ValueError("own_stage1 changes the configuration of stage 1, but stage1 has none: give stage1.configs")
    row_variants = [row.variant for row in plan.rows.values() if row.variant is not None]
    letters = [letter for pair in plan.compare for letter in (pair.first, pair.second)]
    for problem, given, known in (
        ("rows: unknown row", [row.row for row in plan.rows.values()], ROWS),
        ("rows: unknown variant", row_variants, plan.variants),
        ("own_stage1: unknown variant", plan.own_stage1, plan.variants),
        ("compare: unknown letter", letters, plan.rows),
    ):
        for name in given:
            if name not in known:
                raise ValueError(f"{problem} {name!r}: choose among {', '.join(known)}")
    face_sets = [(content.get("data") or {}).get("face_set") for content in (plan.test.overlay, *plan.test.contents())]
    if plan.folds and any(isinstance(given, str) or "class_path" in (given or {}) for given in face_sets):
        raise ValueError("test has another face set than folds, which would not split it: leave folds out")
    if plan.people == "validation" and plan.compare:
        raise ValueError("compare needs the pairs of a test, which people: validation does not have: leave it out")
    if len(set(plan.seeds)) < len(plan.seeds) or min(plan.seeds) < 0:
        raise ValueError(f"seeds are {plan.seeds}: give different whole numbers of at least 0")


@dataclass(frozen=True)
class Job:
    """One `deocc fit` or `deocc test`."""

    command: tuple[str, ...]  # program and arguments, without those for resuming
    folder: Path  # the run folder
    action: str  # "fit" or "test"
    fingerprint: str  # hash of the arguments, the contents of the configuration files and the fingerprints of `after`
    after: tuple["Job", ...] = ()  # jobs that must have succeeded before

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"{self.folder.name} {self.action}"

    def file(self, suffix: str) -> Path:
        """Return the job's file in its folder with this suffix: log, started or done."""
        return self.folder / f"{self.action}.{suffix}"


def write_overlays(plan: Plan) -> None:
    """Write the plan's overlays as the YAML files that the commands name."""
    for name, content in plan.overlays().items():
        write_file(plan.overlay_file(name), yaml.safe_dump(content, sort_keys=False))


def list_jobs(plan: Plan) -> list[Job]:
    """Return all jobs in an order in which each follows those it needs; stage 1 of all folds and seeds comes first."""
    first, jobs = list[Job](), list[Job]()
    test_files = [*plan.test.configs, *([str(plan.overlay_file("test"))] if plan.test.overlay else [])]
    test_changes = [plan.test.contents(), plan.test.overlay] if test_files else []
    for fold, seed in plan.fold_seeds():
        stage1: dict[str, Job] = {}
        for variant in plan.variants:
            name, overlays = STAGE1, ["stage1"]
            if variant in plan.own_stage1:
                name, overlays = f"{STAGE1}-{variant}", ["stage1", f"stage1-{variant}"]
            if name not in stage1 and plan.stage1.configs:
                stage1[name] = _fit(plan, plan.stage1, name, overlays, fold, seed)
            overlays = ["stage2", f"variant-{variant}"]
            fit = _fit(plan, plan.stage2, variant, overlays, fold, seed, stage1.get(name))
            jobs.append(fit)
            if plan.people == "test":
                argv = ["--checkpoint", str(fit.folder), *(f"--config={file}" for file in test_files)]
                argv.append(f"--run={fit.folder}")  # a test on another face set would write to another folder
                jobs.append(_job("test", argv, fit.folder, [fit.fingerprint, *test_changes], (fit,)))
        first += stage1.values()
    return first + jobs


def _fit(
    plan: Plan, stage: Stage, name: str, overlays: list[str], fold: str | None, seed: int, stage1: Job | None = None
) -> Job:
    folder = plan.run_folder(name, fold, seed)
    if fold is not None:
        overlays = [*overlays, f"fold-{fold}"]
        seed += list(plan.folds).index(fold)  # otherwise all folds would share a lucky or unlucky initialisation
    files = [*stage.configs, *(str(plan.overlay_file(overlay)) for overlay in overlays)]
    if plan.wandb:
        files.append(str(runs.find_config("logger/wandb")))
    settings = [f"--seed_everything={seed}", f"--data.seed={seed}"]
    argv = [*(f"--config={file}" for file in files), f"--run={folder}", *settings]
    if plan.share_outputs and stage is plan.stage2:
        init_args = {"folder": str(plan.shared_folder(fold))}
        callback = {"class_path": "deocc.callbacks.SharedOutputsCallback", "init_args": init_args}
        argv.append(f"--trainer.callbacks+={json.dumps(callback)}")
    contents, changes = stage.contents(), [plan.overlays()[overlay] for overlay in overlays]
    earlier: dict[str, Any] = {}
    for part in [*contents, *changes]:
        earlier |= _checkpoint_settings(part)
    if stage1 is not None:
        argv.append(f"--model.init_args.inpainting_checkpoint={stage1.folder}")
        earlier.pop("model.init_args.inpainting_checkpoint", None)
    found = [_checkpoint_file(name.rpartition(".")[2], value) for name, value in earlier.items()]
    after = () if stage1 is None else (stage1,)
    before = [*(checksum(file) for file in found if file is not None), *(job.fingerprint for job in after)]
    # W&B and shared outputs change no result, so they are not part of the fingerprint.
    return _job("fit", argv, folder, [contents, changes, settings, before], after)


def _checkpoint_settings(configuration: Any, prefix: str = "") -> dict[str, Any]:
    """Return the settings of a configuration that name checkpoints and weights, by their keys joined by dots."""
    found: dict[str, Any] = {}
    if isinstance(configuration, list):
        configuration = dict(enumerate(configuration))
    for key, value in configuration.items() if isinstance(configuration, dict) else ():
        name = f"{prefix}{key}"
        if name.endswith(("_checkpoint", "_weights")):
            found[name] = value
        else:
            found |= _checkpoint_settings(value, f"{name}.")
    return found


def _checkpoint_file(key: str, value: Any) -> Path | None:
    """Return the file that a setting names: of a run folder its checkpoint, of a model folder its weights.

    None without a value and for a missing run, which each training reports; a missing .ckpt file is a ValueError.
    """
    if not isinstance(value, str):
        return None
    path = pretrained_folder() if value == "pretrained" else expand_user(value)
    try:
        if value == "newest" and key in _EARLIER_MODULES:
            path = runs.newest_run(_EARLIER_MODULES[key])
        if path.is_dir():
            return path / WEIGHTS if (path / WEIGHTS).is_file() else runs.find_checkpoint(path)
    except FileNotFoundError:
        return None
    if path.suffix == ".ckpt" and not path.is_file():
        raise ValueError(f"no file {value}, the {key} of the plan: train it, or give the path of another")
    return path if path.is_file() else None


def _job(action: str, argv: list[str], folder: Path, content: list[Any], after: tuple[Job, ...]) -> Job:
    command = (str(Path(sys.executable).with_name("deocc")), action, *argv, "--trainer.enable_progress_bar=false")
    fingerprint = checksum(json.dumps([action, *content], default=str))[:16]
    return Job(command, folder, action, fingerprint, after)
