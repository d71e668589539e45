"""Occlusion segmenter: predicts the mask of a face where none is given.

The paper takes a binary mask as input, which photographs lack. A small U-Net (Ronneberger et al., MICCAI 2015) is our
choice.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.networks.layers import check_face, check_width, pad_to_multiple
from deocc.networks.weights import load_weights, read_averaged

STRIDE = 16  # inputs are padded to a multiple of it: the coarsest features have a sixteenth of the resolution
_MIN_CONFIDENCE = 0.1  # lower confidences become 0, so that surely visible pixels keep their exact values
_DILATION = 1  # pixels by which masks grow: a visible rim of the occluder harms a completion more than a lost pixel
_FALSE_ALARMS = 0.005  # largest fraction of unmasked faces that get a mask


class MaskSegmenter(nn.Module):
    """Predicts a logit per pixel that it is covered.

    Args:
        width: channels at half the resolution, a multiple of 4; doubled at each of the three following levels.

    Attributes:
        gate: scalar, the `mask_evidence` below which `predict_mask` considers a face unmasked; 0 until
            `calibrate_gate`.

    Raises:
        ValueError: `width` is out of range.
    """

    gate: Tensor

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        check_width(width)
        self.config: dict[str, int | bool] = {"width": width}
        self.register_buffer("gate", torch.zeros(()))
        self.down_half = nn.Sequential(nn.PixelUnshuffle(2), _block(12, width))
        self.down_quarter = nn.Sequential(_block(width, 2 * width, stride=2), _block(2 * width, 2 * width))
        self.down_eighth = nn.Sequential(_block(2 * width, 4 * width, stride=2), _block(4 * width, 4 * width))
        # The receptive field of the coarsest layers is the whole crop: a hand differs from a face by place and outline.
        self.down_sixteenth = nn.Sequential(
            _block(4 * width, 8 * width, stride=2), _block(8 * width, 8 * width, dilation=2)
        )
        self.up_eighth = _block(12 * width, 4 * width)
        self.up_quarter = _block(6 * width, 2 * width)
        self.up_half = _block(3 * width, width)
        self.to_logits = nn.Sequential(nn.Conv2d(width, 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, face: Tensor) -> Tensor:
        """Compute the logits of masked or unmasked faces.

        Args:
            face: (B, 3, H, W) in [-1, 1], H, W >= 16.

        Returns:
            (B, 1, H, W), positive = covered.

        Raises:
            ValueError: the shape does not match.
        """
        check_face(face)
        half = self.down_half(pad_to_multiple(face, STRIDE))
        quarter = self.down_quarter(half)
        eighth = self.down_eighth(quarter)
        up = self.up_eighth(torch.cat([_upsample(self.down_sixteenth(eighth)), eighth], 1))
        up = self.up_quarter(torch.cat([_upsample(up), quarter], 1))
        logits: Tensor = self.to_logits(self.up_half(torch.cat([_upsample(up), half], 1)))
        return logits[..., : face.shape[-2], : face.shape[-1]]

    @torch.no_grad()
    def predict_mask(self, face: Tensor) -> Tensor:
        """Predict the mask for the generator and the student, grown by a pixel; not differentiable.

        Args:
            face: as for `forward`.

        Returns:
            Confidence (B, 1, H, W) in [0, 1] that a pixel is covered: 0 where it is below 0.1, and everywhere on faces
            whose `mask_evidence` is below `gate`.
        """
        logits = self(face)
        masked = mask_evidence(logits) >= self.gate
        mask = F.max_pool2d(logits.float().sigmoid(), 2 * _DILATION + 1, stride=1, padding=_DILATION)
        mask = mask * masked[:, None, None, None]
        return torch.where(mask >= _MIN_CONFIDENCE, mask, 0.0).to(face.dtype)

    def calibrate_gate(self, bare_evidence: Tensor) -> None:
        """Set `gate` so that at most 0.5 % of bare faces get a mask.

        Args:
            bare_evidence: `mask_evidence` (N,) of bare validation faces, N >= 1.

        Raises:
            ValueError: N is 0.
        """
        if len(bare_evidence) == 0:
            raise ValueError("no bare faces to calibrate the segmenter's gate on: give a validation set with faces")
        highest = bare_evidence.sort(descending=True).values[int(_FALSE_ALARMS * len(bare_evidence))]
        # Just above the highest evidence to reject; the absolute term keeps an empty prediction below the gate.
        self.gate.copy_((highest * (1 + 1e-4) + 1e-6).to(self.gate))


def mask_evidence(logits: Tensor) -> Tensor:
    """Return the cross-entropy (B,) of the empty mask, mean over pixels, for logits (B, 1, H, W).

    On validation people it told masked from bare faces better than the covered area: small occluders that are certain
    count more than large uncertain regions.
    """
    return F.softplus(logits.float()).mean((1, 2, 3))


def load_segmenter(path: str | Path) -> MaskSegmenter:
    """Load the averaged segmenter from a checkpoint of `SegmentationModule`, or the segmenter of a model folder.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is neither, is damaged, belongs to another stage, or has no segmenter.
    """
    state = read_averaged(path, "segmentation", "deoccluder.segmenter.")
    if "to_logits.0.weight" not in state:
        raise ValueError(f"{path} has no segmenter: give the folder of a model that completes faces")
    segmenter = MaskSegmenter(state["to_logits.0.weight"].shape[1])  # not of the settings, which may exaggerate
    load_weights(segmenter, state, Path(path))
    return segmenter


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _block(before: int, after: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, group normalisation (4 channels per group), ReLU."""
    conv = nn.Conv2d(before, after, 3, stride, dilation, dilation, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(after // 4, after), nn.ReLU(inplace=True))
