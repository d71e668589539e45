"""LightningCLI for deocc: where a run's files go, which checkpoint is meant, and errors that say what to do."""

import gc
import logging
import re
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

from deocc import runs
from deocc.callbacks.dashboard import DashboardConfigCallback
from deocc.callbacks.loggers import place_loggers
from deocc.data import MaskedFaceDataModule
from deocc.networks.deoccluder import read_checkpoint

_EVALUATIONS = ("validate", "test", "predict")
_OF_OTHER_DATA = "test-"
_NEWEST, _FROM_CHECKPOINT = "newest", "from_checkpoint"


class DeoccCLI(LightningCLI):
    """One YAML names a module, the data and the trainer; `--run` names the folder that everything is written to."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--run`."""
        parser.add_argument("--run", type=str, default=str(runs.ROOT / "unnamed"), help="The folder that this run writes to.")

    def before_instantiate_classes(self) -> None:
        """Choose the run folder, point the trainer, its loggers and its checkpoints to it, and find the stage-1 run."""
        config, fitting = self.config[self.subcommand], self.subcommand == "fit"
        checkpoint = Path(config.ckpt_path) if config.get("ckpt_path") else None
        if checkpoint is not None:
            read_checkpoint(checkpoint)  # a damaged one gets its clear line here
        folder = _writable(Path(config.run), checkpoint) if fitting else _evaluation_folder(config, checkpoint)
        config.run = str(folder)
        print(f"deocc {self.subcommand}: writing to {folder}", flush=True)
        _place(config.trainer, folder)
        home = folder if fitting or checkpoint is None or folder.name.startswith(_OF_OTHER_DATA) else runs.run_folder_of(checkpoint)
        place_loggers(config.trainer, folder, "" if fitting else str(self.subcommand), home, config.model.class_path)
        if checkpoint is None:
            _choose_stage1(config.model)
        elif config.model.init_args.get("inpainting_checkpoint") is not None:
            config.model.init_args.inpainting_checkpoint = _FROM_CHECKPOINT

    def after_instantiate_classes(self) -> None:
        """Let the saved configuration of a resumed run go on naming the stage 1 that it started from."""
        config = self.config[self.subcommand]
        if config.model.init_args.get("inpainting_checkpoint") == _FROM_CHECKPOINT:
            config.model.init_args.inpainting_checkpoint = _recorded_stage1(runs.run_folder_of(Path(config.ckpt_path)))

    def _parse_ckpt_path(self) -> None:
        """Nothing: LightningCLI would put the checkpoint's hyperparameters over the configuration and over the command line."""

    def after_fit(self) -> None:
        """Say where everything is."""
        if self.trainer.is_global_zero:
            print(f"deocc fit: done; go on with `deocc test --checkpoint {self.config[self.subcommand].run}`", flush=True)


def run(arguments: list[str]) -> None:
    """Run one LightningCLI command, such as `["fit", "--config", "configs/inpaint.yaml"]`.

    Raises:
        ValueError: a key or value that no configuration may hold.
        FileNotFoundError: a configuration or checkpoint that is not there.
    """
    _quieten()
    try:
        DeoccCLI(
            pl.LightningModule,
            MaskedFaceDataModule,
            subclass_mode_model=True,
            save_config_callback=DashboardConfigCallback if arguments[0] == "fit" else None,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False},
            parser_kwargs={command: {"exit_on_error": False} for command in ("fit", *_EVALUATIONS)} | {"exit_on_error": False},
            args=_resume_in_place(_resolve_checkpoint(arguments)),
        )
    except (jsonargparse.ArgumentError, MisconfigurationException) as error:
        raise ValueError(str(error)) from error
    _leave_processes()


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


def _resolve_checkpoint(arguments: list[str]) -> list[str]:
    """Replace `--checkpoint RUN_OR_FILE` of an evaluation (default: the newest run) by that run's configuration and checkpoint file."""
    command, *words = arguments
    if command not in _EVALUATIONS or {"-h", "--help"} & set(words) or any(word.startswith("--ckpt_path") for word in words):
        return arguments
    where, words = _take(words, "--checkpoint")
    if where is None:
        where = str(runs.newest_run("deocc.modules."))
        print(f"deocc {command}: no --checkpoint given, taking the newest run, {where}", flush=True)
    checkpoint = runs.find_checkpoint(where)
    folder = runs.run_folder_of(checkpoint)
    if not (folder / runs.CONFIG).is_file():
        raise FileNotFoundError(f"{checkpoint} has no {runs.CONFIG} in its run folder {folder}: give a run that `deocc fit` wrote")
    return [command, "--config", str(folder / runs.CONFIG), "--run", _FROM_CHECKPOINT, "--ckpt_path", str(checkpoint), *words]


def _take(words: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of `option VALUE` or `option=VALUE`, and the words without it."""
    for number, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1], words[:number] + words[number + 1 :]
        if word == option:
            if number + 1 == len(words):
                raise ValueError(f"{option} needs a value: a run folder or a checkpoint file")
            return words[number + 1], words[:number] + words[number + 2 :]
    return None, words


def _resume_in_place(arguments: list[str]) -> list[str]:
    """Let `fit --ckpt_path FILE` without `--run` write on in the run that the file belongs to, not in the one that the YAML names."""
    command, *words = arguments
    file = _take(words, "--ckpt_path")[0] if command == "fit" else None
    if file is None or _take(words, "--run")[0] is not None:
        return arguments
    folder = runs.run_folder_of(Path(file))
    return [*arguments, "--run", str(folder)] if (folder / runs.CONFIG).is_file() else arguments


def _writable(wanted: Path, checkpoint: Path | None) -> Path:
    """The folder that a fit writes to: the resumed run's own, else one in which no run lies."""
    if checkpoint is not None and wanted.resolve() == runs.run_folder_of(checkpoint).resolve():
        return wanted
    return runs.free_folder(wanted)


def _evaluation_folder(config: Any, checkpoint: Path | None) -> Path:
    """The run's folder, or one in it that is named after the face set, where that is not the one of the run and no folder was asked for.

    So a test on LFW, or on another folder of faces, does not replace that on the run's own people.
    """
    if checkpoint is None or config.run != _FROM_CHECKPOINT:
        return Path(config.run)
    wanted = runs.run_folder_of(checkpoint)
    face_set = config.data.get("face_set")
    name = "OrlFaces" if face_set is None else str(face_set.class_path).rsplit(".", 1)[-1]
    settings = {} if face_set is None else dict(face_set.get("init_args") or {})
    own_name, own_settings = runs.face_set_of(wanted)
    same = own_name in (None, name) and all(settings[key] == value for key, value in own_settings.items() if key in settings)
    return wanted if same else wanted / f"{_OF_OTHER_DATA}{name.removesuffix('Faces').lower()}"


def _place(trainer: Any, folder: Path) -> None:
    """Make the run folder the root of whatever the trainer writes."""
    trainer.default_root_dir = str(folder)
    for callback in trainer.callbacks or []:
        if "ModelCheckpoint" in callback.class_path:
            callback.init_args.dirpath = str(folder / runs.CHECKPOINTS)


def _choose_stage1(model: Any) -> None:
    wanted = model.init_args.get("inpainting_checkpoint")
    if wanted == _NEWEST:
        wanted = runs.newest_run("InpaintingModule")
        print(f"deocc fit: de-occlusion by the newest stage-1 run, {wanted}", flush=True)
    if wanted is not None:
        model.init_args.inpainting_checkpoint = str(runs.find_checkpoint(wanted))


def _recorded_stage1(run: Path) -> str:
    """The stage-1 checkpoint that the configuration of a stage-2 run names, where it has one."""
    file = run / runs.CONFIG
    recorded = yaml.safe_load(file.read_text())["model"]["init_args"].get("inpainting_checkpoint") if file.is_file() else None
    return str(recorded or _FROM_CHECKPOINT)


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
