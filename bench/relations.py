"""Forward and backward pass of the triplet relation, compared with the textbook implementation."""

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
    """Triplet relation as it is usually written: B x B x D differences, then B x B x B angles."""

    def cosines(embedding: Tensor) -> Tensor:
        directions = F.normalize(embedding[None] - embedding[:, None], dim=2)
        return torch.bmm(directions, directions.transpose(1, 2))

    with torch.no_grad():
        target = cosines(teacher)
    size = len(student)
    return F.huber_loss(cosines(student), target, reduction="sum") / (size * (size - 1) * (size - 2))


def measure_against_textbook(size: int, pairs: int = 5) -> Row:
    """Compare ours with the textbook implementation at one batch size."""
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


def measure_alone(size: int, max_anchors: int | None) -> Row:
    """Measure ours at a batch size that the textbook implementation cannot reach; one pass gives time and peak."""
    memory, taken = in_own_process(single_pass, size, max_anchors)
    anchors = "" if max_anchors is None else f", {max_anchors} anchors"
    return {"what": f"triplet relation, B = {size}{anchors}", "unit": "ms", "ours": 1000 * taken, "ours_mib": memory}


def embeddings(size: int) -> tuple[Tensor, Tensor]:
    """Return student and teacher embeddings of unit length, (size, 512)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (F.normalize(torch.randn(size, DIMENSION, generator=generator), dim=1) for _ in range(2))
    return student.requires_grad_(), teacher


def value_and_gradient(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    """Run one forward and backward pass."""
    value = loss(student, teacher)
    return float(value.detach()), torch.autograd.grad(value, student)[0]


def times(size: int, pairs: int) -> tuple[list[float], list[float]]:
    """Return the seconds of ours and of the textbook implementation, measured alternately."""
    student, teacher = embeddings(size)
    return paired_seconds(
        lambda: value_and_gradient(triplet_relation_loss, student, teacher),
        lambda: value_and_gradient(textbook_triplet_relation, student, teacher),
        pairs,
    )


def peak(loss: Loss, size: int) -> float:
    """Return the MiB of one pass, after a warm-up with a small batch."""
    value_and_gradient(loss, *embeddings(8))
    student, teacher = embeddings(size)
    return peak_mebibytes(lambda: value_and_gradient(loss, student, teacher))


def single_pass(size: int, max_anchors: int | None) -> tuple[float, float]:
    """Return MiB and seconds of one pass."""
    taken: list[float] = []

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return triplet_relation_loss(student, teacher, max_anchors=max_anchors)

    value_and_gradient(loss, *embeddings(8))
    student, teacher = embeddings(size)
    memory = peak_mebibytes(lambda: taken.append(seconds(lambda: value_and_gradient(loss, student, teacher))))
    return memory, taken[0]


def errors(size: int) -> dict[str, float]:
    """Return the relative differences from the textbook implementation."""
    student, teacher = embeddings(size)
    value, gradient = value_and_gradient(triplet_relation_loss, student, teacher)
    expected_value, expected_gradient = value_and_gradient(textbook_triplet_relation, student, teacher)
    return {
        "value, relative difference": abs(value / expected_value - 1),
        "gradient, relative difference": float((gradient - expected_gradient).norm() / expected_gradient.norm()),
    }
