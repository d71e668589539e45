"""The occlusion segmenter: where no mask is given, it finds what covers a face.

The paper feeds a binary mask, which photographs lack. The segmenter is our choice: a small U-Net (Ronneberger et al., MICCAI 2015).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.networks.layers import check_face, check_width, pad_to_multiple
from deocc.networks.weights import read_checkpoint

STRIDE = 16
"""Inputs are padded to a multiple of it: the coarsest features have a sixteenth of the side."""

_LOWEST = 0.1  # confidences below it become 0, so that pixels which are surely visible keep their exact values


class MaskSegmenter(nn.Module):
    """Maps a face to the logit, per pixel, that something covers it.

    Attributes:
        gate: scalar in [0, 1], the covered share of the crop below which `predict_mask` takes a face for bare. Calibrated on bare faces
            (`calibrate_gate`); 0 until then.
    """

    gate: Tensor

    def __init__(self, width: int = 16) -> None:
        """Build the network.

        Args:
            width: channels at half the side, a multiple of 4; they double with each of the three halvings that follow.

        Raises:
            ValueError: width is out of range.
        """
        super().__init__()
        check_width(width)
        self.config: dict[str, int | bool] = {"width": width}
        self.register_buffer("gate", torch.zeros(()))
        self.down_half = nn.Sequential(nn.PixelUnshuffle(2), _block(12, width))
        self.down_quarter = nn.Sequential(_block(width, 2 * width, stride=2), _block(2 * width, 2 * width))
        self.down_eighth = nn.Sequential(_block(2 * width, 4 * width, stride=2), _block(4 * width, 4 * width))
        # The coarsest layers see the whole crop: a hand has a face's colour, only its place and outline tell.
        self.down_sixteenth = nn.Sequential(
            _block(4 * width, 8 * width, stride=2), _block(8 * width, 8 * width, dilation=2)
        )
        self.up_eighth = _block(12 * width, 4 * width)
        self.up_quarter = _block(6 * width, 2 * width)
        self.up_half = _block(3 * width, width)
        self.to_logits = nn.Sequential(nn.Conv2d(width, 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, face: Tensor) -> Tensor:
        """Map faces to logits.

        Args:
            face: masked or not, (B, 3, H, W) in [-1, 1], any H, W >= 16.

        Returns:
            (B, 1, H, W), positive = covered.

        Raises:
            ValueError: the shape is not this.
        """
        check_face(face)
        half = self.down_half(pad_to_multiple(face, STRIDE))
        quarter = self.down_quarter(half)
        eighth = self.down_eighth(quarter)
        up = self.up_eighth(torch.cat([_double(self.down_sixteenth(eighth)), eighth], 1))
        up = self.up_quarter(torch.cat([_double(up), quarter], 1))
        logits: Tensor = self.to_logits(self.up_half(torch.cat([_double(up), half], 1)))
        return logits[..., : face.shape[-2], : face.shape[-1]]

    @torch.no_grad()
    def predict_mask(self, face: Tensor, dilation: int = 1) -> Tensor:
        """Predict the mask to hand to the generator and the student; not differentiable.

        Args:
            face: as for `forward`.
            dilation: pixels by which the mask grows: a rim of occluder left in view spoils a completion more than a lost visible pixel.

        Returns:
            (B, 1, H, W) in [0, 1], the confidence that a pixel is covered: exactly 0 where it is below 0.1, and everywhere on a face whose
            covered share is below `gate`.

        Raises:
            ValueError: the shape or the dilation is out of range.
        """
        if dilation < 0:
            raise ValueError(f"dilation must be at least 0, got {dilation}")
        confidence = self(face).float().sigmoid()
        kept = predicted_share(confidence) >= self.gate
        mask = F.max_pool2d(confidence, 2 * dilation + 1, stride=1, padding=dilation) * kept[:, None, None, None]
        return torch.where(mask >= _LOWEST, mask, 0.0).to(face.dtype)

    def calibrate_gate(self, bare_shares: Tensor, false_alarms: float = 0.005) -> None:
        """Set `gate` so that at most a share `false_alarms` of bare faces gets a mask.

        Args:
            bare_shares: (N,) the `predicted_share` of bare faces that the segmenter was not trained on.
            false_alarms: in [0, 1).

        Raises:
            ValueError: there are no faces.
        """
        if len(bare_shares) == 0:
            raise ValueError("no bare faces to calibrate the segmenter's gate on: give a validation set with faces")
        allowed = int(false_alarms * len(bare_shares))
        highest = bare_shares.sort(descending=True).values[allowed]
        # Just above the first share that must not pass; a pixel's worth keeps an all-zero prediction below the gate.
        self.gate.copy_((highest * (1 + 1e-4) + 1e-6).to(self.gate))


def predicted_share(confidence: Tensor) -> Tensor:
    """(B,) the share of the crop that confidences (B, 1, H, W) call covered, those above one half."""
    return (confidence > 0.5).float().mean((1, 2, 3))


def load_segmenter(path: str | Path) -> MaskSegmenter:
    """Load the running average of the segmenter from a checkpoint of `SegmentationModule`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint, or one of another stage.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.get("stage") != "segmentation":
        stage = checkpoint.get("stage", "unknown")
        raise ValueError(
            f"{path} is a checkpoint of the stage {stage!r}, not of 'segmentation': give a run of SegmentationModule"
        )
    prefix = "average.module."
    state = {
        key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)
    }
    segmenter = MaskSegmenter(int(checkpoint["hyper_parameters"]["width"]))
    segmenter.load_state_dict(state)
    return segmenter


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _block(before: int, after: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, normalisation within the image (groups of 4 channels), ReLU."""
    conv = nn.Conv2d(before, after, 3, stride, dilation, dilation, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(after // 4, after), nn.ReLU(inplace=True))
