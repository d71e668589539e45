"""Computed memory and traffic of a stage-2 step on many GPUs: `python -m bench.scale` prints the tables.

Parameters are counted in the networks, the bytes of the relations are measured with a small batch, and the rest is
arithmetic. In a ring of W processes, an all-reduce of n bytes sends 2 (W - 1) / W n from each, an all-gather
(W - 1) / W n.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn

from bench.kernels import Loss, peak
from bench.measuring import in_own_process
from deocc.evaluation.report import markdown_cells
from deocc.losses import pair_relation_loss, triplet_relation_loss
from deocc.losses.distances import DEVICE_CHUNK_ELEMENTS
from deocc.networks.embedders.dlib import DlibResNet
from deocc.networks.embedders.iresnet import BLOCKS, IResNet

PROCESSES = (8, 64, 512)
BATCH, DIMENSION, IDENTITIES = 64, 512, 1_000_000
SAMPLE_SHARE, PEOPLE = 0.1, 3  # as configs/size/million.yaml; people in a blended face
FLOAT, MEMORY = 4, 80e9  # bytes of a float32; of a GPU
ADAMW = 4  # weight, gradient and two moments
RELATION_GATHERS, GRADIENT_GATHERS = 4, 2  # student and teacher, for pairs and triplets; gradients of the student's
MEASURED = 2048  # images of the small batch, whose (B, B) buffers of 8 MiB dominate the memory
Line = list[str]
Networks = dict[str, Callable[[], nn.Module]]
STUDENTS: Networks = {
    "dlib ResNet": DlibResNet,
    "IResNet-50": partial(IResNet, BLOCKS["iresnet50"]),
    "IResNet-100": partial(IResNet, BLOCKS["iresnet100"]),
}


def parameters_of(build: Callable[[], nn.Module]) -> int:
    """Count the trainable parameters of a network without allocating it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters() if parameter.requires_grad)


def all_reduced(size: float, processes: int) -> float:
    """Return the bytes that a process sends in a ring all-reduce."""
    return 2 * (processes - 1) / processes * size


def gathered(size: float, processes: int) -> float:
    """Return the bytes that a process sends in an all-gather to `size` bytes."""
    return (processes - 1) / processes * size


def bytes_a_pair(loss: Loss, size: int = MEASURED) -> float:
    """Measure the peak bytes of a relation per pair of images; a (B, B) float64 buffer counts 8."""
    return in_own_process(peak, loss, size) * 2**20 / size**2


def students() -> Iterator[Line]:
    """Return parameters, memory and traffic of each student under `DistributedDataParallel`."""
    for name, build in STUDENTS.items():
        count = parameters_of(build)
        state = (ADAMW + 1) * FLOAT * count  # and the running average
        yield [name, f"{count / 1e6:.1f} M", amount(state), *[amount(all_reduced(FLOAT * count, W)) for W in PROCESSES]]


def head() -> Iterator[Line]:
    """Return memory and traffic of the classifier, whole and sharded."""
    row = FLOAT * DIMENSION
    yield ["whole: weight, gradient, two moments", *[amount(ADAMW * row * IDENTITIES)] * len(PROCESSES)]
    yield ["whole: logits and their gradient", *[amount(2 * FLOAT * BATCH * IDENTITIES)] * len(PROCESSES)]
    yield ["whole: sent per step", *[amount(all_reduced(row * IDENTITIES, W)) for W in PROCESSES]]
    yield ["sharded: rows per process", *[f"{math.ceil(IDENTITIES / W):,}" for W in PROCESSES]]
    yield ["sharded: weight, gradient, two moments", *[amount(ADAMW * row * IDENTITIES / W) for W in PROCESSES]]
    yield ["sharded: logits and their gradient", *[amount(shard_logits(W, IDENTITIES / W)) for W in PROCESSES]]
    yield ["sharded: sent per step", *[amount(head_traffic(W)) for W in PROCESSES]]
    sampled = [sampled_rows(W) for W in PROCESSES]
    yield [f"sharded, {SAMPLE_SHARE:.0%} sampled: rows per step", *[f"{rows:,.0f}" for rows in sampled]]
    yield ["sampled: logits and their gradient", *[amount(shard_logits(W, sampled_rows(W))) for W in PROCESSES]]


def shard_logits(processes: int, rows: float) -> float:
    """Return the bytes of the logits of the global batch for a process's rows, and of their gradient."""
    return 2 * FLOAT * processes * BATCH * rows


def sampled_rows(processes: int) -> float:
    """Return the rows per process and step if all faces of the global batch show different people."""
    present = min(processes * BATCH * PEOPLE, IDENTITIES)
    return (present + SAMPLE_SHARE * (IDENTITIES - present)) / processes


def head_traffic(processes: int) -> float:
    """Return the bytes sent for a sharded head.

    Embeddings and their gradients, identities and mixup weights, and three reductions over the images.
    """
    images = processes * BATCH
    embeddings, targets = FLOAT * images * DIMENSION, images * PEOPLE * (8 + FLOAT)
    sums = FLOAT * images * (PEOPLE + 2)  # the people's cosines, largest logit, sum
    return gathered(embeddings + targets, processes) + all_reduced(embeddings + sums, processes)


def relations(pair: float, triplet: float) -> Iterator[Line]:
    """Return memory and traffic of the relations over the global batch, from their bytes per pair of images."""
    images = [W * BATCH for W in PROCESSES]
    sizes = [(W, FLOAT * W * BATCH * DIMENSION) for W in PROCESSES]
    sent = [RELATION_GATHERS * gathered(size, W) + GRADIENT_GATHERS * all_reduced(size, W) for W, size in sizes]
    yield ["global batch", *[f"{n:,}" for n in images]]
    yield ["gathered embeddings", *[amount(RELATION_GATHERS * size) for _, size in sizes]]
    yield ["sent per step", *map(amount, sent)]
    yield ["pair relation, peak", *[amount(pair * n**2) for n in images]]
    yield ["triplet relation, peak", *[amount(triplet * max(n**2, DEVICE_CHUNK_ELEMENTS)) for n in images]]
    yield ["anchors per process", *[f"{BATCH:,}"] * len(images)]
    yield ["angles per process and step", *[f"{BATCH * n**2:.1e}" for n in images]]


def amount(size: float) -> str:
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if size >= u or u == 1)
    return f"{size / unit:.3g} {name}" if size / unit < 1000 else f"{size / unit:,.0f} {name}"


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description="Compute memory and traffic of a stage-2 step on many GPUs.").parse_args(argv)
    pair, triplet = bytes_a_pair(pair_relation_loss), bytes_a_pair(partial(triplet_relation_loss, max_anchors=1))
    gpus = [f"{W} GPUs" for W in PROCESSES]
    print(
        f"Batch {BATCH} per GPU, embeddings of {DIMENSION} numbers, {IDENTITIES:,} identities, float32, AdamW; "
        "per GPU and step.\n"
    )
    for header, lines in (
        (["student", "parameters", "memory", *[f"sent, {name}" for name in gpus]], students()),
        (["identity head", *gpus], head()),
        (["relations", *gpus], relations(pair, triplet)),
    ):
        print(markdown_cells((header, [*lines])))
    largest = math.sqrt(MEMORY / max(pair, triplet))
    print(
        f"Measured: {pair:.0f} bytes per pair of images for the pair relation, {triplet:.0f} for the triplet relation."
    )
    print(f"The relations alone fill {MEMORY / 1e9:.0f} GB at a global batch of {largest:,.0f}.")
    print(f"Identity centres, in every process: {amount(FLOAT * DIMENSION * IDENTITIES)}.")


if __name__ == "__main__":
    main()
