"""Stage 1 as stage 2 sees it: a frozen pair of segmenter and generator, rebuilt from a stage-1 checkpoint.

Both work at the side that stage 1 was trained at. Larger crops are shrunk for them and only the covered pixels are taken from the enlarged
result, so that visible pixels keep the sharpness that a recogniser needs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.networks.generator import Generator, compose
from deocc.networks.segmenter import MaskSegmenter, load_segmenter
from deocc.networks.weights import read_checkpoint

GENERATOR_PREFIX, SEGMENTER_PREFIX = "average.module.", "segmenter."
"""Where a stage-1 checkpoint keeps the running average of the generator, and the segmenter."""


class Deoccluder(nn.Module):
    """Completes masked faces, and predicts their masks where none is given. Frozen; it runs under inference mode, channels last.

    What it returns are ordinary tensors, which a student's backward pass may keep. `deoccluder.generator.compile()` compiles the part that
    takes the time, in place; the names of its weights stay.
    """

    def __init__(self, generator: Mapping[str, Any], segmenter: Mapping[str, Any], size: int | None = None) -> None:
        """Build both networks with random weights.

        Args:
            generator: its `config`.
            segmenter: its `config`.
            size: side in pixels at which both work; None works at whatever side a face has.
        """
        super().__init__()
        self.size = size
        self.generator = Generator(**generator)
        self.segmenter = MaskSegmenter(**segmenter)
        self.requires_grad_(False).eval()
        # Activations follow the weights: 1.15 times as fast on a CPU core.
        self.generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds it: `Deoccluder(**config)`."""
        return {"generator": dict(self.generator.config), "segmenter": dict(self.segmenter.config), "size": self.size}

    @classmethod
    def from_checkpoint(cls, path: str | Path, segmenter_checkpoint: str | Path | None = None) -> Self:
        """Load the running average of the generator from a stage-1 checkpoint, and a segmenter.

        Args:
            path: of the stage-1 checkpoint.
            segmenter_checkpoint: of a run of `SegmentationModule`; None takes the segmenter that stage 1 trained beside the generator.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file is no checkpoint, one of another stage, or neither has a segmenter.
        """
        checkpoint = read_checkpoint(path)
        if checkpoint.get("stage") != "inpainting":
            raise ValueError(
                f"{path} is a checkpoint of the stage {checkpoint.get('stage', 'unknown')!r}, not of 'inpainting': give a stage-1 run"
            )
        segmenter = load_segmenter(segmenter_checkpoint) if segmenter_checkpoint is not None else None
        if segmenter is None and checkpoint["hyper_parameters"].get("segmenter_width") is None:
            raise ValueError(f"{path} has no segmenter: give a run of SegmentationModule as segmenter_checkpoint")
        try:
            settings, saved = checkpoint["hyper_parameters"], checkpoint["state_dict"]
            config: dict[str, Any] = {
                "generator": {"width": settings["width"], "attention": settings["attention"]},
                "segmenter": {"width": settings["segmenter_width"]} if segmenter is None else dict(segmenter.config),
                "size": checkpoint.get("face_size"),
            }
            state = {f"generator.{key}": value for key, value in _below(saved, GENERATOR_PREFIX).items()}
            found = _below(saved, SEGMENTER_PREFIX) if segmenter is None else segmenter.state_dict()
            state |= {f"segmenter.{key}": value for key, value in found.items()}
            check_fit(config, state)
            deoccluder = cls(**config)
            deoccluder.load_state_dict(state)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(
                f"{path} holds no whole stage 1 ({reason}): it is damaged or of another version of deocc"
            ) from error
        return deoccluder

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        return super().train(False)

    def predict_mask(self, masked_face: Tensor) -> Tensor:
        """Masked faces (B, 3, H, W) in [-1, 1] -> confidences (B, 1, H, W) in [0, 1] that a pixel is covered; 0 where it surely is not."""
        with torch.inference_mode():
            mask = self.segmenter.predict_mask(self._shrink(masked_face))
            if mask.shape[2:] != masked_face.shape[2:]:
                mask = F.interpolate(mask, masked_face.shape[2:], mode="bilinear", align_corners=False)
        return _ordinary(mask)

    def forward(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """Complete faces.

        Args:
            masked_face: (B, 3, H, W) in [-1, 1].
            mask: (B, 1, H, W) in [0, 1], 1 = covered.

        Returns:
            (B, 3, H, W) in [-1, 1], equal to `masked_face` where the mask is 0.
        """
        completed_face = masked_face.clone(memory_format=torch.contiguous_format)
        covered = mask.flatten(1).any(1)
        if not bool(covered.any()):
            return completed_face
        with torch.inference_mode():
            chosen_face, chosen_mask = masked_face[covered], mask[covered]  # nothing is generated for bare faces
            generated = self.generator(self._shrink(chosen_face), whole_mask(self._shrink(chosen_mask)))
            if generated.shape != chosen_face.shape:
                generated = F.interpolate(generated, chosen_face.shape[2:], mode="bilinear", align_corners=False)
            completed = compose(chosen_face, generated, chosen_mask)
        completed_face[covered] = completed.to(completed_face.dtype)
        return completed_face

    def _shrink(self, image: Tensor) -> Tensor:
        """The image at the side that the networks work at; a smaller one stays as it is."""
        if self.size is None or image.shape[-1] <= self.size:
            return image
        return F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)


def whole_mask(mask: Tensor) -> Tensor:
    """The mask (B, 1, H, W) in [0, 1] that the generator gets: pixels covered by a quarter or more are hidden from it completely."""
    return (4 * mask).clamp(0, 1)


def check_fit(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
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
    odd = [
        key
        for key in wanted.keys() | state.keys()
        if key not in wanted or key not in state or wanted[key] != state[key].shape
    ]
    if odd:
        raise ValueError(f"{len(odd)} weights are missing, unknown or of another shape, such as {min(odd)}")


def _ordinary(tensor: Tensor) -> Tensor:
    """A copy, in the usual order, that autograd may keep."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
