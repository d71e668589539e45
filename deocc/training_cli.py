"""LightningCLI for deocc: where a run's files go, which checkpoint is meant, and errors that say what to do."""

import gc
import logging
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
import pytorch_lightning as pl
import torch
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
from deocc.networks.weights import read_checkpoint
from deocc.run_arguments import FROM_CHECKPOINT, resolve, to_resume

_OF_OTHER_DATA = "test-"
_NEWEST = "newest"
_EARLIER_STAGES = {"segmenter_checkpoint": "SegmentationModule", "inpainting_checkpoint": "InpaintingModule"}
"""Settings of a module that name a run of an earlier stage, and that stage's module."""
_SAFEGUARDS = {
    "checkpoints": CheckpointCallback,
    "non_finite": FiniteCallback,
    "fingerprint": FingerprintCallback,
    "quarantine": QuarantineCallback,
}
"""Callbacks of every training, whatever its YAML lists, and the keys of their settings."""


class DeoccCLI(LightningCLI):
    """One YAML names a module, the data and the trainer; `--run` names the folder that everything is written to.

    Args:
        command: the subcommand to run, the first of `args`.
        settings: of `LightningCLI`.
    """

    def __init__(self, command: str, **settings: Any) -> None:
        self._command = command
        super().__init__(pl.LightningModule, MaskedFaceDataModule, **settings)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method there, but called on the instance
        """Return the one command that is asked for: building the parsers of all four takes a third of a second."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--run`, `--resume`, and what keeps every training safe."""
        parser.add_argument(
            "--run", type=str, default=str(runs.ROOT / "unnamed"), help="The folder that this run writes to."
        )
        parser.add_argument(
            "--resume", type=str | None, default=None, help="fit: the run to go on with, by its own configuration."
        )
        for key, callback in _SAFEGUARDS.items():
            parser.add_lightning_class_args(callback, key)

    def before_instantiate_classes(self) -> None:
        """Choose the run folder, point the trainer, its loggers and its checkpoints to it, and find the stage-1 run."""
        config, fitting = self.config[self.subcommand], self.subcommand == "fit"
        if fitting:
            _go_on_if_requeued(config)
        checkpoint = Path(config.ckpt_path) if config.get("ckpt_path") else None
        if checkpoint is not None:
            read_checkpoint(checkpoint)  # a damaged one gets its clear line here
        folder = _writable(config, checkpoint) if fitting else _evaluation_folder(config, checkpoint)
        config.run, config.resume = str(folder), None
        print(f"deocc {self.subcommand}: writing to {folder}", flush=True)
        _place(config.trainer, folder)
        home = (
            folder
            if fitting or checkpoint is None or folder.name.startswith(_OF_OTHER_DATA)
            else runs.run_folder_of(checkpoint)
        )
        place_loggers(config.trainer, folder, "" if fitting else str(self.subcommand), home, config.model.class_path)
        for key, module in _EARLIER_STAGES.items():
            if checkpoint is None:
                _choose_earlier_run(config.model, key, module)
            elif config.model.init_args.get(key) is not None:
                config.model.init_args[key] = FROM_CHECKPOINT

    def after_instantiate_classes(self) -> None:
        """Let the saved configuration of a resumed run go on naming the stage 1 that it started from."""
        config = self.config[self.subcommand]
        for key in _EARLIER_STAGES:
            if config.model.init_args.get(key) == FROM_CHECKPOINT:
                config.model.init_args[key] = _recorded_run(runs.run_folder_of(Path(config.ckpt_path)), key)

    def _parse_ckpt_path(self) -> None:
        """Nothing: LightningCLI would put the checkpoint's hyperparameters over the configuration and over the command line."""

    def after_fit(self) -> None:
        """Say where everything is."""
        if self.trainer.is_global_zero:
            print(
                f"deocc fit: done; go on with `deocc test --checkpoint {self.config[self.subcommand].run}`", flush=True
            )


def run(arguments: list[str]) -> int:
    """Run one LightningCLI command, such as `["fit", "--config", "configs/inpaint.yaml"]`.

    Returns:
        The process's exit code: 0, or 128 and the number of the signal that stopped a training.

    Raises:
        ValueError: a key or value that no configuration may hold.
        FileNotFoundError: a configuration or checkpoint that is not there.
    """
    _quieten()
    processes.end_with_parent()
    processes.tell_of_children()
    code = 0
    try:
        DeoccCLI(
            arguments[0],
            subclass_mode_model=True,
            save_config_callback=DashboardConfigCallback if arguments[0] == "fit" else None,
            save_config_kwargs={"overwrite": True, "config_filename": UNFINISHED_CONFIG},
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False},
            parser_kwargs={arguments[0]: {"exit_on_error": False}, "exit_on_error": False},
            args=resolve(arguments),
        )
    except (jsonargparse.ArgumentError, MisconfigurationException) as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        raise RuntimeError(processes.explain_loss(str(error))) from error
    except TrainingStopped as stop:
        code = _stopped(stop)
    _leave_processes()
    return code


def explain(message: str) -> str:
    """The heart of an error's message, in one line.

    Of jsonargparse's, what it says of the key or value itself, without the types and namespaces that it tried on the way. Of one from a
    loader's worker, which quotes the worker's whole traceback, what that ended with.
    """
    if "Original Traceback" in message:
        message = re.split(r"\n[\w.]+(?:Error|Exception): ", message)[-1]
    text = " ".join(message.split())
    for _ in range(3):
        inner = re.search(r"Errors: - (.*?)(?: - Expected a <class 'NoneType'>| Given value type:|$)", text)
        text = inner.group(1) if inner else text
    if "not accepted" in text or "unrecognized" in text:
        text += "; --print_config in place of it lists every key"
    return re.sub(r"Problem with given class_path '([\w.]+)': ", r"\1: ", text).replace("typing.", "")


def _stopped(stop: TrainingStopped) -> int:
    """Say how to go on; let SLURM begin again where it announced the end. The code is that of a shell for the signal."""
    if processes.is_first():
        kept = (
            "after a whole step, which is saved"
            if stop.saved
            else "at once; steps since the last checkpoint will be taken again"
        )
        print(f"deocc fit: stopped {kept}; `deocc fit --resume {stop.run}` goes on", file=sys.stderr, flush=True)
    if stop.signum == signal.SIGUSR1:
        processes.requeue()
    return (
        128 + stop.signum if processes.is_first() else 0
    )  # Lightning kills the first process where another one's code is not 0


def _go_on_if_requeued(config: Any) -> None:
    """Let a requeued SLURM job, whose command is that of the first time, go on with the run that it trained."""
    for run in runs.series(Path(config.run)):
        if processes.was_requeued(run):
            words = to_resume(run)
            config.run, config[words[0].removeprefix("--")] = str(run), words[1]


def _writable(config: Any, checkpoint: Path | None) -> Path:
    """The folder that a fit writes to: the resumed run's own, else one in which no run lies.

    Raises:
        OSError: nothing can be written there.
    """
    wanted = Path(config.run)
    resumed = config.resume is not None or (
        checkpoint is not None and wanted.resolve() == runs.run_folder_of(checkpoint).resolve()
    )
    folder = wanted if resumed else runs.free_folder(wanted)
    if folder != wanted and processes.is_first():
        print(
            f"deocc fit: a run lies at {wanted}: this one is new; `deocc fit --resume {wanted}` goes on with that one",
            flush=True,
        )
    runs.check_writable(folder)
    processes.note_job(folder)
    return folder


def _evaluation_folder(config: Any, checkpoint: Path | None) -> Path:
    """The run's folder, or one in it that is named after the face set, where that is not the one of the run and no folder was asked for.

    So a test on LFW, or on another folder of faces, does not replace that on the run's own people.
    """
    if checkpoint is None or config.run != FROM_CHECKPOINT:
        return Path(config.run)
    wanted = runs.run_folder_of(checkpoint)
    face_set = config.data.get("face_set")
    name = "OrlFaces" if face_set is None else str(face_set.class_path).rsplit(".", 1)[-1]
    settings = {} if face_set is None else dict(face_set.get("init_args") or {})
    own_name, own_settings = runs.face_set_of(wanted)
    same = own_name in (None, name) and all(
        settings[key] == value for key, value in own_settings.items() if key in settings
    )
    return wanted if same else wanted / f"{_OF_OTHER_DATA}{name.removesuffix('Faces').lower()}"


def _place(trainer: Any, folder: Path) -> None:
    """Make the run folder the root of whatever the trainer writes."""
    trainer.default_root_dir = str(folder)
    for callback in trainer.callbacks or []:
        if "ModelCheckpoint" in callback.class_path:
            callback.init_args.dirpath = str(folder / runs.CHECKPOINTS)


def _choose_earlier_run(model: Any, key: str, module: str) -> None:
    """Replace the run or "newest" under `key` by the path of its checkpoint file."""
    wanted = model.init_args.get(key)
    if wanted == _NEWEST:
        wanted = runs.newest_run(module)
        print(f"deocc fit: {key}: the newest run of {module}, {wanted}", flush=True)
    if wanted is not None:
        model.init_args[key] = str(runs.find_checkpoint(wanted))


def _recorded_run(run: Path, key: str) -> str:
    """The earlier stage's checkpoint that the configuration of a run names under `key`, where it has one."""
    file = run / runs.CONFIG
    recorded = yaml.safe_load(file.read_text())["model"]["init_args"].get(key) if file.is_file() else None
    return str(recorded or FROM_CHECKPOINT)


def _leave_processes() -> None:
    """End the process group while the interpreter is whole: gloo's threads abort a process that is taken down with them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # DDP's modules lie in cycles that hold the group
        torch.distributed.destroy_process_group()


def _quieten() -> None:
    """Silence what a user can do nothing about: Lightning's tips and its calls of deprecated jsonargparse functions."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|jsonargparse|torch\.utils)")
