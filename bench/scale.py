"""Memory and network of a step of stage 2 on very many GPUs, on paper: `python -m bench.scale` prints the tables of the README.

Numbers of parameters are counted in the networks, bytes of the relations are measured in a small batch, the rest is arithmetic.

A ring all-reduce of n bytes sends 2 (W - 1) / W n from every process, an all-gather to n bytes (W - 1) / W n.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from bench.measuring import in_own_process
from bench.relations import Loss, peak
from deocc.losses import pair_relation_loss, triplet_relation_loss
from deocc.losses.distances import DEVICE_CHUNK_ELEMENTS
from deocc.networks.embedders.dlib import DlibResNet
from deocc.networks.embedders.iresnet import BLOCKS, IResNet

PROCESSES = (8, 64, 512)
BATCH, DIMENSION, IDENTITIES = 64, 512, 1_000_000
SAMPLE_SHARE, PEOPLE = 0.1, 3  # as configs/size/million.yaml; people in a blended face
FLOAT, MEMORY = 4, 80e9  # bytes of a float32; of a GPU
ADAMW = 4  # weight, gradient and two moments
RELATION_GATHERS, GRADIENT_GATHERS = (
    4,
    2,
)  # student and teacher, for pairs and for triplets; the student's have a gradient
MEASURED = 2048  # images of the small batch, of which 8 MiB a (B, B) buffer are well above what else a process takes
Line = list[str]
Networks = dict[str, Callable[[], nn.Module]]
STUDENTS: Networks = {
    "dlib ResNet": DlibResNet,
    "IResNet-50": partial(IResNet, BLOCKS["iresnet50"]),
    "IResNet-100": partial(IResNet, BLOCKS["iresnet100"]),
}


def parameters_of(build: Callable[[], nn.Module]) -> int:
    """How many numbers a network learns, without its memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters() if parameter.requires_grad)


def all_reduced(size: float, processes: int) -> float:
    """Bytes that a process sends in a ring all-reduce."""
    return 2 * (processes - 1) / processes * size


def gathered(size: float, processes: int) -> float:
    """Bytes that a process sends while each gets all `size` bytes."""
    return (processes - 1) / processes * size


def bytes_a_pair(loss: Loss, size: int = MEASURED) -> float:
    """Peak memory of a relation, forward and backward, over the number of pairs of its batch; a (B, B) float64 buffer counts 8."""
    return in_own_process(peak, loss, size) * 2**20 / size**2


def students() -> Iterator[Line]:
    """What each student weighs, and what `DistributedDataParallel` sends."""
    for name, build in STUDENTS.items():
        count = parameters_of(build)
        state = (ADAMW + 1) * FLOAT * count  # and the running average
        yield [name, f"{count / 1e6:.1f} M", amount(state), *[amount(all_reduced(FLOAT * count, W)) for W in PROCESSES]]


def head() -> Iterator[Line]:
    """The classifier, whole and in pieces."""
    row = FLOAT * DIMENSION
    yield ["whole: weight, gradient, two moments", *[amount(ADAMW * row * IDENTITIES)] * len(PROCESSES)]
    yield ["whole: logits and their gradient", *[amount(2 * FLOAT * BATCH * IDENTITIES)] * len(PROCESSES)]
    yield ["whole: sent a step", *[amount(all_reduced(row * IDENTITIES, W)) for W in PROCESSES]]
    yield ["sharded: rows a process", *[f"{math.ceil(IDENTITIES / W):,}" for W in PROCESSES]]
    yield ["sharded: weight, gradient, two moments", *[amount(ADAMW * row * IDENTITIES / W) for W in PROCESSES]]
    yield ["sharded: logits and their gradient", *[amount(shard_logits(W, IDENTITIES / W)) for W in PROCESSES]]
    yield ["sharded: sent a step", *[amount(head_traffic(W)) for W in PROCESSES]]
    sampled = [sampled_rows(W) for W in PROCESSES]
    yield [f"sharded, {SAMPLE_SHARE:.0%} sampled: rows a step", *[f"{rows:,.0f}" for rows in sampled]]
    yield ["sampled: logits and their gradient", *[amount(shard_logits(W, sampled_rows(W))) for W in PROCESSES]]


def shard_logits(processes: int, rows: float) -> float:
    """Bytes of the logits of the global batch against a process's rows, and of their gradient."""
    return 2 * FLOAT * processes * BATCH * rows


def sampled_rows(processes: int) -> float:
    """Rows of a process in a step, if every face of the global batch is of other people: theirs, and a share of the others."""
    present = min(processes * BATCH * PEOPLE, IDENTITIES)
    return (present + SAMPLE_SHARE * (IDENTITIES - present)) / processes


def head_traffic(processes: int) -> float:
    """Bytes sent for a sharded head: embeddings, their gradients, people and shares, three reductions over the images."""
    images = processes * BATCH
    embeddings, targets = FLOAT * images * DIMENSION, images * PEOPLE * (8 + FLOAT)
    sums = FLOAT * images * (PEOPLE + 2)  # the people's cosines, largest logit, sum
    return gathered(embeddings + targets, processes) + all_reduced(embeddings + sums, processes)


def relations(pair: float, triplet: float) -> Iterator[Line]:
    """The relations over the global batch.

    Args:
        pair: bytes a pair of images that the pair relation takes.
        triplet: bytes a pair of images that the triplet relation takes.
    """
    images = [W * BATCH for W in PROCESSES]
    yield ["global batch", *[f"{n:,}" for n in images]]
    yield ["gathered embeddings", *[amount(RELATION_GATHERS * FLOAT * n * DIMENSION) for n in images]]
    yield ["sent a step", *[amount(relation_traffic(W)) for W in PROCESSES]]
    yield ["pair relation, peak", *[amount(pair * n**2) for n in images]]
    yield ["triplet relation, peak", *[amount(triplet * max(n**2, DEVICE_CHUNK_ELEMENTS)) for n in images]]
    yield ["vertices a process", *[f"{BATCH:,}"] * len(images)]
    yield ["angles a process and step", *[f"{BATCH * n**2:.1e}" for n in images]]


def relation_traffic(processes: int) -> float:
    """Bytes sent for pair and triplet relation."""
    size = FLOAT * processes * BATCH * DIMENSION
    return RELATION_GATHERS * gathered(size, processes) + GRADIENT_GATHERS * all_reduced(size, processes)


def amount(size: float) -> str:
    """Bytes for people, in powers of 1000."""
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if size >= u or u == 1)
    return f"{size / unit:.3g} {name}" if size / unit < 1000 else f"{size / unit:,.0f} {name}"


def markdown(header: Line, lines: Iterator[Line]) -> str:
    """A table whose figures stand to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def main() -> None:
    """Print the tables and what follows from them."""
    pair, triplet = bytes_a_pair(pair_relation_loss), bytes_a_pair(partial(triplet_relation_loss, max_vertices=1))
    gpus = [f"{W} GPUs" for W in PROCESSES]
    print(
        f"Batch {BATCH} a GPU, embeddings of {DIMENSION} numbers, {IDENTITIES:,} identities, float32, AdamW; per GPU and step.\n"
    )
    print(markdown(["student", "parameters", "memory", *[f"sent, {name}" for name in gpus]], students()), end="\n\n")
    print(markdown(["identity head", *gpus], head()), end="\n\n")
    print(markdown(["relations", *gpus], relations(pair, triplet)), end="\n\n")
    largest = math.sqrt(MEMORY / max(pair, triplet))
    print(f"Measured: {pair:.0f} bytes a pair of images for the pair relation, {triplet:.0f} for the triplet relation.")
    print(f"So the relations alone fill {MEMORY / 1e9:.0f} GB at a global batch of {largest:,.0f}.")
    print(f"Identity centres, whole in every process: {amount(FLOAT * DIMENSION * IDENTITIES)}.")


if __name__ == "__main__":
    main()
