"""Student: an embedder that takes the completed face, optionally with the masked face and the mask."""

from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from deocc.networks.embedders.embedder import Embedder
from deocc.networks.weights import load_weights, read_averaged

StudentInput = Literal["completed", "masked", "both"]
BareFaces = Literal["student", "teacher"]
"""The network that embeds faces with an empty mask."""


def widen_stem(embedder: Embedder, extra_channels: int) -> Embedder:
    """Extend the first convolution, in place, to accept channels after red, green and blue, such as a mask.

    The new weights are zero, so an embedding does not depend on the new channels before training.

    Args:
        embedder: not yet widened.
        extra_channels: number of new channels, at least 1.

    Returns:
        The embedder.

    Raises:
        ValueError: `extra_channels` < 1, the embedder is already widened, or it has no plain convolution of three
            channels.
    """
    if extra_channels < 1 or embedder.extra_channels:
        raise ValueError(
            f"{embedder.name} can be widened once, by at least 1 channel: "
            f"it has {embedder.extra_channels}, got {extra_channels}"
        )
    convolutions = [(name, m) for name, m in embedder.network.named_modules() if isinstance(m, nn.Conv2d)]
    name, stem = next(((name, conv) for name, conv in convolutions if conv.in_channels == 3), ("", None))
    if stem is None or stem.groups != 1:
        raise ValueError(f"{embedder.name} has no convolution of three channels to widen: choose another student")
    zeros = stem.weight.new_zeros(stem.out_channels, extra_channels, *stem.kernel_size)
    stem.weight = nn.Parameter(torch.cat([stem.weight.detach(), zeros], 1), requires_grad=stem.weight.requires_grad)
    stem.in_channels += extra_channels
    embedder.extra_channels, embedder.widened_layer = extra_channels, name
    return embedder


class Projection(nn.Module):
    """Linear map without bias between embedding dimensions; the identity if they are equal."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        if min(in_dim, out_dim) < 1:
            raise ValueError(f"embedding dimensions must be positive, got {in_dim} and {out_dim}")
        self.map = nn.Identity() if in_dim == out_dim else nn.Linear(in_dim, out_dim, bias=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (..., in_dim) to (..., out_dim), outside autocast, which would round embeddings (see `Embedder`)."""
        if isinstance(self.map, nn.Identity):
            return embedding
        with torch.autocast(embedding.device.type, enabled=False):
            projected: Tensor = self.map(embedding.to(self.map.weight.dtype))
        return projected


class Student(nn.Module):
    """Embedder over the completed face, the masked face or both, with a projection to the teacher's dimension.

    Args:
        embedder: differentiable embedder; widened in place where needed.
        out_dim: dimension of the teacher's embeddings.
        student_input: "completed", "masked", or "both", where the masked face follows as three further channels.
        mask_channel: add the mask as a further channel.

    Raises:
        ValueError: unknown `student_input`, or the embedder cannot be trained or widened.
    """

    def __init__(
        self, embedder: Embedder, out_dim: int, student_input: StudentInput = "completed", mask_channel: bool = False
    ) -> None:
        super().__init__()
        if student_input not in get_args(StudentInput):
            raise ValueError(
                f"unknown student_input {student_input!r}: choose one of {', '.join(get_args(StudentInput))}"
            )
        if not embedder.differentiable:
            raise ValueError(f"{embedder.name} cannot be trained: it can be a teacher, not a student")
        self.student_input, self.mask_channel = student_input, mask_channel
        self.needs_completion = student_input != "masked"  # the embedding depends on the completed face
        self.needs_mask = self.needs_completion or mask_channel  # it depends on the mask
        extra_channels = 3 * (student_input == "both") + int(mask_channel)
        self.embedder = widen_stem(embedder, extra_channels) if extra_channels else embedder
        self.projection = Projection(embedder.embedding_dim, out_dim)

    def forward(self, masked_face: Tensor, completed_face: Tensor, mask: Tensor) -> Tensor:
        """Embed faces.

        Args:
            masked_face: (B, 3, S, S) in [-1, 1].
            completed_face: (B, 3, S, S) in [-1, 1].
            mask: (B, 1, S, S), 1 = covered.

        Returns:
            Embeddings (B, out_dim), not normalised.
        """
        extra = [masked_face] if self.student_input == "both" else []
        if self.mask_channel:
            extra.append(mask)
        face = completed_face if self.needs_completion else masked_face
        embedding: Tensor = self.projection(self.embedder(face, torch.cat(extra, 1) if extra else None))
        return embedding

    def trainable(self, blocks: int | None) -> list[nn.Parameter]:
        """Select head, widened stem, projection and the `blocks` last sections for training; None selects all."""
        if blocks is None:
            return list(self.parameters())
        chosen = self.embedder.trainable_tail(blocks)
        if self.embedder.widened_layer is not None:
            chosen.append(self.embedder.network.get_parameter(f"{self.embedder.widened_layer}.weight"))
        chosen += self.projection.parameters()
        return list(dict.fromkeys(chosen))  # with all blocks, the stem is already included


def load_student(student: Student, path: str | Path) -> None:
    """Copy into a student the weights of the averaged student of a stage-2 checkpoint, or of a model folder.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is neither, is damaged, belongs to another stage, or has a student of other settings.
    """
    load_weights(student, read_averaged(path, "distillation", "student."), Path(path))


def embed_by_mask(
    student: nn.Module, teacher: nn.Module, masked_face: Tensor, completed_face: Tensor, mask: Tensor
) -> Tensor:
    """Embed faces with an empty mask by the teacher and all others by the student.

    Args:
        student: maps masked faces, completed faces and masks to embeddings (B, D), as `Student.forward`.
        teacher: maps faces (B, 3, S, S) to embeddings (B, D).
        masked_face: as for `Student.forward`.
        completed_face: as for `Student.forward`.
        mask: as for `Student.forward`.

    Returns:
        Embeddings (B, D), not normalised.
    """
    masked = mask.flatten(1).amax(1) > 0
    if bool(masked.all()):
        return cast(Tensor, student(masked_face, completed_face, mask))
    bare_embedding: Tensor = teacher(masked_face[~masked])
    embedding = bare_embedding.new_empty(len(mask), bare_embedding.shape[1])
    embedding[~masked] = bare_embedding
    if bool(masked.any()):
        embedding[masked] = student(masked_face[masked], completed_face[masked], mask[masked])
    return embedding


def check_bare_faces(bare_faces: BareFaces, teacher: Embedder) -> None:
    """Raise ValueError if a teacher that embeds bare faces cannot be stored: its weights are in an ONNX file."""
    if bare_faces == "teacher" and not teacher.state_dict():
        raise ValueError(
            f"bare_faces teacher stores the teacher, but {teacher.name!r} has its weights in a file of "
            "another format: give bare_faces student"
        )


def check_start(student: Student, out_dim: int, interpolation: float) -> None:
    """Raise ValueError for an interpolation < 1 from random weights, also of the projection to `out_dim`."""
    embedder = student.embedder
    if interpolation < 1 and not (embedder.pretrained and embedder.embedding_dim == out_dim):
        raise ValueError(
            f"interpolation {interpolation} would draw {embedder.name} back to random weights: give interpolation 1.0, "
            f"or a student with trained weights and embeddings of {out_dim} numbers"
        )
