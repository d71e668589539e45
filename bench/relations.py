"""The triplet relation, forward and backward, against the textbook form."""

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measuring import Row, in_own_process, median_ratio, paired_seconds, peak_mebibytes, seconds
from deocc.losses import triplet_relation_loss

DIMENSION = 512
Loss = Callable[[Tensor, Tensor], Tensor]


def textbook_triplet_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """The triplet relation as it is usually written: B x B x D differences, then B x B x B angles."""

    def cosines(embedding: Tensor) -> Tensor:
        directions = F.normalize(embedding[None] - embedding[:, None], dim=2)
        return torch.bmm(directions, directions.transpose(1, 2))

    with torch.no_grad():
        target = cosines(teacher)
    size = len(student)
    return F.huber_loss(cosines(student), target, reduction="sum") / (size * (size - 1) * (size - 2))


def embeddings(size: int) -> tuple[Tensor, Tensor]:
    """Student and teacher embeddings of unit length, (size, 512)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (F.normalize(torch.randn(size, DIMENSION, generator=generator), dim=1) for _ in range(2))
    return student.requires_grad_(), teacher


def value_and_gradient(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    """Of one forward and backward pass."""
    value = loss(student, teacher)
    return float(value.detach()), torch.autograd.grad(value, student)[0]


def against_textbook(size: int, pairs: int = 5) -> Row:
    """Ours against the textbook form at a batch size."""
    ours, reference = in_own_process(times, size, pairs)
    return {
        "what": f"triplet relation, B = {size}",
        "unit": "ms",
        "ours": 1000 * statistics.median(ours),
        "reference": 1000 * statistics.median(reference),
        "ratio": median_ratio(reference, ours),
        "ours_mib": in_own_process(peak, triplet_relation_loss, size),
        "reference_mib": in_own_process(peak, textbook_triplet_relation, size),
        "details": in_own_process(errors, size),
    }


def alone(size: int, max_vertices: int | None) -> Row:
    """Ours at a batch size that the textbook form does not reach: one pass, in which the peak is taken too."""
    memory, taken = in_own_process(single_pass, size, max_vertices)
    vertices = "" if max_vertices is None else f", {max_vertices} vertices"
    return {"what": f"triplet relation, B = {size}{vertices}", "unit": "ms", "ours": 1000 * taken, "ours_mib": memory}


def times(size: int, pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of ours and of the textbook form, in turn."""
    student, teacher = embeddings(size)
    return paired_seconds(
        lambda: value_and_gradient(triplet_relation_loss, student, teacher),
        lambda: value_and_gradient(textbook_triplet_relation, student, teacher),
        pairs,
    )


def peak(loss: Loss, size: int) -> float:
    """MiB that one pass takes, after one with a small batch has loaded what a first pass loads."""
    value_and_gradient(loss, *embeddings(8))
    student, teacher = embeddings(size)
    return peak_mebibytes(lambda: value_and_gradient(loss, student, teacher))


def single_pass(size: int, max_vertices: int | None) -> tuple[float, float]:
    """MiB and seconds of one pass."""
    taken: list[float] = []

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return triplet_relation_loss(student, teacher, max_vertices=max_vertices)

    value_and_gradient(loss, *embeddings(8))
    student, teacher = embeddings(size)
    memory = peak_mebibytes(lambda: taken.append(seconds(lambda: value_and_gradient(loss, student, teacher))))
    return memory, taken[0]


def errors(size: int) -> dict[str, float]:
    """Relative differences from the textbook form."""
    student, teacher = embeddings(size)
    (value, slope), (expected, expected_slope) = (
        value_and_gradient(loss, student, teacher) for loss in (triplet_relation_loss, textbook_triplet_relation)
    )
    return {
        "value, relative difference": abs(value / expected - 1),
        "gradient, relative difference": float((slope - expected_slope).norm() / expected_slope.norm()),
    }
