"""Renderer and triplet relation on one device; measurement of time and memory there, and its published peak."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from bench.kernels import Loss, embeddings, textbook_triplet_relation, value_and_gradient
from bench.measuring import Row
from deocc.losses import distances, triplet_relation_loss
from deocc.losses.distances import Angles
from deocc.masking import list_kinds, render

Piece = Callable[[Angles, Angles, Tensor, Tensor], tuple[Tensor, Tensor]]
Precision = str
PEAK_TERAFLOPS: dict[str, dict[Precision, float]] = {
    "NVIDIA H100 PCIe": {"fp32": 51.2, "tf32": 378.0, "bf16": 756.0, "fp16": 756.0},
    "NVIDIA H100 80GB HBM3": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4},
    "NVIDIA H200": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4},
    "NVIDIA A100": {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0},
}
"""Dense peaks by the beginning of the device's name.

Source: NVIDIA's white papers "H100 Tensor Core GPU Architecture" (the H200 has the same chip) and "A100 Tensor Core GPU
Architecture".
"""
TEXTBOOK_SIZE = 512  # largest batch of the textbook implementation: 3 GiB


def renderer_rows(
    device: torch.device, sizes: tuple[int, ...], batches: tuple[int, ...], repeats: int
) -> Iterator[Row]:
    """Measure faces per second, with all kinds in equal shares in one batch."""
    for size in sizes:
        for batch in batches:
            faces, seeds = torch.rand(batch, 3, size, size, device=device) * 2 - 1, torch.arange(batch, device=device)
            masked = partial(render, faces, None, seeds % len(list_kinds()), seeds)
            rate = batch / median_seconds(device, masked, repeats)
            row: Row = {"what": f"renderer, {size} px, batch {batch}, all kinds", "unit": "faces/s", "ours": rate}
            yield with_memory(row, "ours_mib", peak_mebibytes_on(device, masked))


def triplet_rows(device: torch.device, sizes: tuple[int, ...], repeats: int, backend: str) -> Iterator[Row]:
    """Compare forward and backward pass with the textbook implementation if it fits, and compiled with not compiled."""
    for size in sizes:
        plain = triplet_row(device, size, triplet_relation_loss, repeats)
        if size <= TEXTBOOK_SIZE:
            plain = against(plain, triplet_row(device, size, textbook_triplet_relation, repeats))
        yield plain
        with mock.patch.object(distances, "piece", compiled_piece(backend)):
            compiled = triplet_row(device, size, triplet_relation_loss, repeats)
        difference = compiled["details"]["value"] / plain["details"]["value"] - 1
        row = against({**compiled, "what": f"{compiled['what']}, compiled"}, plain)
        yield {**row, "details": {"value, relative difference": abs(difference)}}


def triplet_row(device: torch.device, size: int, loss: Loss, repeats: int) -> Row:
    """Measure one implementation; its loss value is a detail."""
    student, teacher = (tensor.detach().to(device) for tensor in embeddings(size))
    both_passes = partial(value_and_gradient, loss, student.requires_grad_(), teacher)
    taken = median_seconds(device, both_passes, repeats)
    value = both_passes()[0]
    row: Row = {
        "what": f"triplet relation, B = {size}",
        "unit": "ms",
        "ours": 1000 * taken,
        "details": {"value": value},
    }
    return with_memory(row, "ours_mib", peak_mebibytes_on(device, both_passes))


def compiled_piece(backend: str) -> Piece:
    """Return `deocc.losses.distances.piece` compiled, with buffers that fusion can leave out."""
    plain = distances.piece

    def fused(student: Angles, teacher: Angles, gradient: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
        return plain(student, teacher, gradient, torch.empty_like(buffers))

    compiled = torch.compile(fused, backend=backend, dynamic=True)

    def piece(student: Angles, teacher: Angles, gradient: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
        # Without detach, the compiler warns of views of a tensor with a graph.
        return compiled(Angles(*(part.detach() for part in student)), teacher, gradient, buffers)

    return piece


def against(row: Row, reference: Row) -> Row:
    joined: Row = {**row, "reference": reference["ours"], "ratio": reference["ours"] / row["ours"]}
    return with_memory(joined, "reference_mib", reference.get("ours_mib"))


def with_memory(row: Row, name: str, memory: float | None) -> Row:
    return row if memory is None else {**row, name: memory}  # type: ignore[misc]


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_flops(name: str, precision: Precision) -> float | None:
    peaks = next((peaks for start, peaks in PEAK_TERAFLOPS.items() if name.startswith(start)), {})
    return 1e12 * peaks[precision] if precision in peaks else None


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(device: torch.device, call: Callable[[], object], repeats: int) -> float:
    """Return the median time of `repeats` synchronised calls after a warm-up."""
    call()
    taken = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def peak_mebibytes_on(device: torch.device, call: Callable[[], object]) -> float | None:
    """Return by how much a call raises the allocated GPU memory; None on other devices."""
    if device.type != "cuda":
        call()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
