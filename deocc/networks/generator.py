"""De-occlusion generator: completes the covered part of a face.

The paper's figure shows an encoder, an attention-score branch beside a feature branch, and a decoder. Further details
are not known; our choice: gated convolutions and dilated blocks, attention to visible patches only, a
learned position map, one skip connection, and all heavy layers at a quarter of the resolution, trainable on a CPU.

[0] Sugawara et al., "Super-resolution using convolutional neural networks without any checkerboard artifacts", ICIP
    2018.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.networks.layers import (
    DilatedBlock,
    GatedConv2d,
    VisibleAttention,
    check_face_and_mask,
    check_width,
    draw_normal,
    pad_to_multiple,
)

STRIDE = 8
"""Inputs are padded to a multiple of it: features have a quarter of the resolution, attention patches an eighth."""

_CELLS = 14
"""Side of the position map; the canonical crop is 3.5 eye distances wide, so a cell is a quarter of that distance."""


class Generator(nn.Module):
    """Generates a complete face from a masked face and its mask; `compose` pastes the visible pixels back.

    Args:
        width: base number of channels, a multiple of 4; features have 4 * width. 24 suits a CPU, 64 crops of 256
            pixels.
        depth: number of dilated blocks before the branches and again in the feature branch, with dilations 1, 2, 4, ...
        attention: use the attention branch.

    Raises:
        ValueError: `width` or `depth` is out of range.
    """

    def __init__(self, width: int = 48, depth: int = 3, attention: bool = True) -> None:
        super().__init__()
        check_width(width)
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.config: dict[str, int | bool] = {"width": width, "depth": depth, "attention": attention}
        features = 4 * width
        # Space-to-depth: convolutions at full resolution would cost more memory traffic than all other layers.
        self.encoder_half = nn.Sequential(nn.PixelUnshuffle(2), GatedConv2d(16, width))
        self.encoder_quarter = GatedConv2d(width, features, stride=2)
        # Faces are aligned, so the content under a mask depends on its position, which convolutions do not encode.
        self.position = nn.Parameter(torch.empty(1, features, _CELLS, _CELLS))
        draw_normal(self.position, 0.1)
        gain = 1 / math.sqrt(2 * depth)  # with unit gain, each residual block would double the mean square
        dilations = [2**i for i in range(depth)]
        self.fill = nn.Sequential(*(DilatedBlock(features, d, gain) for d in dilations))
        self.feature_branch = nn.Sequential(*(DilatedBlock(features, d, gain) for d in reversed(dilations)))
        self.attention_branch = VisibleAttention(features) if attention else None
        self.merge = GatedConv2d((2 if attention else 1) * features, width, kernel=1)
        self.decoder_half = nn.Sequential(
            GatedConv2d(2 * width, width), GatedConv2d(width, 2 * width), nn.PixelShuffle(2)
        )
        # The full-resolution layer receives the visible pixels again, to continue colours across the mask's edge.
        self.to_image = nn.Conv2d(width // 2 + 4, 3, 3, padding=1)

    def forward(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """Generate faces; covered pixels of the input are ignored.

        Args:
            masked_face: (B, 3, H, W) in [-1, 1], H, W >= 16 (padded by reflection to multiples of 8).
            mask: (B, 1, H, W), 1 = covered.

        Returns:
            (B, 3, H, W) in [-1, 1]; grey for images whose visible pixels are grey.

        Raises:
            ValueError: the shapes do not match.
        """
        visible, padded_mask, half, features = self._encode(masked_face, mask)
        branches = [self.feature_branch(features)]
        if self.attention_branch is not None:
            branches.append(self.attention_branch(features, padded_mask))
        merged = self.merge(torch.cat(branches, 1))
        merged = F.interpolate(merged, scale_factor=2.0, mode="bilinear", align_corners=False)
        full = self.decoder_half(torch.cat([merged, half], 1))
        # A 2 x 2 mean removes the checkerboard artifacts of the pixel shuffle [0].
        full = F.avg_pool2d(F.pad(full, (0, 1, 0, 1), mode="replicate"), 2, stride=1)
        image = torch.tanh(self.to_image(torch.cat([full, visible], 1))[..., : mask.shape[-2], : mask.shape[-1]])
        # As `deocc.masking.render` paints on grey photographs.
        grey = (visible[:, :1] == visible[:, 1:3]).flatten(1).all(1)[:, None, None, None]
        return torch.where(grey, image.mean(1, keepdim=True), image)

    def attend(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """Return the attention weights, for display; arguments as for `forward`.

        Returns:
            (B, h, w, h, w) with h = ceil(H / 8) and w = ceil(W / 8). Entry [b, i, j] contains the weights of all
            patches for the patch (i, j) of 8 x 8 pixels; it sums to 1, or is 0 without any completely visible patch.

        Raises:
            ValueError: the shapes do not match, or the generator has no attention branch.
        """
        if self.attention_branch is None:
            raise ValueError("this generator has no attention branch: build it with attention=True")
        _, padded_mask, _, features = self._encode(masked_face, mask)
        weights: Tensor = self.attention_branch.weights(features, padded_mask)
        rows, columns = (side // STRIDE for side in padded_mask.shape[-2:])
        return weights.reshape(-1, rows, columns, rows, columns)

    def _encode(self, masked_face: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return padded input (B, 4, H', W'), padded mask, and features at half and at a quarter of the resolution."""
        check_face_and_mask(masked_face, mask)
        mask = pad_to_multiple(mask.to(masked_face.dtype), STRIDE)
        visible = torch.cat([pad_to_multiple(masked_face, STRIDE) * (1 - mask), mask], 1)
        half = self.encoder_half(visible)  # for the skip connection
        quarter = self.encoder_quarter(half)
        position = F.interpolate(self.position, quarter.shape[-2:], mode="bilinear", align_corners=False)
        return visible, mask, half, self.fill(quarter + position)


def compose(masked_face: Tensor, generated: Tensor, mask: Tensor) -> Tensor:
    """Paste the visible pixels back: (1 - mask) * masked_face + mask * generated, (B, 3, H, W)."""
    return (1 - mask) * masked_face + mask * generated
