"""The student: a recogniser that is told what the de-occluder made of a face."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from deocc.networks.embedders.registry import Embedder


def widen_stem(embedder: Embedder, extra_channels: int) -> Embedder:
    """Let the first convolution take further channels after red, green and blue, such as a mask; in place.

    The new weights are zero: before training, the embedding does not depend on the new channels. Returns the embedder.

    Raises:
        ValueError: extra_channels < 1, the embedder was widened already, or it has no plain convolution of three channels.
    """
    if extra_channels < 1 or embedder.extra_channels:
        raise ValueError(
            f"{embedder.name} can be widened once, by at least 1 channel: it has {embedder.extra_channels}, got {extra_channels}"
        )
    convolutions = (
        (name, module) for name, module in embedder.network.named_modules() if isinstance(module, nn.Conv2d)
    )
    name, stem = next(((name, module) for name, module in convolutions if module.in_channels == 3), ("", None))
    if stem is None or stem.groups != 1:
        raise ValueError(f"{embedder.name} has no convolution of three channels to widen: choose another student")
    zeros = stem.weight.new_zeros(stem.out_channels, extra_channels, *stem.kernel_size)
    stem.weight = nn.Parameter(torch.cat([stem.weight.detach(), zeros], 1), requires_grad=stem.weight.requires_grad)
    stem.in_channels += extra_channels
    embedder.extra_channels, embedder.widened_layer = extra_channels, name
    return embedder


def widened_weights(embedder: Embedder) -> list[nn.Parameter]:
    """The weight of the convolution that `widen_stem` changed; empty where it changed none."""
    if embedder.widened_layer is None:
        return []
    return [embedder.network.get_parameter(f"{embedder.widened_layer}.weight".removeprefix("."))]


class Projection(nn.Module):
    """A linear map without bias between embeddings of different dimension; the identity where they are equal."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        """Random weights; raises ValueError where a dimension is < 1."""
        super().__init__()
        if min(in_dim, out_dim) < 1:
            raise ValueError(f"embedding dimensions must be positive, got {in_dim} and {out_dim}")
        self.map = nn.Identity() if in_dim == out_dim else nn.Linear(in_dim, out_dim, bias=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim), outside autocast, which would round the embeddings (see `Embedder`)."""
        if isinstance(self.map, nn.Identity):
            return embedding
        with torch.autocast(embedding.device.type, enabled=False):
            projected: Tensor = self.map(embedding.to(self.map.weight.dtype))
        return projected


StudentInput = Literal["completed", "masked", "both"]


class Student(nn.Module):
    """An embedder over the completed face, the masked face or both, and a projection to the teacher's dimension."""

    def __init__(
        self, embedder: Embedder, out_dim: int, student_input: StudentInput = "completed", mask_channel: bool = False
    ) -> None:
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
            raise ValueError(
                f"unknown student_input {student_input!r}: choose one of {', '.join(get_args(StudentInput))}"
            )
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
