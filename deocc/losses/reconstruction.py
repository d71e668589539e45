"""Reconstruction losses between completed and clean faces: masked l1, local chroma and perceptual.

With error e = mean over channels of |c - y|, mask M (1 = covered) and feature maps f_l normalised over channels at
every position:

    masked l1   w_c mean_images (sum e M / sum M) + w_v mean_images (sum e (1 - M) / sum (1 - M))
    chroma      mean_images (sum_cells mean_channels |sum_cell d M| / sum_cells sum_cell M)
                with d = c - y - mean_channels (c - y)
    perceptual  mean_l mean_positions |f_l(c) - f_l(y)|^2

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385. An l1 term is inferred from it; the form of the
    masked l1 loss and the optional chroma and perceptual terms are our choice.
[1] Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016.
[2] Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018: features of unit
    length over channels, squared distances summed over channels and averaged over positions; [2] learns channel
    weights, here they are equal.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.losses.distances import widen

_CELL = 8  # pixels; cells overlap by half


def masked_l1_loss(
    generated_face: Tensor, face: Tensor, mask: Tensor, covered_weight: float = 1.0, visible_weight: float = 0.1
) -> Tensor:
    """Weighted l1 distance with separate means over covered and visible pixels.

    Means are taken per image and then over images, so that a small mask counts as much as a large one.

    Args:
        generated_face: (B, C, H, W), the generator's output or the completed face, whose visible pixels contribute 0.
        face: clean face (B, C, H, W).
        mask: (B, 1, H, W) in [0, 1], 1 = covered; fractions divide a pixel between both means.
        covered_weight: weight of the covered pixels.
        visible_weight: weight of the visible pixels.

    Returns:
        Scalar loss; the term of an empty region is 0.

    Raises:
        ValueError: the shapes do not match.
    """
    _check_shapes(generated_face, face, mask)
    error = (widen(generated_face) - widen(face)).abs().mean(1, keepdim=True)
    mask = mask.to(error.dtype)
    return covered_weight * _mean_where(error, mask) + visible_weight * _mean_where(error, 1 - mask)


def local_chroma_loss(generated_face: Tensor, face: Tensor, mask: Tensor) -> Tensor:
    """L1 distance of the mean chroma of the covered pixels in each cell of 8 x 8 pixels.

    Chroma is the difference of each channel to their mean, so brightness, which carries the details, is not
    constrained. Grey images have none.

    Args:
        generated_face: (B, C, H, W), the generator's output or the completed face.
        face: clean face (B, C, H, W).
        mask: (B, 1, H, W) in [0, 1], 1 = covered.

    Returns:
        Scalar loss, the mean over images with a non-empty mask; 0 if there are none.

    Raises:
        ValueError: the shapes do not match.
    """
    _check_shapes(generated_face, face, mask)
    difference = widen(generated_face) - widen(face)
    difference = difference - difference.mean(1, keepdim=True)
    mask = mask.to(difference.dtype)
    error, covered = (F.avg_pool2d(image, _CELL, stride=_CELL // 2) for image in (difference * mask, mask))
    return _mean_where(error.abs().mean(1, keepdim=True) / covered.where(covered > 0, covered.new_ones(())), covered)


def feature_distance(completed: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
    """Perceptual distance [1, 2]: squared distance of feature maps normalised over channels.

    Args:
        completed: feature maps (B, C_l, ...) of the completed faces; receive the gradient.
        clean: feature maps of the clean faces, in the same order; detached.

    Returns:
        Scalar in [0, 4], averaged over positions and then over maps.

    Raises:
        ValueError: there are no maps, or shapes differ.
    """
    completed_shapes, clean_shapes = ([tuple(item.shape) for item in maps] for maps in (completed, clean))
    if not completed or completed_shapes != clean_shapes:
        raise ValueError(
            "expected feature maps of equal shapes of completed and clean faces, "
            f"got {completed_shapes} and {clean_shapes}"
        )
    terms = []
    for ours, theirs in zip(completed, clean, strict=True):
        difference = F.normalize(widen(ours), dim=1) - F.normalize(widen(theirs.detach()), dim=1)
        terms.append(difference.square().sum(1).mean())
    return torch.stack(terms).mean()


def _check_shapes(generated_face: Tensor, face: Tensor, mask: Tensor) -> None:
    if generated_face.shape != face.shape or mask.shape != (len(face), 1, *face.shape[2:]):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (generated_face, face, mask))
        raise ValueError(f"expected faces (B, C, H, W) of one shape and a mask (B, 1, H, W), got {shapes}")


def _mean_where(error: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean within each image of (B, 1, H, W), then over images with non-zero weight; 0 if there are none."""
    amount = weight.flatten(1).sum(1)
    present = amount > 0
    means = (error * weight).flatten(1).sum(1) / amount.where(present, amount.new_ones(()))
    return means.sum() / present.sum().clamp_min(1)
