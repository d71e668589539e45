"""Triplet relation compared with its textbook implementation, and speed of the mask renderer on one thread.

There is no public renderer to compare ours with.
"""

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measuring import Row, in_own_process, median_ratio, paired_seconds, peak_mebibytes, seconds
from deocc.losses import triplet_relation_loss
from deocc.masking import list_kinds, render

DIMENSION = 512
MAX_BATCH, MAX_PIXELS = 64, 2**21
"""Of a rendered batch, 24 MiB: glibc returns blocks above 32 MiB to the system, and every call would request them
again."""
LARGE_BLOCK = 31 * 2**20
"""Bytes; releasing a block of nearly 32 MiB makes glibc keep blocks of up to this size."""
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
    ours, reference = in_own_process(relation_times, size, pairs)
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
    value = loss(student, teacher)
    return float(value.detach()), torch.autograd.grad(value, student)[0]


def relation_times(size: int, pairs: int) -> tuple[list[float], list[float]]:
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
    taken: list[float] = []

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return triplet_relation_loss(student, teacher, max_anchors=max_anchors)

    value_and_gradient(loss, *embeddings(8))
    student, teacher = embeddings(size)
    memory = peak_mebibytes(lambda: taken.append(seconds(lambda: value_and_gradient(loss, student, teacher))))
    return memory, taken[0]


def errors(size: int) -> dict[str, float]:
    student, teacher = embeddings(size)
    value, gradient = value_and_gradient(triplet_relation_loss, student, teacher)
    expected_value, expected_gradient = value_and_gradient(textbook_triplet_relation, student, teacher)
    return {
        "value, relative difference": abs(value / expected_value - 1),
        "gradient, relative difference": float((gradient - expected_gradient).norm() / expected_gradient.norm()),
    }


def measure_renderer(size: int, repeats: int = 5) -> list[Row]:
    """Return one row per kind and one for all kinds in equal shares, at crops of `size` pixels.

    The rate of all kinds is total faces by total seconds; the mean of the rates, which favours fast kinds, is a detail.
    """
    taken, memory = in_own_process(render_times, size, repeats)
    rates = {kind: batch_size(size) / median for kind, median in taken.items()}
    rows: list[Row] = [
        {"what": f"renderer, {size} px, {kind}", "unit": "faces/s", "ours": rate} for kind, rate in rates.items()
    ]
    all_kinds: Row = {
        "what": f"renderer, {size} px, all kinds",
        "unit": "faces/s",
        "ours": statistics.harmonic_mean(rates.values()),
        "ours_mib": memory,
        "details": {"mean of the kinds' rates": statistics.mean(rates.values())},
    }
    return [*rows, all_kinds]


def batch_size(size: int) -> int:
    return min(MAX_BATCH, MAX_PIXELS // size**2)


def render_times(size: int, repeats: int) -> tuple[dict[str, float], float]:
    """Return the median seconds of a batch by kind, and the peak MiB.

    A fresh process may return memory to the system after every call, which costs half as much again as the rendering;
    a training process has long stopped doing so. Releasing one large block first has the same effect.
    """
    torch.set_num_threads(1)
    torch.empty(LARGE_BLOCK, dtype=torch.uint8)  # never written, so it uses no memory
    batch = batch_size(size)
    faces, seeds = torch.rand(batch, 3, size, size).mul_(2).sub_(1), torch.arange(batch)
    taken: dict[str, list[float]] = {kind: [] for kind in list_kinds()}

    def render_all() -> None:
        for repeat in range(repeats + 1):
            for kind, values in taken.items():
                value = seconds(lambda kind=kind: render(faces, None, kind, seeds))  # type: ignore[misc]
                if repeat > 0:  # after a warm-up
                    values.append(value)

    render(faces[:1], None, "box", seeds[:1])
    memory = peak_mebibytes(render_all)
    return {kind: statistics.median(values) for kind, values in taken.items()}, memory
