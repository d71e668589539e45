"""The de-occlusion generator: fills what a mask covers.

The paper's figure shows an encoder, an attention-score branch beside a feature branch, and a decoder; nothing more is known. OURS:
gated convolutions and a dilated middle (see `deocc.networks.layers`), attention from every patch to visible patches only, a learned map
of positions, one skip connection, and all heavy layers at a quarter of the side, so that a CPU can train it.
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
    pad_to_multiple,
)

STRIDE = 8
"""Inputs are padded to a multiple of it: features lie at a quarter of the side, attention patches at an eighth."""

POSITION_CELLS = (
    14  # a side: the canonical crop is 3.5 eye distances wide, so that a cell is a quarter of the eye distance
)


class Generator(nn.Module):
    """Masked face and mask -> a whole face, of which `complete` keeps what the mask covers."""

    def __init__(self, width: int = 48, depth: int = 3, attention: bool = True) -> None:
        """Build the network.

        Args:
            width: unit of channels, a multiple of 4; features have 4 * width of them. 24 trains on a CPU, 64 is the size for 256 pixels.
            depth: dilated blocks before and again after the branches part, of dilations 1, 2, 4, ... and back.
            attention: whether the attention branch exists.

        Raises:
            ValueError: width or depth is out of range.
        """
        super().__init__()
        check_width(width)
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.config: dict[str, int | bool] = {"width": width, "depth": depth, "attention": attention}
        features = 4 * width
        # Space-to-depth instead of convolutions at the full side, where memory traffic would cost more than all of the middle.
        self.encoder_half = nn.Sequential(nn.PixelUnshuffle(2), GatedConv2d(16, width))
        self.encoder_quarter = GatedConv2d(width, features, stride=2)
        # Convolutions do not know where they are, but faces are aligned: what lies under a mask follows from its place in the crop.
        self.position = nn.Parameter(0.1 * torch.randn(1, features, POSITION_CELLS, POSITION_CELLS))
        gain = 1 / math.sqrt(
            2 * depth
        )  # residual branches of unit gain would double the activations' mean square with every block
        dilations = [2**i for i in range(depth)]
        self.fill = nn.Sequential(*(DilatedBlock(features, d, gain) for d in dilations))
        self.feature_branch = nn.Sequential(*(DilatedBlock(features, d, gain) for d in reversed(dilations)))
        self.attention_branch = VisibleAttention(features) if attention else None
        self.merge = GatedConv2d((2 if attention else 1) * features, width, kernel=1)
        self.decoder_half = nn.Sequential(
            GatedConv2d(2 * width, width), GatedConv2d(width, 2 * width), nn.PixelShuffle(2)
        )
        # The one layer at the full side sees the visible pixels again, so that colours can run on across the mask's rim.
        self.to_image = nn.Conv2d(width // 2 + 4, 3, 3, padding=1)

    def forward(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """The generated face; what lies under the mask is never seen.

        Args:
            masked_face: (B, 3, H, W) in [-1, 1], any H, W >= 16 (padded by reflection to multiples of 8 inside).
            mask: (B, 1, H, W), 1 = covered.

        Returns:
            (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: the shapes are not these.
        """
        visible, padded_mask = self._input(masked_face, mask)
        half, features = self._encode(visible)
        branches = [self.feature_branch(features)]
        if self.attention_branch is not None:
            branches.append(self.attention_branch(features, padded_mask))
        merged = F.interpolate(
            self.merge(torch.cat(branches, 1)), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        full = _smooth(self.decoder_half(torch.cat([merged, half], 1)))
        image = self.to_image(torch.cat([full, visible], 1))
        return _grey_where_grey(torch.tanh(image[..., : mask.shape[-2], : mask.shape[-1]]), visible)

    def attend(self, masked_face: Tensor, mask: Tensor) -> Tensor:
        """Where the attention branch looks, for display.

        Returns:
            (B, h, w, h, w), h = ceil(H / 8), w = ceil(W / 8): entry [b, i, j] is the map of weights over visible patches from which patch
            (i, j) of 8 x 8 pixels is drawn; it sums to 1, or is 0 where no patch is wholly visible.

        Raises:
            ValueError: the shapes are not those of `forward`, or the generator was built without attention.
        """
        if self.attention_branch is None:
            raise ValueError("this generator has no attention branch: build it with attention=True")
        visible, padded_mask = self._input(masked_face, mask)
        weights: Tensor = self.attention_branch.weights(self._encode(visible)[1], padded_mask)
        rows, columns = (side // STRIDE for side in padded_mask.shape[-2:])
        return weights.reshape(-1, rows, columns, rows, columns)

    def _input(self, masked_face: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The padded network input, visible pixels above the mask (B, 4, H', W'), and the padded mask (B, 1, H', W')."""
        check_face_and_mask(masked_face, mask)
        mask = pad_to_multiple(mask.to(masked_face.dtype), STRIDE)
        return torch.cat([pad_to_multiple(masked_face, STRIDE) * (1 - mask), mask], 1), mask

    def _encode(self, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Features at half the side, for the skip connection, and at a quarter, filled, before the branches part."""
        half: Tensor = self.encoder_half(visible)
        quarter: Tensor = self.encoder_quarter(half)
        position = F.interpolate(self.position, quarter.shape[-2:], mode="bilinear", align_corners=False)
        return half, self.fill(quarter + position)


def _smooth(x: Tensor) -> Tensor:
    """Average each 2 x 2 neighbourhood of (B, C, H, W), so that the pixel shuffle before it leaves no checkerboard.

    [3] Sugawara, Shiota, Kiya, "Super-resolution using convolutional neural networks without any checkerboard artifacts", ICIP 2018.
    """
    return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, stride=1)


def _grey_where_grey(generated: Tensor, visible: Tensor) -> Tensor:
    """Complete a grey photograph in grey, image by image, as `deocc.masking.render` paints on it: colour there would only be a trace."""
    red, green, blue = visible[:, 0], visible[:, 1], visible[:, 2]
    grey = ((red == green) & (green == blue)).flatten(1).all(1)[:, None, None, None]
    return torch.where(grey, generated.mean(1, keepdim=True), generated)


def compose(masked_face: Tensor, generated: Tensor, mask: Tensor) -> Tensor:
    """(1 - mask) * masked_face + mask * generated: the visible pixels pasted back; (B, 3, H, W)."""
    return (1 - mask) * masked_face + mask * generated


def complete(generator: nn.Module, masked_face: Tensor, mask: Tensor) -> Tensor:
    """The completed face: generated where `mask` is 1, the pixels of `masked_face` where it is 0; (B, 3, H, W) in [-1, 1]."""
    return compose(masked_face, generator(masked_face, mask), mask)
