"""Reading weight files safely, with one-line messages where they are missing, damaged or do not match."""

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn

from deocc.files import checksum
from deocc.messages import describe_error
from deocc.runs import damage

MODEL_CONFIG, MODEL_WEIGHTS = "config.json", "model.safetensors"
"""Files of a model folder, which `deocc.inference.model_folder` writes."""
MODEL_FORMAT: Final = {"format": "deocc model", "format_version": 3}
"""First entries of `config.json`. The version increases when earlier versions of deocc would misread the folder."""

_MOST_CONFIG: Final = 2**24  # bytes; an ordinary config.json has some kilobytes

# Keys under which training scripts save the network inside a larger dictionary.
_CONTAINERS = ("state_dict", "model_state_dict", "state_dict_backbone", "model", "backbone", "net")
# Prefixes that wrappers (DataParallel, Lightning modules, `Embedder`) add to the names of a network.
_PREFIXES = ("module.", "backbone.", "model.", "network.", "net.", "_orig_mod.")
_RUNS = {"inpainting": "a stage-1 run", "segmentation": "a run of SegmentationModule", "distillation": "a stage-2 run"}


def find_weights(path: str | Path, remedy: str) -> Path:
    """Return the file at `path`, with `~` expanded, or raise FileNotFoundError with its absolute path and `remedy`."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no weights file at {file.absolute()}: {remedy}")
    return file


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a `.safetensors` or `torch.save` file, also from within known containers.

    Only plain tensors are read, because unpickling anything else may execute code.

    Raises:
        ValueError: the file is damaged or contains no named tensors.
    """
    try:
        content: Any = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
    except Exception as error:  # readers raise arbitrary errors for other files
        raise ValueError(
            f"{path} is damaged or holds more than plain tensors ({describe_error(error)}): "
            "save its state_dict alone, or get it again"
        ) from None
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        content = {}
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no named tensors: give a file that holds a network's state_dict")
    return state


def load_tensors(path: Path) -> Any:
    """Load a `torch.save` file to the CPU without executing its content.

    Raises:
        ValueError: the file is a decompression bomb.
        Exception: errors of `torch.load` for other files or for content beyond tensors and plain values.
    """
    if zipfile.is_zipfile(path):  # not before PyTorch 1.6; `torch.save` never compresses, a decompression bomb does
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, more than it has")
    return torch.load(path, map_location="cpu", weights_only=True)


def read_model_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read `config.json` and the weights, in float32, of a model folder that `deocc test` wrote.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, something else or of another version, or the two do not belong together.
    """
    path, weights = folder / MODEL_CONFIG, folder / MODEL_WEIGHTS
    for file in (path, weights):
        if not file.is_file():
            raise FileNotFoundError(
                f"no {file.name} in the model folder {folder}: write it again with `deocc test`, or get it again"
            )
    if (size := path.stat().st_size) > _MOST_CONFIG:
        raise ValueError(f"{path} has {size:,} bytes, at most {_MOST_CONFIG:,} are allowed: get it again")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): get it again") from error
    if not isinstance(config, dict) or config.get("format") != MODEL_FORMAT["format"]:
        raise ValueError(f"{path} describes no deocc model: give a model folder that `deocc test` wrote")
    if config.get("format_version") != MODEL_FORMAT["format_version"]:
        raise ValueError(
            f"{path} has format version {config.get('format_version')}, this deocc reads "
            f"{MODEL_FORMAT['format_version']}: install the deocc that wrote it, or write it again with `deocc test`"
        )
    content = weights.read_bytes()
    try:
        state = {name: value.float() for name, value in safetensors.torch.load(content).items()}
    except Exception as error:  # the reader raises almost anything for another file
        raise ValueError(f"{weights} is no safetensors file ({describe_error(error)}): get it again") from error
    if checksum(content) != config.get("weights_sha256"):
        raise ValueError(f"{weights} does not belong to its {path.name} (another hash): get both again")
    return config, state


def read_averaged(path: str | Path, stage: str, part: str) -> dict[str, Tensor]:
    """Read the averaged network of a checkpoint of a stage, or the weights with the prefix `part` of a model folder.

    Errors as `read_checkpoint` and `read_model_folder`.
    """
    if Path(path).is_dir():
        return sub_state(read_model_folder(Path(path))[1], part)
    return sub_state(read_checkpoint(path, stage)["state_dict"], "average.module.")


def sub_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def strip_prefixes(state: Mapping[str, Tensor], known: Iterable[str] = ()) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers from the names in `state`; names in `known` are kept."""
    known = set(known)
    stripped = {}
    for key, value in state.items():
        while key not in known and key.startswith(_PREFIXES):
            key = key.split(".", 1)[1]
        stripped[key] = value
    return stripped


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: Path, ignored: tuple[str, ...] = ()) -> None:
    """Copy named tensors, possibly with prefixes of wrappers, into `network`, all or none.

    `source` is the file they were read from, for the message. Names with a prefix in `ignored`, such as a classifier's,
    are skipped unless the network has them.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; the message contains the first three of each.
    """
    wanted = network.state_dict()
    stripped = strip_prefixes(state, wanted)
    found = {key: value for key, value in stripped.items() if key in wanted or not key.startswith(ignored)}
    problems = {
        # PyTorch before 0.4.1 saved no batch counters, which inference does not need.
        "missing": [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in found if key not in wanted],
        "of another shape": [
            f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
            for key, value in wanted.items()
            if key in found and found[key].shape != value.shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:3])}" for what, keys in problems.items() if keys)
        raise ValueError(
            f"the weights in {source} do not fit {type(network).__name__} ({listed}): "
            "give the file of this architecture"
        )
    network.load_state_dict(found, strict=False)


def read_checkpoint(path: str | Path, stage: str | None = None) -> dict[str, Any]:
    """Read a Lightning checkpoint to the CPU, verify its checksums, and execute nothing in it.

    It must be of the stage "inpainting", "segmentation" or "distillation"; None accepts any.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, not a checkpoint, or of another stage.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of a .ckpt file that `deocc fit` wrote")
    try:
        if (problem := damage(Path(path))) is not None:
            raise ValueError(problem)
        content = load_tensors(Path(path))
    except Exception as error:  # torch raises arbitrary errors for other files
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "weights_only" in reason:  # torch recommends unsafe loading
            reason = "it is no file of weights, or holds more than weights"
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({reason}): it is damaged or something else"
        ) from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= set(content):
        raise ValueError(f"{path} is no Lightning checkpoint: give a .ckpt file that `deocc fit` wrote")
    found = content.get("stage", "unknown")
    if stage not in (None, found):
        raise ValueError(f"{path} is a checkpoint of the stage {found!r}, not of {stage!r}: give {_RUNS[str(stage)]}")
    return content
