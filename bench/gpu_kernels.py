"""Renderer and triplet relation on one device."""

from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor

from bench.devices import median_seconds, peak_mebibytes_on
from bench.measuring import Row
from bench.relations import Loss, embeddings, textbook_triplet_relation, value_and_gradient
from deocc.losses import distances, triplet_relation_loss
from deocc.losses.distances import Angles
from deocc.masking import list_kinds, render

Piece = Callable[[Angles, Angles, Tensor, Tensor], tuple[Tensor, Tensor]]
TEXTBOOK_SIZE = 512  # largest batch of the textbook implementation: 3 GiB


def renderer_rows(
    device: torch.device, sizes: tuple[int, ...], batches: tuple[int, ...], repeats: int
) -> Iterator[Row]:
    """Measure faces per second, with all kinds in equal shares in one batch."""
    for size in sizes:
        for batch in batches:
            faces, seeds = torch.rand(batch, 3, size, size, device=device) * 2 - 1, torch.arange(batch, device=device)
            kinds = seeds % len(list_kinds())

            def masked(faces: Tensor = faces, kinds: Tensor = kinds, seeds: Tensor = seeds) -> object:
                return render(faces, None, kinds, seeds)

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
    student, teacher = on(device, size)

    def both_passes() -> object:
        return value_and_gradient(loss, student, teacher)

    taken = median_seconds(device, both_passes, repeats)
    value = value_and_gradient(loss, student, teacher)[0]
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


def on(device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    """Return student and teacher embeddings on the device."""
    student, teacher = embeddings(size)
    return student.detach().to(device).requires_grad_(), teacher.to(device)


def against(row: Row, reference: Row) -> Row:
    """Add a reference to a row of times."""
    joined: Row = {**row, "reference": reference["ours"], "ratio": reference["ours"] / row["ours"]}
    return with_memory(joined, "reference_mib", reference.get("ours_mib"))


def with_memory(row: Row, name: str, memory: float | None) -> Row:
    """Add the memory to a row if it is known."""
    return row if memory is None else {**row, name: memory}  # type: ignore[misc]
