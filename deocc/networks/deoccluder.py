"""Stage 1 as stage 2 sees it: a frozen pair of segmenter and generator, rebuilt from a stage-1 checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from deocc.networks.generator import Generator, complete
from deocc.networks.segmenter import MaskSegmenter
from deocc.networks.weights import load_tensors
from deocc.runs import damage

GENERATOR_PREFIX, SEGMENTER_PREFIX = "average.module.", "segmenter."
"""Where a stage-1 checkpoint keeps the running average of the generator, and the segmenter."""


class Deoccluder(nn.Module):
    """Completes masked faces, and predicts their masks where none is given. Frozen; it runs under inference mode, channels last.

    What it returns are ordinary tensors, which a student's backward pass may keep. `deoccluder.generator.compile()` compiles the part that
    takes the time, in place; the names of its weights stay.
    """

    def __init__(self, generator: Mapping[str, Any], segmenter: Mapping[str, Any]) -> None:
        """Build both networks from their `config`, with random weights."""
        super().__init__()
        self.generator = Generator(**generator)
        self.segmenter = MaskSegmenter(**segmenter)
        self.requires_grad_(False).eval()
        # Activations follow the weights: 1.15 times as fast on a CPU core.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """What rebuilds it: `Deoccluder(**config)`."""
        return {"generator": dict(self.generator.config), "segmenter": dict(self.segmenter.config)}

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Self:
        """Load the running average of the generator and the segmenter from a stage-1 checkpoint.

        Raises:
            FileNotFoundError: no file there.
            ValueError: the file is no checkpoint, or one of another stage.
        """
        checkpoint = read_checkpoint(path)
        if checkpoint.get("stage") != "inpainting":
            raise ValueError(
                f"{path} is a checkpoint of the stage {checkpoint.get('stage', 'unknown')!r}, not of 'inpainting': give a stage-1 run"
            )
        try:
            settings, saved = checkpoint["hyper_parameters"], checkpoint["state_dict"]
            generator = {"width": settings["width"], "attention": settings["attention"]}
            config = {"generator": generator, "segmenter": {"width": settings["segmenter_width"]}}
            parts = {"generator": GENERATOR_PREFIX, "segmenter": SEGMENTER_PREFIX}
            state = {f"{part}.{key}": value for part, prefix in parts.items() for key, value in _below(saved, prefix).items()}
            check_fit(config, state)
            deoccluder = cls(**config)
            deoccluder.load_state_dict(state)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{path} holds no whole stage 1 ({reason}): it is damaged or of another version of deocc") from error
        return deoccluder

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        return super().train(False)

    def predict_mask(self, masked_face: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 1, H, W), 1 = covered."""
        with torch.inference_mode():
            mask = self.segmenter.predict_mask(masked_face)
        return _ordinary(mask)

    def forward(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """Masked face (B, 3, H, W) in [-1, 1] and mask (B, 1, H, W) -> completed face (B, 3, H, W) in [-1, 1]."""
        with torch.inference_mode():
            completed_face = complete(self.generator, masked_face, mask)
        return _ordinary(completed_face)


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
        raise ValueError(f"{path} cannot be read as a checkpoint ({reason}): it is damaged or something else") from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= set(content):
        raise ValueError(f"{path} is no Lightning checkpoint: give a .ckpt file that `deocc fit` wrote")
    return content


def check_fit(config: Mapping[str, Mapping[str, Any]], state: Mapping[str, Tensor]) -> None:
    """Check that a de-occluder would have these weights, without making it: a file may name networks larger than any memory.

    Args:
        config: as `Deoccluder.config`.
        state: named weights.

    Raises:
        ValueError: names or shapes differ.
        KeyError: a part of `config` is missing; likewise TypeError and RuntimeError, where a part is no such thing.
    """
    if config["generator"].get("depth", 1) > len(state):  # each block has weights
        raise ValueError(f"a depth of {config['generator']['depth']} for {len(state)} weights")
    with torch.device("meta"):  # shapes without numbers
        wanted = {key: value.shape for key, value in Deoccluder(**config).state_dict().items()}
    odd = [key for key in wanted.keys() | state.keys() if key not in wanted or key not in state or wanted[key] != state[key].shape]
    if odd:
        raise ValueError(f"{len(odd)} weights are missing, unknown or of another shape, such as {min(odd)}")


def _ordinary(tensor: Tensor) -> Tensor:
    """A copy, in the usual order, that autograd may keep."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
