"""The inpainting networks' layers: gated convolution, dilated block, attention to visible patches, padding to a multiple.

None normalises over the batch: an image's output must not depend on its neighbours, and one process must equal eight.

[0] Yu et al., "Free-Form Image Inpainting with Gated Convolution", ICCV 2019: gated convolution, dilated middle.
[1] Yi et al., "Contextual Residual Aggregation for Ultra High-Resolution Image Inpainting", CVPR 2020: light-weight gates.
[2] Yu et al., "Generative Image Inpainting with Contextual Attention", CVPR 2018.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_SIDE = 16
"""Pixels: below it, reflection padding to a multiple of 8 and the discriminators' four halvings have nothing to work on."""

# Keeps the mean square of activations: of a unit normal u, the mean square of ELU(2.7 u) * 0.5 (an untrained gate is half open) is 1.
GATED_GAIN = 2.7


def check_face_and_mask(face: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless face is (B, 3, H, W) and mask (B, 1, H, W) of the same B, H, W, with H, W >= `MIN_SIDE`."""
    check_face(face)
    if mask.shape != (face.shape[0], 1, *face.shape[2:]):
        expected = (face.shape[0], 1, *face.shape[2:])
        raise ValueError(
            f"expected a mask of shape {expected} beside a face of {tuple(face.shape)}, got {tuple(mask.shape)}"
        )


def check_face(face: Tensor) -> None:
    """Raise ValueError unless face is (B, 3, H, W) with H, W >= `MIN_SIDE`."""
    if face.ndim != 4 or face.shape[1] != 3 or min(face.shape[2:]) < MIN_SIDE:
        raise ValueError(
            f"expected faces of shape (B, 3, H, W) with H and W of at least {MIN_SIDE} pixels, got {tuple(face.shape)}"
        )


def check_width(width: int) -> None:
    """Raise ValueError unless `width`, a network's unit of channels, is a positive multiple of 4."""
    if width < 4 or width % 4:
        raise ValueError(f"width must be a positive multiple of 4, got {width}")


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) reflected at the right and lower border until both sides are multiples of `multiple` (< H, W)."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="reflect")


class GatedConv2d(nn.Module):
    """ELU(W_f * x) . sigmoid(W_g * x): the gate learns which positions carry visible content [0].

    The gate is the pixelwise light-weight one of [1] (kernel = stride, so that a strided gate still sees every pixel): with a 3 x 3 gate as
    in [0] a layer would cost twice as much, with this one 11 % more; unlike a single-channel gate, it can still close channel by channel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        gain: float = 1.0,
    ) -> None:
        """Output side = input side / stride (sides must be multiples of the stride); `gain` scales the initial weights' effect."""
        super().__init__()
        self.feature = nn.Conv2d(in_channels, out_channels, kernel, stride, dilation * (kernel // 2), dilation)
        self.gate = nn.Conv2d(in_channels, out_channels, stride, stride)
        nn.init.normal_(self.feature.weight, std=gain * GATED_GAIN / math.sqrt(in_channels * kernel**2))
        for conv in (self.feature, self.gate):
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        gated: Tensor = F.elu(self.feature(x)) * torch.sigmoid(self.gate(x))
        return gated


class DilatedBlock(nn.Module):
    """x + GatedConv2d(x): carries content into a hole faster than plain convolutions do, as the dilated middle of [0]; residual: OURS."""

    def __init__(self, channels: int, dilation: int, gain: float) -> None:
        super().__init__()
        self.conv = GatedConv2d(channels, channels, dilation=dilation, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        mixed: Tensor = x + self.conv(x)
        return mixed


class VisibleAttention(nn.Module):
    """Rebuilds each patch of 2 x 2 positions from the wholly visible patches that resemble it.

    OURS in the spirit of [2], whose scores are scaled cosines of feature patches and whose values are the features themselves. Here the
    patch embedding and the scale are learned, and scores live at half the side of the features (as [2] does at rate 2), so that 28 x 28
    features need 196 x 196 scores an image and not 784 x 784.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, channels // 2, 3, stride=2, padding=1)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # [2]: softmax scale 10
        nn.init.zeros_(self.embed.bias)  # type: ignore[arg-type]

    def weights(self, features: Tensor, mask: Tensor) -> Tensor:
        """How much each patch draws on each other.

        Args:
            features: (B, C, h, w), h and w even.
            mask: (B, 1, H, W) pixels, 1 = covered, H and W multiples of h / 2 and w / 2.

        Returns:
            (B, N, N) with N = hw / 4, rows (drawing patches) sum to 1, columns of patches that hold a covered pixel are exactly 0;
            everything is 0 for an image without a wholly visible patch.
        """
        embedding = F.normalize(self.embed(features).flatten(2), dim=1)
        scores = torch.einsum("beq,bek->bqk", embedding, embedding).float() * self.log_scale.exp()
        visible = self._visible(mask, features.shape[-2] // 2).to(scores.dtype)
        # Not -inf: a row without any visible patch must stay finite; the product then clears it.
        weights: Tensor = scores.masked_fill(visible == 0, torch.finfo(scores.dtype).min).softmax(-1) * visible
        return weights

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features (B, C, h, w) and mask as for `weights` -> features redrawn from visible patches, (B, C, h, w)."""
        patches = F.pixel_unshuffle(features, 2)  # (B, 4C, h / 2, w / 2)
        weights = self.weights(features, mask).to(patches.dtype)
        drawn = torch.einsum("bqk,bck->bcq", weights, patches.flatten(2))
        return F.pixel_shuffle(drawn.reshape(patches.shape), 2)

    @staticmethod
    def _visible(mask: Tensor, rows: int) -> Tensor:
        """(B, 1, N): whether each patch of a grid of `rows` rows holds no covered pixel."""
        side = mask.shape[-2] // rows
        return F.max_pool2d(mask.float(), side).flatten(2) <= 0


def gaussian_blur(face: Tensor, sigma: float) -> Tensor:
    """Blur (B, C, H, W) images by a Gaussian of `sigma` pixels, edges repeated; 0 leaves them as they are."""
    if sigma == 0:
        return face
    reach = max(1, round(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=face.device, dtype=face.dtype)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(face.shape[1], 1, 1, -1)
    padded = F.pad(face, (reach,) * 4, mode="replicate")
    across = F.conv2d(padded, weights, groups=face.shape[1])
    return F.conv2d(across, weights.transpose(2, 3), groups=face.shape[1])


def noisy_mask(mask: Tensor, seed: Tensor) -> Tensor:
    """Let each (B, 1, H, W) mask shrink by a pixel, stay, or grow by one or two, as follows from its (B,) int64 seed."""
    shrunk = 1 - F.max_pool2d(1 - mask, 3, stride=1, padding=1)
    grown = F.max_pool2d(mask, 3, stride=1, padding=1)
    variants = torch.stack([shrunk, mask, grown, F.max_pool2d(grown, 3, stride=1, padding=1)])
    return variants[seed % 4, torch.arange(len(mask), device=mask.device)]
