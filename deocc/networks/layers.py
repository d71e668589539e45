"""Layers of the inpainting networks, and augmentations of faces and masks.

No layer normalises over the batch, so an image's output does not depend on the other images or on the number of
processes.

[0] Yu et al., "Free-Form Image Inpainting with Gated Convolution", ICCV 2019 (gated convolution, dilated blocks).
[1] Yi et al., "Contextual Residual Aggregation for Ultra High-Resolution Image Inpainting", CVPR 2020 (light gates).
[2] Yu et al., "Generative Image Inpainting with Contextual Attention", CVPR 2018.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_SIDE = 16  # smallest side in pixels that supports reflection padding to a multiple of 8 and four halvings

# Preserves the mean square of activations: for unit normal u, ELU(2.7 u) * 0.5 (untrained gate) has mean square 1.
_GATED_GAIN = 2.7


def check_face(face: Tensor) -> None:
    """Raise ValueError unless `face` is (B, 3, H, W), H and W >= `MIN_SIDE`."""
    if face.ndim != 4 or face.shape[1] != 3 or min(face.shape[2:]) < MIN_SIDE:
        raise ValueError(
            f"expected faces of shape (B, 3, H, W) with H and W of at least {MIN_SIDE} pixels, got {tuple(face.shape)}"
        )


def check_face_and_mask(face: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless `check_face` accepts `face` and `mask` is (B, 1, H, W)."""
    check_face(face)
    expected = (face.shape[0], 1, *face.shape[2:])
    if mask.shape != expected:
        raise ValueError(f"expected a mask of shape {expected} beside the faces, got {tuple(mask.shape)}")


def check_width(width: int) -> None:
    """Raise ValueError unless `width`, the base number of channels, is a positive multiple of 4."""
    if width < 4 or width % 4:
        raise ValueError(f"width must be a positive multiple of 4, got {width}")


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) by reflection at the right and bottom until both sides are multiples of `multiple` (< H, W)."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="reflect")


def draw_normal(weight: Tensor, std: float) -> None:
    """Initialise a weight from a normal distribution of mean 0."""
    if not weight.is_meta:  # without values, a draw would only import torch's compiler, which takes two seconds
        nn.init.normal_(weight, std=std)


class GatedConv2d(nn.Module):
    """ELU(W_f * x) . sigmoid(W_g * x), whose gate learns which positions carry visible content [0].

    The gate is the pixelwise one of [1] (kernel = stride, so that a strided gate still covers every pixel). It costs
    11 % of the layer, where a 3 x 3 gate as in [0] doubles it, and unlike a single-channel gate it acts per channel.

    Kernel and dilation are those of the feature convolution; input sides must be multiples of the stride; `gain` scales
    the initial weights.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, dilation: int = 1, gain: float = 1
    ) -> None:
        super().__init__()
        self.feature = nn.Conv2d(in_channels, out_channels, kernel, stride, dilation * (kernel // 2), dilation)
        self.gate = nn.Conv2d(in_channels, out_channels, stride, stride)
        draw_normal(self.feature.weight, gain * _GATED_GAIN / math.sqrt(in_channels * kernel**2))
        for conv in (self.feature, self.gate):
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        gated: Tensor = F.elu(self.feature(x)) * torch.sigmoid(self.gate(x))
        return gated


class DilatedBlock(nn.Module):
    """Residual dilated gated convolution, which spreads content into a hole faster than plain convolutions [0]."""

    def __init__(self, channels: int, dilation: int, gain: float) -> None:
        super().__init__()
        self.conv = GatedConv2d(channels, channels, dilation=dilation, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        mixed: Tensor = x + self.conv(x)
        return mixed


class VisibleAttention(nn.Module):
    """Reconstructs each patch of 2 x 2 positions from similar patches that are completely visible.

    Follows [2], whose scores are scaled cosines between feature patches and whose values are the features. Here the
    patch embedding and the scale are learned. Scores are computed at half the resolution of the features (as in [2] at
    rate 2): 28 x 28 features need 196 x 196 scores per image instead of 784 x 784.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, channels // 2, 3, stride=2, padding=1)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # softmax scale 10 as in [2]
        nn.init.zeros_(self.embed.bias)  # type: ignore[arg-type]

    def weights(self, features: Tensor, mask: Tensor) -> Tensor:
        """Compute the weights (B, N, N) between N = hw / 4 patches, given features (B, C, h, w) with even h and w.

        Sides of the mask (B, 1, H, W), 1 = covered, are multiples of h / 2 and w / 2. Rows (queries) sum to 1, or to 0
        without a completely visible patch; columns (keys) that contain a covered pixel are 0.
        """
        embedding = F.normalize(self.embed(features).flatten(2), dim=1)
        scores = torch.einsum("beq,bek->bqk", embedding, embedding).float() * self.log_scale.exp()
        patch_side = int(mask.shape[-2]) // (int(features.shape[-2]) // 2)  # ints, also for torch.onnx of torch 2.6
        visible = (F.max_pool2d(mask.float(), patch_side).flatten(2) <= 0).to(scores.dtype)
        # Not -inf: a row without any visible patch must stay finite. The product sets it to 0.
        weights: Tensor = scores.masked_fill(visible == 0, torch.finfo(scores.dtype).min).softmax(-1) * visible
        return weights

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Reconstruct features (B, C, h, w) from visible patches; arguments as for `weights`."""
        patches = F.pixel_unshuffle(features, 2)  # (B, 4C, h / 2, w / 2)
        weights = self.weights(features, mask).to(patches.dtype)
        attended = torch.einsum("bqk,bck->bcq", weights, patches.flatten(2))
        return F.pixel_shuffle(attended.reshape(patches.shape), 2)


def gaussian_blur(face: Tensor, sigma: float) -> Tensor:
    """Blur (B, C, H, W) images with a Gaussian of `sigma` pixels and replicated edges; 0 returns them unchanged."""
    if sigma == 0:
        return face
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=face.device, dtype=face.dtype)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (weights / weights.sum()).expand(face.shape[1], 1, 1, -1)
    padded = F.pad(face, (radius,) * 4, mode="replicate")
    horizontal = F.conv2d(padded, kernel, groups=face.shape[1])
    return F.conv2d(horizontal, kernel.transpose(2, 3), groups=face.shape[1])


def noisy_mask(mask: Tensor, seed: Tensor) -> Tensor:
    """Erode each mask (B, 1, H, W) by a pixel, keep it, or dilate it by one or two, by `seed` (B,) int64."""
    eroded = 1 - F.max_pool2d(1 - mask, 3, stride=1, padding=1)
    dilated = F.max_pool2d(mask, 3, stride=1, padding=1)
    variants = torch.stack([eroded, mask, dilated, F.max_pool2d(dilated, 3, stride=1, padding=1)])
    return variants[seed % 4, torch.arange(len(mask), device=mask.device)]
