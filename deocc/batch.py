"""The batch: its keys, shapes and value ranges, said once.

B is the batch size; H = W = the canonical crop's side in pixels (see `deocc.geometry`). Images are RGB in [-1, 1].
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
    """(B,) int64, 0 <= identity < number of people of the split."""
    other_identity: Tensor
    """(B, 2) int64, whose faces are blended into this one; equal to `identity` where none are."""
    other_share: Tensor
    """(B, 2) float32 >= 0, the shares of these other faces, at most 2/3 together; 0 outside training."""
    index: Tensor
    """(B,) int64, the image's position in its face set."""
    flipped: Tensor
    """(B,) bool, whether training mirrored the aligned face; False outside training."""
    kind: Tensor
    """(B,) int64, the occluder's position in `deocc.masking.list_kinds()`; -1 where no occluder lies on the face."""
    seed: Tensor
    """(B,) int64, from which everything random about the image's mask follows."""


class MaskedFaceBatch(FaceBatch):
    """Clean faces and their masked twins, as the modules receive them."""

    masked_face: Tensor
    """(B, 3, H, W) in [-1, 1], equal to `face` wherever `mask` is 0."""
    mask: NotRequired[Tensor]
    """(B, 1, H, W), 1 = covered, 0 = visible. Absent where the occluders are real, so that nobody knows what they cover; `face` is then the
    occluded face itself."""
    teacher_embedding: NotRequired[Tensor]
    """(B, D) float32, what stage 2's teacher gives for `face`, of any length. Only in training, where it is known beforehand."""
