"""Outputs of frozen networks, shared by runs over the same images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from deocc.callbacks.judges import JudgeCallback
from deocc.files import checksum, replace_file


class SharedOutputsCallback(pl.Callback):
    """Keep what teacher, judge, generator and segmenter compute in a folder, where other runs find it.

    The variants of an ablation differ in the student only: with the same data seed, their frozen networks see the same
    batches. An output is found by a hash of the network's weights and of its input, so that it is the right one
    whatever the settings of a run.

    A training of 400 steps with 32 faces and a de-occluder of 112 pixels writes about 3 GB. On a GPU it is faster to
    compute the outputs again.

    Args:
        folder: where the outputs are kept; created if it does not exist.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Share the outputs of a training."""
        self._share(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Share the outputs of a test, those of a judge included."""
        self._share(trainer, pl_module)

    def _share(self, trainer: pl.Trainer, module: Any) -> None:
        networks = [module.teacher]
        networks += [callback.network for callback in trainer.callbacks if isinstance(callback, JudgeCallback)]  # type: ignore[attr-defined]
        if module.deoccluder is not None:
            networks += [module.deoccluder.generator, module.deoccluder.segmenter]
        for network in networks:
            network.forward = _remembering(network, self.folder)


def _remembering(network: nn.Module, folder: Path) -> Callable[[Tensor], Tensor]:
    """Return the network's `forward` with its results kept in a folder."""
    described = repr((type(network).__name__, getattr(network, "spec", None), getattr(network, "config", None)))
    weights = checksum(described, *(_content(tensor) for tensor in network.state_dict().values()))
    compute = type(network).forward

    def forward(*inputs: Tensor) -> Tensor:
        device = inputs[0].device
        precision = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        shapes = repr([(precision, tensor.dtype, tuple(tensor.shape)) for tensor in inputs])
        key = checksum(weights, shapes, *(_content(tensor) for tensor in inputs))
        file = folder / key[:2] / f"{key}.pt"
        if file.is_file():
            known: Tensor = torch.load(file, map_location=device, weights_only=True)
            return known
        output: Tensor = compute(network, *inputs)
        with replace_file(file) as draft:
            torch.save(output.clone(), draft)
        return output

    return forward


def _content(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
