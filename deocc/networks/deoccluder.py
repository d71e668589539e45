"""Frozen stage-1 networks as used by stage 2 and inference: segmenter and generator, loaded from a checkpoint.

Both work at the resolution of stage 1. Larger crops are reduced for them, and only covered pixels are taken from the
enlarged result, so that visible pixels keep their sharpness for the recogniser.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.messages import describe_error
from deocc.networks.generator import Generator, compose
from deocc.networks.segmenter import MaskSegmenter, load_segmenter
from deocc.networks.weights import read_checkpoint, read_model_folder, sub_state


class Deoccluder(nn.Module):
    """Completes masked faces and predicts their masks; frozen, in evaluation mode and channels-last format.

    It runs in inference mode but returns ordinary tensors, which a student's backward pass may save.

    Args:
        generator: `config` of the generator.
        segmenter: `config` of the segmenter.
        size: side in pixels at which both work; None uses the side of the input.
    """

    def __init__(self, generator: Mapping[str, Any], segmenter: Mapping[str, Any], size: int | None = None) -> None:
        super().__init__()
        self.size = size
        self.generator = Generator(**generator)
        self.segmenter = MaskSegmenter(**segmenter)
        self.requires_grad_(False).eval()
        # Activations follow the memory format of the weights: 1.15 times as fast on a CPU core.
        self.generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that rebuild it: `Deoccluder(**config)`."""
        return {"generator": dict(self.generator.config), "segmenter": dict(self.segmenter.config), "size": self.size}

    @classmethod
    def from_checkpoint(cls, path: str | Path, segmenter_checkpoint: str | Path | None = None) -> Self:
        """Load the averaged generator and a segmenter.

        Args:
            path: stage-1 checkpoint, or a model folder.
            segmenter_checkpoint: what `load_segmenter` accepts; None uses the segmenter that `path` contains.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a file is damaged or belongs to another stage, or there is no segmenter.
        """
        path = Path(path)
        if path.is_dir():
            expected = "a model folder with a de-occluder"
            remedy = "give a stage-1 run, or a model folder that `deocc test` wrote"
            described, weights = read_model_folder(path)
        else:
            expected, remedy = "a complete stage-1 checkpoint", "it is damaged or of another version of deocc"
            checkpoint = read_checkpoint(path, "inpainting")
            if segmenter_checkpoint is None and checkpoint["hyper_parameters"].get("segmenter_width") is None:
                raise ValueError(f"{path} has no segmenter: give a run of SegmentationModule as segmenter_checkpoint")
        segmenter = None if segmenter_checkpoint is None else load_segmenter(segmenter_checkpoint)
        try:
            if path.is_dir():
                config, state = described["deoccluder"], sub_state(weights, "deoccluder.")
            else:
                settings, saved = checkpoint["hyper_parameters"], checkpoint["state_dict"]
                config = {
                    "generator": {"width": settings["width"], "attention": settings["attention"]},
                    "segmenter": {"width": settings.get("segmenter_width")},
                    "size": checkpoint.get("face_size"),
                }
                state = {f"generator.{key}": value for key, value in sub_state(saved, "average.module.").items()}
                state |= {key: value for key, value in saved.items() if key.startswith("segmenter.")}
            if segmenter is not None:
                config = {**config, "segmenter": segmenter.config}
                state = {key: value for key, value in state.items() if not key.startswith("segmenter.")}
                state |= {f"segmenter.{key}": value for key, value in segmenter.state_dict().items()}
            check_fit(config, state)
            deoccluder = cls(**config)
            deoccluder.load_state_dict(state)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is not {expected} ({describe_error(error, 160)}): {remedy}") from error
        return deoccluder

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def predict_mask(self, masked_face: Tensor) -> Tensor:
        """Predict masks; see `MaskSegmenter.predict_mask`.

        Args:
            masked_face: (B, 3, H, W) in [-1, 1].

        Returns:
            Confidence (B, 1, H, W) in [0, 1] that a pixel is covered; exactly 0 where it is surely visible.
        """
        with torch.inference_mode():
            mask = self.segmenter.predict_mask(self._reduce(masked_face))
            if mask.shape[2:] != masked_face.shape[2:]:
                mask = F.interpolate(mask, masked_face.shape[2:], mode="bilinear", align_corners=False)
        return mask.clone(memory_format=torch.contiguous_format)  # outside inference mode: an ordinary tensor

    def forward(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """Complete faces; unmasked faces are not processed.

        Args:
            masked_face: (B, 3, H, W) in [-1, 1].
            mask: (B, 1, H, W) in [0, 1], 1 = covered.

        Returns:
            (B, 3, H, W) in [-1, 1], equal to `masked_face` where the mask is 0.
        """
        completed_face = masked_face.clone(memory_format=torch.contiguous_format)
        masked = mask.flatten(1).any(1)
        if not bool(masked.any()):
            return completed_face
        with torch.inference_mode():
            face, face_mask = masked_face[masked], mask[masked]
            generated = self.generator(self._reduce(face), whole_mask(self._reduce(face_mask)))
            if generated.shape != face.shape:
                generated = F.interpolate(generated, face.shape[2:], mode="bilinear", align_corners=False)
            completed = compose(face, generated, face_mask)
        completed_face[masked] = completed.to(completed_face.dtype)
        return completed_face

    def _reduce(self, image: Tensor) -> Tensor:
        """Resize larger images to the side at which the networks work."""
        if self.size is None or image.shape[-1] <= self.size:
            return image
        return F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)


def whole_mask(mask: Tensor) -> Tensor:
    """Return the mask (B, 1, H, W) for the generator, which completely hides pixels covered by at least a quarter."""
    return (4 * mask).clamp(0, 1)


def check_fit(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Check that a state dict fits a `Deoccluder.config` without allocating the network, whose size may be exaggerated.

    Raises:
        ValueError: names or shapes differ.
        KeyError, TypeError, RuntimeError: an entry of `config` is missing or has the wrong type.
    """
    if config["generator"].get("depth", 1) > len(state):  # every block has weights
        raise ValueError(f"a depth of {config['generator']['depth']} for {len(state)} weights")
    with torch.device("meta"):
        expected = {key: value.shape for key, value in Deoccluder(**config).state_dict().items()}
    found = {key: value.shape for key, value in state.items()}
    differing = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
    if differing:
        raise ValueError(f"{len(differing)} weights are missing, unknown or of another shape, such as {min(differing)}")
