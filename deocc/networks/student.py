"""The student: a recogniser that is told what the de-occluder made of a face."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from deocc.networks.adaptation import Projection, widen_stem, widened_weights
from deocc.networks.embedder import Embedder

StudentInput = Literal["completed", "masked", "both"]


class Student(nn.Module):
    """An embedder over the completed face, the masked face or both, and a projection to the teacher's dimension."""

    def __init__(self, embedder: Embedder, out_dim: int, student_input: StudentInput = "completed", mask_channel: bool = False) -> None:
        """Wrap and, where needed, widen `embedder`.

        Args:
            embedder: differentiable; changed in place.
            out_dim: dimension of the teacher's embeddings.
            student_input: with "both", the masked face follows the completed one as three further channels.
            mask_channel: whether the mask is a further channel.

        Raises:
            ValueError: an unknown input, or an embedder that cannot be trained or widened.
        """
        super().__init__()
        if student_input not in get_args(StudentInput):
            raise ValueError(f"unknown student_input {student_input!r}: choose one of {', '.join(get_args(StudentInput))}")
        if not embedder.differentiable:
            raise ValueError(f"{embedder.name} cannot be trained: it can be a teacher, not a student")
        self.student_input, self.mask_channel = student_input, mask_channel
        extra_channels = 3 * (student_input == "both") + int(mask_channel)
        self.embedder = widen_stem(embedder, extra_channels) if extra_channels else embedder
        self.projection = Projection(embedder.embedding_dim, out_dim)

    @property
    def needs_completion(self) -> bool:
        """Whether the completed face is looked at."""
        return self.student_input != "masked"

    @property
    def needs_mask(self) -> bool:
        """Whether the embedding depends on the mask, by the completion or as a channel."""
        return self.needs_completion or self.mask_channel

    def forward(self, masked_face: Tensor, completed_face: Tensor, mask: Tensor) -> Tensor:
        """Masked and completed face (B, 3, H, W) in [-1, 1], mask (B, 1, H, W) -> raw embedding (B, out_dim)."""
        extra = [masked_face] * (self.student_input == "both") + [mask] * self.mask_channel
        face = completed_face if self.needs_completion else masked_face
        embedding: Tensor = self.projection(self.embedder(face, torch.cat(extra, 1) if extra else None))
        return embedding

    def trainable(self, blocks: int | None) -> list[nn.Parameter]:
        """The parameters to train: all, or the head, the last `blocks` sections, a widened stem and the projection.

        Raises:
            ValueError: the embedder has not that many sections.
        """
        if blocks is None:
            return list(self.parameters())
        chosen = [*self.embedder.trainable_tail(blocks), *widened_weights(self.embedder), *self.projection.parameters()]
        return list(dict.fromkeys(chosen))  # with all blocks, the stem is among them already


def check_start(student: Student, out_dim: int, interpolation: float) -> None:
    """Raise ValueError where the average would be drawn back to random weights."""
    embedder = student.embedder
    if interpolation < 1 and not (embedder.pretrained and embedder.embedding_dim == out_dim):
        raise ValueError(
            f"interpolation {interpolation} would draw {embedder.name} back to random weights: give interpolation 1.0, "
            f"or a student with trained weights and embeddings of {out_dim} numbers"
        )
