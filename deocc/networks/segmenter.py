"""The occlusion segmenter: where no mask is given, it finds what covers a face.

The paper feeds a binary mask, which photographs lack. All of this is OURS: a small U-Net (Ronneberger et al., MICCAI 2015).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.networks.layers import check_face, check_width, pad_to_multiple

STRIDE = 8
"""Inputs are padded to a multiple of it: the coarsest features lie at an eighth of the side."""


class MaskSegmenter(nn.Module):
    """Face -> the logit, pixel by pixel, that something covers it."""

    def __init__(self, width: int = 16) -> None:
        """Build the network.

        Args:
            width: channels at half the side, a multiple of 4; they double at a quarter and again at an eighth.

        Raises:
            ValueError: width is out of range.
        """
        super().__init__()
        check_width(width)
        self.config: dict[str, int | bool] = {"width": width}
        self.down_half = nn.Sequential(nn.PixelUnshuffle(2), _block(12, width))
        self.down_quarter = _block(width, 2 * width, stride=2)
        # The dilated layer sees two thirds of a 112-pixel crop: a hand has a face's colour, only its place and outline tell.
        self.down_eighth = nn.Sequential(_block(2 * width, 4 * width, stride=2), _block(4 * width, 4 * width, dilation=2))
        self.up_quarter = _block(6 * width, 2 * width)
        self.up_half = _block(3 * width, width)
        self.to_logits = nn.Sequential(nn.Conv2d(width, 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, face: Tensor) -> Tensor:
        """Face, masked or not, (B, 3, H, W) in [-1, 1], any H, W >= 16 -> logits (B, 1, H, W), positive = covered.

        Raises:
            ValueError: the shape is not this.
        """
        check_face(face)
        half = self.down_half(pad_to_multiple(face, STRIDE))
        quarter = self.down_quarter(half)
        up = self.up_quarter(torch.cat([_double(self.down_eighth(quarter)), quarter], 1))
        logits: Tensor = self.to_logits(self.up_half(torch.cat([_double(up), half], 1)))
        return logits[..., : face.shape[-2], : face.shape[-1]]

    def predict_mask(self, face: Tensor, threshold: float = 0.5, dilation: int = 1) -> Tensor:
        """The mask to hand to the generator; not differentiable.

        Args:
            face: as for `forward`.
            threshold: the probability above which a pixel counts as covered, in (0, 1).
            dilation: pixels by which the mask then grows, since a rim of occluder left in view spoils a completion more than a visible
                pixel lost does.

        Returns:
            (B, 1, H, W) of 0 and 1, 1 = covered.

        Raises:
            ValueError: the shape, the threshold or the dilation is out of range.
        """
        if not 0 < threshold < 1 or dilation < 0:
            raise ValueError(f"threshold must lie in (0, 1) and dilation be at least 0, got {threshold} and {dilation}")
        with torch.no_grad():
            mask = (self(face).sigmoid() > threshold).to(face.dtype)
            return F.max_pool2d(mask, 2 * dilation + 1, stride=1, padding=dilation)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _block(before: int, after: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, normalisation within the image (groups of 4 channels), SiLU."""
    conv = nn.Conv2d(before, after, 3, stride, dilation, dilation, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(after // 4, after), nn.SiLU())
