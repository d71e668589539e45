"""The commands `fit`, `validate`, `test` and `predict`: LightningCLI with run folders, resuming and one-line errors."""

import contextlib
import gc
import importlib
import logging
import re
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import deocc._torchvision  # isort: skip  # noqa: F401  # before Lightning
import jsonargparse
import pytorch_lightning as pl
import torch.distributed
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from deocc import processes, runs
from deocc.callbacks.checkpoints import CheckpointCallback, TrainingStopped
from deocc.callbacks.dashboards import UNFINISHED_CONFIG, DashboardConfigCallback
from deocc.callbacks.faults import FiniteCallback, QuarantineCallback
from deocc.callbacks.loggers import place_loggers
from deocc.callbacks.provenance import FingerprintCallback
from deocc.data import MaskedFaceDataModule
from deocc.files import expand_user, hold_lock
from deocc.inference.model_folder import CONFIG as MODEL_CONFIG
from deocc.inference.model_folder import pretrained_folder
from deocc.messages import one_line, say
from deocc.modules import DistillationModule, InpaintingModule
from deocc.modules.evaluation import FROM_CHECKPOINT
from deocc.networks.weights import read_checkpoint

_OTHER_DATA = "test-"  # beginning of the folder, within a run, of a test on other data or on a part of the data
_EARLIER_RUNS = {
    "segmenter_checkpoint": "SegmentationModule",
    "inpainting_checkpoint": "InpaintingModule",
    "initial_weights": None,
}
"""Settings of a module that name an earlier run, and the module of that run; None = the same module."""
_SAFEGUARDS = {
    "checkpoints": CheckpointCallback,
    "non_finite": FiniteCallback,
    "fingerprint": FingerprintCallback,
    "quarantine": QuarantineCallback,
}
"""Callbacks of every run, by the key of their settings."""
_OUTPUTS = ["PanelCallback", "ResultsCallback", "PredictionCallback"]
_RECOGNITION_OUTPUTS = ["CalibrationCallback", "ModelFolderCallback"]
"""Callbacks that write the results of every test, and those of a test of stage 2; their order does not matter."""
_UNSUPPORTED_PRECISIONS = ("16-true", "bf16-true", "64-true", "64")  # metrics and frozen networks expect float32
TRAINER_DEFAULTS = {
    "devices": 1,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # the data module distributes the images itself, seeded
}


class DeoccCLI(LightningCLI):
    """LightningCLI in which one YAML names a module, the data and the trainer, and `--run` where to write."""

    def __init__(self, command: str, locks: contextlib.ExitStack, **settings: Any) -> None:
        self._command, self._locks = command, locks  # the latter receive the lock of the run folder
        super().__init__(pl.LightningModule, MaskedFaceDataModule, **settings)

    # Static in Lightning, but called on the instance.
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the requested command only: building the parsers of all four takes a third of a second."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--run`, `--resume` and the settings of the callbacks that every run has."""
        parser.add_argument("--run", type=str, default=str(runs.ROOT / "unnamed"), help="The folder to write to.")
        parser.add_argument("--resume", type=str | None, default=None, help="fit: the run folder to continue.")
        for key, callback in _SAFEGUARDS.items():
            parser.add_lightning_class_args(callback, key)

    def before_instantiate_classes(self) -> None:
        """Choose the run folder, direct all outputs to it, and find the runs of earlier stages."""
        config, fitting = self.config[self.subcommand], self.subcommand == "fit"
        config.run = str(expand_user(config.run))
        runs.expand_paths(config.model)
        runs.expand_paths(config.data.get("face_set"))
        module_file, _, module_name = config.model.class_path.rpartition(".")
        module = getattr(importlib.import_module(module_file), module_name)
        _check_trainer(config.trainer, module)
        for run in runs.series(Path(config.run))[0] if fitting else ():
            if processes.was_requeued(run):  # by SLURM with the job's first command
                option, value = _resume_option(run)
                config.run, config[option.removeprefix("--")] = str(run), value
        checkpoint = Path(config.ckpt_path) if config.get("ckpt_path") else None
        if checkpoint is not None:
            read_checkpoint(checkpoint)  # raises a clear error if it is damaged
        folder = _fit_folder(config, checkpoint) if fitting else _evaluation_folder(config, checkpoint, self._command)
        if processes.is_first() and not config.trainer.fast_dev_run:
            try:  # one command may test a run that another trains
                lock = hold_lock(folder / f".{self._command}.lock", wait=False, required=False)
                self._locks.enter_context(lock)
            except TimeoutError:
                raise ValueError(
                    f"another `deocc {self._command}` writes to {folder}, or has just ended: wait for it, or give "
                    "another --run"
                ) from None
            if fitting:
                processes.note_job(folder)
        config.run, config.resume, config.trainer.default_root_dir = str(folder), None, str(folder)
        print(f"deocc {self.subcommand}: writing to {folder}", flush=True)
        _add_callbacks(config.trainer, module)
        for callback in config.trainer.callbacks:
            if "ModelCheckpoint" in callback.class_path:
                callback.init_args.dirpath = str(folder / runs.CHECKPOINTS)
        other_data = folder.name.startswith(_OTHER_DATA)
        home = folder if fitting or checkpoint is None or other_data else runs.run_folder_of(checkpoint)
        place_loggers(config.trainer, folder, "" if fitting else str(self.subcommand), home, config.model.class_path)
        for key, earlier in _EARLIER_RUNS.items():
            if checkpoint is None:
                _choose_earlier_run(config.model, key, earlier or module_name)
            elif config.model.init_args.get(key) is not None:
                config.model.init_args[key] = FROM_CHECKPOINT

    def after_instantiate_classes(self) -> None:
        """Restore the earlier stages' checkpoints in the configuration that a resumed run saves."""
        config = self.config[self.subcommand]
        for key in _EARLIER_RUNS:
            if config.model.init_args.get(key) == FROM_CHECKPOINT:
                file = runs.run_folder_of(Path(config.ckpt_path)) / runs.CONFIG
                recorded = yaml.safe_load(file.read_text())["model"]["init_args"].get(key) if file.is_file() else None
                config.model.init_args[key] = str(recorded or FROM_CHECKPOINT)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: LightningCLI would override the command line by the checkpoint's hyperparameters."""

    def after_fit(self) -> None:
        """Print the next command, which part of the data was used, if not all, and whether the gate is missing."""
        if not self.trainer.is_global_zero:
            return
        part = runs.part_of_data(self.trainer, "train")
        if "fast_dev_run" in part:
            print("deocc fit: it runs; nothing was saved, leave trainer.fast_dev_run out to train", flush=True)
            return
        segmenter = getattr(self.model, "segmenter", None)
        if segmenter is not None and segmenter.gate == 0:
            say(
                "nothing was validated, so the gate of the mask segmenter is not calibrated and bare faces may get "
                "masks: set trainer.limit_val_batches above 0 and trainer.check_val_every_n_epoch to trainer.max_epochs"
            )
        trained = f"trained on a part of the data ({runs.describe_part(part)})" if part else "done"
        run = self.config[self.subcommand].run
        print(f"deocc fit: {trained}; evaluate with `deocc test --checkpoint {run}`", flush=True)


def run(argv: list[str]) -> int:
    """Run one training command, such as `["fit", "--config", "inpaint"]`.

    Returns:
        The exit code: 0, or 128 plus the number of the signal that stopped a training.

    Raises:
        ValueError: an unknown key or a wrong value.
        FileNotFoundError: a configuration or checkpoint does not exist.
    """
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.fabric"):  # tips
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|jsonargparse|torch\.utils)")
    processes.end_with_parent()
    command, code = argv[0], 0
    if (here := str(Path.cwd())) not in sys.path:  # a configuration may name the user's own classes
        sys.path.append(here)
    try:
        with contextlib.ExitStack() as locks:
            DeoccCLI(
                command,
                locks,
                subclass_mode_model=True,
                auto_configure_optimizers=False,  # a key `optimizer` would hide that of the modules
                save_config_callback=DashboardConfigCallback if command == "fit" else None,
                save_config_kwargs={"overwrite": True, "config_filename": UNFINISHED_CONFIG},
                seed_everything_default=0,
                trainer_defaults=TRAINER_DEFAULTS,
                parser_kwargs={command: {"exit_on_error": False}, "exit_on_error": False},
                args=expand_arguments(argv),
            )
    except TrainingStopped as stop:
        code = _stop(stop)
    except (jsonargparse.ArgumentError, MisconfigurationException) as error:
        raise ValueError(_explain(str(error), command)) from error
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        message = _explain(str(error), command)
        if isinstance(error, RuntimeError):
            message = processes.explain_lost_peer(message)
        if message == one_line(error):
            raise
        raise RuntimeError(message) from error
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # cycles of DDP modules hold the group
        torch.distributed.destroy_process_group()  # at interpreter exit gloo's threads would abort the process
    return code


def expand_arguments(argv: list[str]) -> list[str]:
    """Replace `--checkpoint RUN`, `--resume RUN` and configuration names by what LightningCLI understands.

    An evaluation without `--checkpoint` takes the newest run.
    """
    command, *rest = argv
    if {"-h", "--help"} & set(rest):
        return argv
    if command == "fit":
        where, others = _take_option(rest, "--resume")
        if where is not None:
            config = Path(where) / runs.CONFIG
            if not config.is_file():
                raise FileNotFoundError(
                    f"no run to resume at {where}: it has no {runs.CONFIG}; give the folder that `deocc fit` wrote to"
                )
            # The run's own configuration comes first, so that arguments override it; folder and checkpoint come last.
            rest = ["--config", str(config), *others, "--run", str(config.parent), *_resume_option(config.parent)]
        else:
            checkpoint = _take_option(rest, "--ckpt_path")[0]
            if checkpoint is not None and _take_option(rest, "--run")[0] is None:
                folder = runs.run_folder_of(Path(checkpoint))  # continue there, not in the run that the YAML names
                rest += ["--run", str(folder)] if (folder / runs.CONFIG).is_file() else []
    elif not any(argument.startswith("--ckpt_path") for argument in rest):
        where, rest = _take_option(rest, "--checkpoint")
        if where is None:
            where = str(runs.newest_run("deocc.modules."))
            say(f"no --checkpoint given, taking the newest run, {where}")
        file = runs.find_checkpoint(where)
        config = runs.run_folder_of(file) / runs.CONFIG
        if not config.is_file():
            raise FileNotFoundError(
                f"{file} has no {runs.CONFIG} in its run folder {config.parent}: give a run that `deocc fit` wrote"
            )
        rest = ["--config", str(config), "--run", FROM_CHECKPOINT, "--ckpt_path", str(file), *rest]
    expanded = [command]
    for argument in rest:
        if expanded[-1] == "--config":
            argument = str(runs.find_config(argument))
        elif argument.startswith("--config="):
            argument = f"--config={runs.find_config(argument.partition('=')[2])}"
        expanded.append(argument)
    return expanded


def _resume_option(run: Path) -> tuple[str, str]:
    """Return the option that continues `run` from its newest checkpoint, or from the start if it has none yet."""
    try:
        return "--ckpt_path", str(runs.find_checkpoint(run, resume=True))
    except FileNotFoundError:
        say(f"{run} has no checkpoint yet: training starts from the beginning")
        return "--resume", str(run)


def _take_option(argv: list[str], option: str) -> tuple[str | None, list[str]]:
    """Return the value of `option VALUE` or `option=VALUE`, and the arguments without it."""
    for number, argument in enumerate(argv):
        if argument.startswith(f"{option}="):
            return argument.split("=", 1)[1], argv[:number] + argv[number + 1 :]
        if argument == option:
            if number + 1 == len(argv):
                raise ValueError(f"{option} needs a value: a run folder or a checkpoint file")
            return argv[number + 1], argv[:number] + argv[number + 2 :]
    return None, argv


def _fit_folder(config: Any, checkpoint: Path | None) -> Path:
    """Return the writable folder of a resumed run, or one without a run."""
    wanted = Path(config.run)
    same_run = checkpoint is not None and wanted.resolve() == runs.run_folder_of(checkpoint).resolve()
    folder = wanted if same_run or config.resume is not None else runs.series(wanted)[1]
    if folder != wanted and processes.is_first():
        print(f"deocc fit: {wanted} holds a run: this one is new; `deocc fit --resume {wanted}` continues that one")
    if not config.trainer.fast_dev_run:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(f"cannot write to {folder} ({error.strerror}): give another folder as --run") from error
    return folder


def _check_trainer(trainer: Any, module: type) -> None:
    """Raise ValueError for settings of the trainer that Lightning would refuse late, or with advice for its own API."""
    if trainer.overfit_batches:
        raise ValueError(
            "trainer.overfit_batches would replace the seeded order of the images: set trainer.limit_train_batches to "
            "train on fewer batches"
        )
    if str(trainer.precision) in _UNSUPPORTED_PRECISIONS:
        raise ValueError(
            f"trainer.precision {trainer.precision} cannot be evaluated: choose 32-true, 16-mixed or bf16-mixed"
        )
    strategy = trainer.strategy
    start = strategy if isinstance(strategy, str) else (strategy.get("init_args") or {}).get("start_method")
    if any(word in str(start) for word in ("spawn", "fork", "notebook")):
        raise ValueError(
            f"trainer.strategy {start} starts its processes inside this one, which loses their results: choose ddp or "
            "ddp_find_unused_parameters_true"
        )
    if issubclass(module, InpaintingModule):
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "stage 1 has two optimisers: set model.init_args.accumulate, not trainer.accumulate_grad_batches"
            )
        if trainer.gradient_clip_val is not None:
            raise ValueError(
                "stage 1 has two optimisers: set model.init_args.gradient_clip, not trainer.gradient_clip_val"
            )


def _evaluation_folder(config: Any, checkpoint: Path | None, command: str) -> Path:
    """Return the given folder, else the run's folder, or a subfolder for other faces or a part of the data.

    Such a test therefore does not replace the test on all of the run's own people.
    """
    if checkpoint is None or config.run != FROM_CHECKPOINT:
        return Path(config.run)
    run = runs.run_folder_of(checkpoint)
    face_set = config.data.get("face_set") or {"class_path": "OrlFaces"}
    name, settings = face_set["class_path"].rsplit(".", 1)[-1], dict(face_set.get("init_args") or {})
    own_name, own_settings = runs.face_set_of(run)
    same = all(settings[key] == value for key, value in own_settings.items() if key in settings)
    words = [] if own_name is None or (own_name == name and same) else [name.removesuffix("Faces").lower()]
    if runs.part_of_data(config.trainer, "val" if command == "validate" else command):
        words.append("part")
    return run / f"{_OTHER_DATA}{'-'.join(words)}" if words else run


def _add_callbacks(trainer: Any, module: type) -> None:
    """Put the callbacks that write results before those of the configuration, which may hold some of them."""
    configured = trainer.callbacks or []
    configured = configured if isinstance(configured, list) else [configured]
    present = {callback.class_path.rsplit(".", 1)[-1] for callback in configured}
    namespace: Any = jsonargparse.Namespace  # untyped
    trainer.callbacks = []
    for name in _OUTPUTS + (_RECOGNITION_OUTPUTS if issubclass(module, DistillationModule) else []):
        if name not in present:
            trainer.callbacks.append(namespace(class_path=f"deocc.callbacks.{name}", init_args=namespace()))
    trainer.callbacks += configured


def _choose_earlier_run(model: Any, key: str, module: str) -> None:
    """Replace a run folder, or "newest", by the path of its checkpoint file; a model folder stays.

    "pretrained" is the model folder of this package, which contains both networks of the earlier stages.
    """
    wanted = model.init_args.get(key)
    if wanted is None:
        return
    if wanted == "pretrained":
        wanted = pretrained_folder()
    elif wanted == "newest":
        wanted = runs.newest_run(module)
        print(f"deocc fit: {key}: the newest run of {module}, {wanted}", flush=True)
    is_model = (Path(wanted) / MODEL_CONFIG).is_file()
    model.init_args[key] = str(wanted if is_model else runs.find_checkpoint(wanted))


def _stop(stop: TrainingStopped) -> int:
    """Print how to continue, and return a shell's exit code for the signal. SIGUSR1 from SLURM requeues the job."""
    if processes.is_first():
        saved = "after a complete step, which is saved" if stop.saved else "at once, without saving the last steps"
        say(f"stopped {saved}; `deocc fit --resume {stop.run}` continues")
    if stop.signum == signal.SIGUSR1:
        processes.requeue()
    return 128 + stop.signum if processes.is_first() else 0  # Lightning kills rank 0 if another rank's code is not 0


def _explain(message: str, command: str) -> str:
    """Reduce an error message to the line that matters.

    jsonargparse quotes all types that it tried, and torch the traceback of a loader's worker.
    """
    if "Original Traceback" in message:
        message = re.split(r"\n[\w.]+(?:Error|Exception): ", message)[-1]
    text = one_line(message)
    for _ in range(3):
        inner = re.search(r"Errors: - (.*?)(?: - Expected a <class 'NoneType'>| Given value type:|$)", text)
        text = inner.group(1) if inner else text
    if "not accepted" in text or "unrecognized" in text:
        text += "; --print_config in place of it lists every key"
        if command == "predict":
            text += "; to predict photos, give them first: deocc predict PHOTOS... --out DIR"
    return re.sub(r"Problem with given class_path '([\w.]+)': ", r"\1: ", text).replace("typing.", "")
