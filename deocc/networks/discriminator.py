"""Discriminators: patch-wise real-or-generated logits for the whole crop and for the area around the mask.

A global and a local discriminator are inferred from the paper's figure. The networks are not known; our choice.

[0] Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018.
[1] Iizuka et al., "Globally and Locally Consistent Image Completion", SIGGRAPH 2017 (local crop of half the side).
[2] Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017 (patch-wise logits).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from deocc.networks.layers import MIN_SIDE, check_face_and_mask, check_width

LOCAL_MARGIN = 1.25  # enlargement of the mask's bounding box, to include seams at the mask's edge
_LOCAL_MIN_SIDE = 0.25  # of the local crop, of the shorter image side; smaller crops would be magnified over twice


class PatchDiscriminator(nn.Module):
    """Spectrally normalised [0] convolutions over face and mask with one logit per patch [2], without batch statistics.

    Args:
        width: channels of the first layer, a multiple of 4; the last layers have 4 * width.

    Raises:
        ValueError: `width` is out of range.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        check_width(width)
        channels = (4, width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels[-1], 1, 3, padding=1)))

    def forward(self, face: Tensor, mask: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            face: (B, 3, H, W) in [-1, 1], H, W >= 16.
            mask: (B, 1, H, W), 1 = covered.

        Returns:
            (B, 1, H // 16, W // 16), positive = real.

        Raises:
            ValueError: the shapes do not match.
        """
        check_face_and_mask(face, mask)
        logits: Tensor = self.layers(torch.cat([face, mask.to(face.dtype)], 1))
        return logits


class GlobalLocalDiscriminator(nn.Module):
    """One `PatchDiscriminator` for the whole crop and one for the magnified area around the mask [1]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.whole = PatchDiscriminator(width)
        self.local = PatchDiscriminator(width)

    def forward(self, face: Tensor, mask: Tensor) -> list[Tensor]:
        """Return global and local logits, (B, 1, h, w) each; arguments and errors as for `PatchDiscriminator`."""
        whole = self.whole(face, mask)  # first, since it checks the shapes
        crop = crop_to_mask(torch.cat([face, mask.to(face.dtype)], 1), mask, max(MIN_SIDE, min(face.shape[2:]) // 2))
        return [whole, self.local(crop[:, :3], crop[:, 3:])]


def crop_to_mask(image: Tensor, mask: Tensor, size: int) -> Tensor:
    """Crop a square around each mask and resize it; differentiable with respect to the image.

    Images are independent, unlike in `deocc.geometry.warp`, whose antialiasing depends on the whole batch.

    Args:
        image: (B, C, H, W).
        mask: (B, 1, H, W), 1 = covered.
        size: side of the crop in pixels.

    Returns:
        (B, C, size, size): the bounding box of the mask, made square, enlarged by `LOCAL_MARGIN` and moved into the
        image; the whole image where the mask is empty.
    """
    height, width = mask.shape[-2:]
    extent = torch.tensor([width, height], device=mask.device, dtype=torch.float32)
    # Corners of the bounding box, x before y, in pixels from the top-left corner of the image.
    (left, right), (top, bottom) = _covered_range(mask, 2), _covered_range(mask, 3)
    low, high = torch.stack([left, top], -1), torch.stack([right, bottom], -1)
    side = LOCAL_MARGIN * (high - low).amax(-1, keepdim=True)
    side = side.clamp(_LOCAL_MIN_SIDE * min(height, width), float(max(height, width)))
    # Keep the square inside the image, or the image inside the square where the square is larger.
    near, far = side / 2, extent - side / 2
    centre = ((low + high) / 2).clamp(torch.minimum(near, far), torch.maximum(near, far))
    # Bilinear samples by products with weights, of which every supported torch knows the second derivative.
    steps = (torch.arange(size, device=mask.device) + 0.5) / size - 0.5
    places = ((centre - 0.5)[..., None] + side[..., None] * steps).minimum(extent[:, None] - 1).clamp_min(0)
    columns, rows = (
        (1 - (places[:, axis, :, None] - torch.arange(length, device=mask.device)).abs()).clamp_min(0).to(image.dtype)
        for axis, length in enumerate((width, height))
    )
    with torch.autocast(image.device.type, enabled=False):
        return rows[:, None] @ image @ columns.mT[:, None]


def _covered_range(mask: Tensor, reduced: int) -> tuple[Tensor, Tensor]:
    """Return the first and one past the last covered index (B,) along the axis other than `reduced`; all if empty."""
    covered = (mask > 0).any(reduced).flatten(1)
    index = torch.arange(covered.shape[1], device=mask.device, dtype=torch.float32)
    covered = covered | ~covered.any(1, keepdim=True)
    return torch.where(covered, index, torch.inf).amin(1), torch.where(covered, index + 1, 0.0).amax(1)
