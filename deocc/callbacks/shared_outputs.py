"""Outputs of frozen networks, shared by runs over the same images."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from deocc.callbacks.judges import JudgeCallback
from deocc.files import checksum, replace_file
from deocc.messages import describe_error
from deocc.networks.embedders.embedder import Embedder
from deocc.networks.embedders.registry import teacher_fingerprint

_VERSION: Final = 1  # to be raised when the same network gives other outputs for the same input


class SharedOutputsCallback(pl.Callback):
    """Keep what teacher, judge, generator and segmenter of stage 2 compute in a folder, where other runs find it.

    The variants of an ablation differ in the student only: with the same data seed, their frozen networks see the same
    batches. An output is found by a hash of the network and of its input, so that it is the right one whatever the
    settings of a run.

    A training of 400 steps with 32 faces and a de-occluder of 112 pixels writes about 3 GB. On a GPU it is faster to
    compute the outputs again. If the folder does not exist, as when `deocc ablate` has ended and deleted it, nothing is
    shared.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Share the outputs of a training or a test, those of a judge included."""
        if not hasattr(pl_module, "deoccluder") or not self.folder.is_dir():
            return  # stage 1 trains through its teacher, so it needs graph and features
        networks = [callback.network for callback in trainer.callbacks if isinstance(callback, JudgeCallback)]
        networks += [pl_module.teacher] if getattr(pl_module, "teacher", None) is not None else []
        if pl_module.deoccluder is not None:
            networks += [pl_module.deoccluder.generator, pl_module.deoccluder.segmenter]
        for network in networks:
            network.forward = _remembering(network, self.folder)  # type: ignore[method-assign]

    on_test_start = on_fit_start


def _remembering(network: nn.Module, folder: Path) -> Callable[..., Tensor]:
    """Return the network's `forward` with its results kept in a folder."""
    if isinstance(network, Embedder):
        fingerprint = teacher_fingerprint(network)
    else:
        described = repr((type(network).__name__, getattr(network, "config", None)))
        parts = [part for name, tensor in network.state_dict().items() for part in (name, _content(tensor))]
        fingerprint = checksum(described, *parts)
    identity, compute = checksum(f"{_VERSION}", fingerprint), type(network).forward

    def forward(*inputs: Tensor) -> Tensor:
        device = inputs[0].device
        precision = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        shapes = repr([(precision, tensor.dtype, tuple(tensor.shape)) for tensor in inputs])
        key = checksum(identity, shapes, *(_content(tensor) for tensor in inputs))
        file = folder / key[:2] / f"{key}.pt"
        try:
            known: Tensor = torch.load(file, map_location=device, weights_only=True)
            return known
        except FileNotFoundError:
            pass
        except Exception as error:  # torch raises arbitrary errors for damaged files
            warnings.warn(f"{file} cannot be read ({describe_error(error)}): it is computed again", stacklevel=2)
        output: Tensor = compute(network, *inputs)
        try:
            with replace_file(file) as draft:
                torch.save(output.clone(), draft)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            # Without the file's name, so that the same warning is shown once.
            warnings.warn(f"outputs are not shared ({describe_error(error)}): free space for {folder}", stacklevel=2)
        return output

    return forward


def _content(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
