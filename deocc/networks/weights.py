"""Reading weight files: where to look, what to accept, and one clear line where they do not fit."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from deocc.runs import damage

# Names under which training scripts save the network inside a larger dictionary.
_CONTAINERS = ("state_dict", "model_state_dict", "state_dict_backbone", "model", "backbone", "net")
# What wrappers (DataParallel, Lightning modules, `Embedder`) put before the network's own names.
_PREFIXES = ("module.", "backbone.", "model.", "network.", "_orig_mod.")


def find_weights(path: str | Path, remedy: str) -> Path:
    """The file at `path`.

    Raises:
        FileNotFoundError: there is none; the message says where it was looked for and ends with `remedy`.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no weights file at {file.absolute()}: {remedy}")
    return file


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The named tensors of a `.safetensors` file or of a file that `torch.save` wrote, wherever in it they lie.

    Only plain tensors are read, since unpickling anything else may run code.

    Raises:
        ValueError: the file is damaged, or holds no named tensors.
    """
    try:
        content: Any = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
    except Exception as error:  # a file that is something else makes the readers fail in any way
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(
            f"{path} is damaged or holds more than plain tensors ({reason}): save its state_dict alone, or get it again"
        ) from None
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    state = (
        {key: value for key, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not state:
        raise ValueError(f"{path} holds no named tensors: give a file that holds a network's state_dict")
    return state


def load_tensors(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU; nothing in it is executed.

    Raises:
        ValueError: it unpacks to more than its own size: `torch.save` never compresses, so only a bomb does.
        Exception: whatever torch raises at a file that is something else, or holds more than tensors and plain values.
    """
    if zipfile.is_zipfile(path):  # not so before PyTorch 1.6
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, more than it has")
    return torch.load(path, map_location="cpu", weights_only=True)


def strip_prefixes(state: Mapping[str, Tensor], known: Iterable[str] = ()) -> dict[str, Tensor]:
    """`state` without what wrappers put before a network's names; names that are `known` stay as they are."""
    known = set(known)
    return {_stripped(key, known): value for key, value in state.items()}


def _stripped(key: str, known: set[str]) -> str:
    while key not in known:
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None)
        if prefix is None:
            break
        key = key.removeprefix(prefix)
    return key


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: Path, ignored: tuple[str, ...] = ()) -> None:
    """Copy named tensors into `network`.

    Args:
        network: whose names and shapes must all be met.
        state: named tensors, possibly with the prefixes of wrappers.
        source: where they come from, for the message.
        ignored: beginnings of names that the network does not have and may be left out, such as a classifier's.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; the message shows the first three of each.
    """
    wanted = network.state_dict()
    found = {
        key: value
        for key, value in strip_prefixes(state, wanted).items()
        if key in wanted or not key.startswith(ignored)
    }
    # PyTorch before 0.4.1 saved no counters of batches, and nothing at inference depends on them.
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in wanted]
    misshaped = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in found and found[key].shape != value.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    if any(problems.values()):
        listed = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:3])}" for what, keys in problems.items() if keys)
        raise ValueError(
            f"the weights in {source} do not fit {type(network).__name__} ({listed}): give the file of this architecture"
        )
    network.load_state_dict(found, strict=False)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU, its checksums compared; nothing in it is executed.

    Raises:
        FileNotFoundError: no file there.
        ValueError: the file is damaged or no checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of a .ckpt file that `deocc fit` wrote")
    if (problem := damage(Path(path))) is not None:
        raise ValueError(f"{path} cannot be read as a checkpoint ({problem}): it is damaged or something else")
    try:
        content = load_tensors(Path(path))
    except Exception as error:  # a file that is something else makes torch's reader fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "weights_only" in reason:  # torch's advice is to load it unsafely
            reason = "it is no file of weights, or holds more than weights"
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({reason}): it is damaged or something else"
        ) from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= set(content):
        raise ValueError(f"{path} is no Lightning checkpoint: give a .ckpt file that `deocc fit` wrote")
    return content
