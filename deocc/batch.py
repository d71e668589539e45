"""The batch: keys, shapes and value ranges.

B is the batch size; H = W is the side of the canonical crop in pixels (see `deocc.geometry`). Images are RGB in
[-1, 1].
"""

from typing import NotRequired, TypedDict

from torch import Tensor


class FaceBatch(TypedDict):
    """Clean faces, as a data loader yields them."""

    face: Tensor
    """(B, 3, H, W) in [-1, 1], the clean face in the canonical crop."""
    landmarks: Tensor
    """(B, 5, 2) x, y in pixels of the crop: eye, eye, nose, mouth corner, mouth corner, left to right in the image."""
    identity: Tensor
    """(B,) int64 class label, 0 <= identity < number of identities of the split."""
    mixup_identity: Tensor
    """(B, 2) int64, the identities blended into this face; equal to `identity` without blending."""
    mixup_weight: Tensor
    """(B, 2) float32 >= 0, the weights of these other faces, at most 2/3 in sum; 0 outside training."""
    index: Tensor
    """(B,) int64, the image's position in its face set."""
    flipped: Tensor
    """(B,) bool, true if augmentation mirrored the aligned face; false outside training."""
    kind: Tensor
    """(B,) int64, the occluder's position in `deocc.masking.list_kinds()`; -1 without an occluder."""
    seed: Tensor
    """(B,) int64, determines everything random about the image's mask."""


class MaskedFaceBatch(FaceBatch):
    """Clean faces and their masked versions, as the modules receive them."""

    masked_face: Tensor
    """(B, 3, H, W) in [-1, 1], equal to `face` where `mask` is 0."""
    mask: NotRequired[Tensor]
    """(B, 1, H, W), 1 = covered, 0 = visible. Absent for real occluders, whose masks are unknown; `face` is then the
    occluded face itself."""
    true_mask: NotRequired[Tensor]
    """The mask before noise was added to `mask`. Only in stage 1, and only with `mask_noise`."""
    teacher_embedding: NotRequired[Tensor]
    """(B, D) float32, the teacher's embedding of `face`, not normalised. Only in training, and only if precomputed."""
