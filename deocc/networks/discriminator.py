"""Discriminators: is a face real, patch by patch, in the whole crop and around the mask?

That there is a global and a local one is inferred from the paper's figure; the networks are OURS.

[0] Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018.
[1] Iizuka et al., "Globally and Locally Consistent Image Completion", SIGGRAPH 2017: a local crop of half the side around the hole.
[2] Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017: logits patch by patch.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from deocc.networks.layers import MIN_SIDE, check_face_and_mask, check_width

LOCAL_MARGIN = 1.25  # the box's side grows by it, since seams show at the mask's rim
LOCAL_LEAST = 0.25  # of the shorter side: a smaller box would be magnified more than twice


class PatchDiscriminator(nn.Module):
    """Strided convolutions over face and mask; each logit judges a patch [2]. Spectrally normalised [0], no batch statistics."""

    def __init__(self, width: int = 32, spectral_norm: bool = True) -> None:
        """Build the network.

        Args:
            width: channels of the first layer, a multiple of 4; the last ones have 4 * width.
            spectral_norm: whether to bound each layer's Lipschitz constant [0].

        Raises:
            ValueError: width is out of range.
        """
        super().__init__()
        check_width(width)
        self.config: dict[str, int | bool] = {"width": width, "spectral_norm": spectral_norm}
        layers: list[nn.Module] = []
        channels = (4, width, 2 * width, 4 * width, 4 * width)
        for before, after in pairwise(channels):
            layers += [_conv(nn.Conv2d(before, after, 4, stride=2, padding=1), spectral_norm), nn.LeakyReLU(0.2)]
        layers.append(_conv(nn.Conv2d(channels[-1], 1, 3, padding=1), spectral_norm))
        self.layers = nn.Sequential(*layers)

    def forward(self, face: Tensor, mask: Tensor) -> Tensor:
        """Face (B, 3, H, W) in [-1, 1] and mask (B, 1, H, W), H, W >= 16 -> logits (B, 1, H // 16, W // 16), positive = real.

        Raises:
            ValueError: the shapes are not these.
        """
        check_face_and_mask(face, mask)
        logits: Tensor = self.layers(torch.cat([face, mask.to(face.dtype)], 1))
        return logits


class GlobalLocalDiscriminator(nn.Module):
    """One patch discriminator for the whole crop, another for the surroundings of the mask, looked at from nearby."""

    def __init__(self, width: int = 32, spectral_norm: bool = True) -> None:
        """Arguments as for `PatchDiscriminator`."""
        super().__init__()
        self.config: dict[str, int | bool] = {"width": width, "spectral_norm": spectral_norm}
        self.whole = PatchDiscriminator(width, spectral_norm)
        self.local = PatchDiscriminator(width, spectral_norm)

    def forward(self, face: Tensor, mask: Tensor) -> list[Tensor]:
        """Face (B, 3, H, W) in [-1, 1] and mask (B, 1, H, W) -> [global logits, local logits], each (B, 1, *, *), positive = real.

        Raises:
            ValueError: the shapes are not these.
        """
        check_face_and_mask(face, mask)
        crop = crop_to_mask(torch.cat([face, mask.to(face.dtype)], 1), mask, max(MIN_SIDE, min(face.shape[2:]) // 2))
        return [self.whole(face, mask), self.local(crop[:, :3], crop[:, 3:])]


def crop_to_mask(image: Tensor, mask: Tensor, size: int) -> Tensor:
    """A square crop around each image's mask, resized; differentiable in the image. OURS.

    Not `deocc.geometry.warp`, which chooses one antialiased copy for a whole batch: here no image may depend on its neighbours.

    Args:
        image: (B, C, H, W).
        mask: (B, 1, H, W), 1 = covered.
        size: side of the crop in pixels.

    Returns:
        (B, C, size, size): the mask's bounding box, made square, grown by `LOCAL_MARGIN` and moved into the image; the whole image where
        the mask is empty.
    """
    centre, side = _square_around(mask)
    extent = torch.tensor([mask.shape[-1], mask.shape[-2]], device=mask.device, dtype=torch.float32)
    theta = torch.cat([torch.diag_embed(side / extent), (2 * centre / extent - 1).unsqueeze(-1)], -1)
    grid = F.affine_grid(theta, [image.shape[0], image.shape[1], size, size], align_corners=False)
    return F.grid_sample(image, grid.to(image.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def _square_around(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (B, 2) and sides (B, 1) of the crops, x before y, in pixels from the upper left *corner* of the image."""
    (left, right), (top, bottom) = _bounds(mask, 2), _bounds(mask, 3)
    low, high = torch.stack([left, top], -1), torch.stack([right, bottom], -1)
    extent = torch.tensor([mask.shape[-1], mask.shape[-2]], device=mask.device, dtype=torch.float32)
    side = (LOCAL_MARGIN * (high - low).amax(-1, keepdim=True)).clamp(
        LOCAL_LEAST * float(min(mask.shape[-2:])), float(max(mask.shape[-2:]))
    )
    near, far = side / 2, extent - side / 2
    # Where the square is larger than the image, far < near, and these bounds keep the image inside the square instead.
    return ((low + high) / 2).clamp(torch.minimum(near, far), torch.maximum(near, far)), side


def _bounds(mask: Tensor, reduced: int) -> tuple[Tensor, Tensor]:
    """First and one past the last covered index, (B,) each, along the axis that is left when axis `reduced` is; all of it if empty."""
    covered = (mask > 0).any(reduced).flatten(1)
    index = torch.arange(covered.shape[1], device=mask.device, dtype=torch.float32)
    covered = covered | ~covered.any(1, keepdim=True)
    return torch.where(covered, index, torch.inf).amin(1), torch.where(covered, index + 1, 0.0).amax(1)


def _conv(conv: nn.Conv2d, spectral_norm: bool) -> nn.Module:
    return parametrizations.spectral_norm(conv) if spectral_norm else conv
