"""Relational losses, renderer and embedder compared with reference implementations.

[1] Park et al., "Relational Knowledge Distillation", CVPR 2019: the reference of the losses.
[2] Huber et al., "Mask-invariant Face Recognition through Template-level Knowledge Distillation" (MaskInv), FG 2021:
    the reference of the renderer warps one picture of a mask onto each face in this style.
"""

import statistics
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench.measuring import (
    Pairs,
    Row,
    compared,
    idle_and_loaded,
    in_own_process,
    paired_seconds,
    peak_mebibytes,
    seconds,
)
from deocc.geometry import TEMPLATES
from deocc.losses import pair_relation_loss, triplet_relation_loss
from deocc.masking import list_kinds, render
from deocc.modules.precision import has_bfloat16_instructions
from deocc.networks.embedders.embedder import Embedder
from deocc.networks.embedders.registry import create_embedder

DIMENSION = 512
MAX_BATCH, MAX_PIXELS = 64, 2**21
"""Of a rendered batch, 24 MiB: glibc returns blocks above 32 MiB to the system, and every call would request them
again."""
LARGE_BLOCK = 31 * 2**20
"""Bytes; releasing a block of nearly 32 MiB makes glibc keep blocks of up to this size."""
EMBEDDED, EMBEDDINGS = 32, 4
"""Faces that the embedder takes at once, and batches per timed call: the first after a change of threads is slower."""
Loss = Callable[[Tensor, Tensor], Tensor]
Array = NDArray[np.float32]


def textbook_pair_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance-wise loss of [1] as its authors write it, but averaged over pairs of different images.

    Distances follow from the Gram matrix in float32 and are divided by the mean of the positive ones.
    """

    def relative(embedding: Tensor) -> Tensor:
        norms = embedding.square().sum(1)
        squared = norms[:, None] + norms - 2 * embedding @ embedding.T
        distance = squared.clamp(min=1e-12).sqrt().clone()
        index = range(len(embedding))
        distance[index, index] = 0
        return distance / distance[distance > 0].mean()

    with torch.no_grad():
        target = relative(teacher)
    return F.smooth_l1_loss(relative(student), target, reduction="sum") / (len(student) * (len(student) - 1))


def textbook_triplet_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Angle-wise loss of [1] as its authors write it, but averaged over triples of different images.

    B x B x D differences are normalised, and batched matrix products give the B x B x B angles.
    """

    def cosines(embedding: Tensor) -> Tensor:
        directions = F.normalize(embedding[None] - embedding[:, None], dim=2)
        return torch.bmm(directions, directions.transpose(1, 2))

    with torch.no_grad():
        target = cosines(teacher)
    size = len(student)
    return F.smooth_l1_loss(cosines(student), target, reduction="sum") / (size * (size - 1) * (size - 2))


TEXTBOOK: dict[str, tuple[Loss, Loss]] = {
    "pair relation": (pair_relation_loss, textbook_pair_relation),
    "triplet relation": (triplet_relation_loss, textbook_triplet_relation),
}


def measure_against_textbook(name: str, size: int, pairs: int = 5) -> Row:
    """Compare a loss of `TEXTBOOK` for a batch of `size`."""
    row = compared(f"{name}, B = {size}", "ms", *in_own_process(relation_times, name, size, pairs))
    row["ours_mib"], row["reference_mib"] = (in_own_process(peak, loss, size) for loss in TEXTBOOK[name])
    row["details"] = in_own_process(errors, name, size)
    return row


def measure_alone(size: int, max_anchors: int) -> Row:
    """Measure ours at a batch size that the textbook implementation cannot reach; one pass gives time and peak."""
    memory, taken = in_own_process(single_pass, size, max_anchors)
    what = f"triplet relation, B = {size}, {max_anchors} anchors"
    return {"what": what, "unit": "ms", "ours": 1000 * taken, "ours_mib": memory}


def embeddings(size: int) -> tuple[Tensor, Tensor]:
    """Return student and teacher embeddings of unit length, (size, 512)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (F.normalize(torch.randn(size, DIMENSION, generator=generator), dim=1) for _ in range(2))
    return student.requires_grad_(), teacher


def value_and_gradient(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    value = loss(student, teacher)
    return float(value.detach()), torch.autograd.grad(value, student)[0]


def relation_times(name: str, size: int, pairs: int) -> tuple[Pairs, Pairs]:
    """Return the seconds of ours and of the textbook implementation, idle and under load."""
    keep_blocks()
    student, teacher = embeddings(size)
    ours, textbook = (partial(value_and_gradient, loss, student, teacher) for loss in TEXTBOOK[name])
    return idle_and_loaded(ours, textbook, pairs)


def peak(loss: Loss, size: int) -> float:
    """Return the MiB of one pass, after a warm-up with a small batch."""
    value_and_gradient(loss, *embeddings(8))
    student, teacher = embeddings(size)
    return peak_mebibytes(lambda: value_and_gradient(loss, student, teacher))


def single_pass(size: int, max_anchors: int) -> tuple[float, float]:
    taken: list[float] = []

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return triplet_relation_loss(student, teacher, max_anchors=max_anchors)

    value_and_gradient(loss, *embeddings(8))
    student, teacher = embeddings(size)
    memory = peak_mebibytes(lambda: taken.append(seconds(lambda: value_and_gradient(loss, student, teacher))))
    return memory, taken[0]


def errors(name: str, size: int) -> dict[str, float]:
    student, teacher = embeddings(size)
    (value, gradient), (expected_value, expected_gradient) = (
        value_and_gradient(loss, student, teacher) for loss in TEXTBOOK[name]
    )
    return {
        "value, relative difference": abs(value / expected_value - 1),
        "gradient, relative difference": float((gradient - expected_gradient).norm() / expected_gradient.norm()),
    }


def keep_blocks() -> None:
    """Make glibc keep released memory.

    A fresh process may return memory to the system after every call, which costs half as much again as the rendering;
    a training process has long stopped doing so. Releasing one large block first has the same effect.
    """
    torch.empty(LARGE_BLOCK, dtype=torch.uint8)  # never written, so it uses no memory


def measure_renderer(size: int, repeats: int = 5) -> list[Row]:
    """Return a row of surgical masks, which the reference paints, and one of all kinds in equal shares.

    Both are compared with the reference. The rate of all kinds is total faces by total seconds; the rates of the kinds
    are details.
    """
    taken, reference, memory = in_own_process(render_times, size, repeats)
    count = batch_size(size)
    together = [statistics.mean(seconds) for seconds in zip(*taken.values(), strict=True)]
    rows = [
        compared(f"renderer, {size} px, {name}", "faces/s", Pairs(seconds, reference), count=count)
        for name, seconds in (("surgical", taken["surgical"]), ("all kinds", together))
    ]
    rows[1]["ours_mib"] = memory
    rows[1]["details"] = {kind: count / statistics.median(seconds) for kind, seconds in taken.items()}
    return rows


def batch_size(size: int) -> int:
    return min(MAX_BATCH, MAX_PIXELS // size**2)


def render_times(size: int, repeats: int) -> tuple[dict[str, list[float]], list[float], float]:
    """Return the seconds of a batch by kind, those of the reference, and the peak MiB of ours, all on one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    keep_blocks()
    batch = batch_size(size)
    faces, seeds = torch.rand(batch, 3, size, size).mul_(2).sub_(1), torch.arange(batch)
    calls: dict[str, Callable[[], object]] = {kind: partial(render, faces, None, kind, seeds) for kind in list_kinds()}
    render(faces[:1], None, "box", seeds[:1])
    memory = peak_mebibytes(lambda: [call() for call in calls.values()])
    calls["reference"] = partial(warp_masks, faces.numpy(), mask_picture(), TEMPLATES["canonical"].tensor(size).numpy())
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            value = seconds(call)
            if repeat > 0:  # after a warm-up
                taken[name].append(value)
    reference = taken.pop("reference")
    return taken, reference, memory


def mask_picture() -> NDArray[np.uint8]:
    """Return an RGBA picture of a mask, (256, 256, 4)."""
    outline = np.array([[0, 0], [255, 0], [255, 128], [200, 255], [55, 255], [0, 128]], np.int32)
    return cv2.fillConvexPoly(np.zeros((256, 256, 4), np.uint8), outline, (158, 204, 230, 255)).astype(np.uint8)


def warp_masks(faces: Array, picture: NDArray[np.uint8], landmarks: Array) -> list[tuple[Array, Array]]:
    """Paint a picture on each face by a perspective warp and alpha blending [2].

    Inputs and outputs are those of `render`.

    Args:
        faces: (B, 3, H, W) in [-1, 1].
        picture: RGBA, from the bridge of the nose to the chin.
        landmarks: (5, 2), of all faces.

    Returns:
        Masked faces (3, H, W) and masks (1, H, W).
    """
    painted = []
    high, wide = picture.shape[:2]
    corners = np.array([[0, 0], [wide, 0], [wide, high], [0, high]], np.float32)
    for face in faces:
        (left, right), mouth = landmarks[:2], landmarks[3:].mean(0)
        across, down = right - left, mouth - (left + right) / 2
        middle = (left + right) / 2
        places = ((-1.0, 0.3), (1.0, 0.3), (0.75, 1.7), (-0.75, 1.7))
        target = np.array([middle + u * across + v * down for u, v in places], np.float32)
        matrix = cv2.getPerspectiveTransform(corners, target)
        warped = cv2.warpPerspective(picture, matrix, face.shape[:0:-1]).transpose(2, 0, 1)
        alpha = warped[3:].astype(np.float32) / 255
        colour = warped[:3].astype(np.float32) / 127.5 - 1
        painted.append((face * (1 - alpha) + colour * alpha, (alpha > 0).astype(np.float32)))
    return painted


def measure_embedder(pairs: int = 5) -> list[Row]:
    """Return rows of the dlib ResNet without gradient: threads, memory formats and, where it is used, bfloat16."""
    count = EMBEDDED * EMBEDDINGS
    threads, formats, precisions = in_own_process(embedder_times, pairs)
    low = "dlib ResNet, one thread, bfloat16 against float32"
    return [
        compared("dlib ResNet, two threads against one", "images/s", *threads, count=count),
        compared("dlib ResNet, one thread, channels last against first", "images/s", formats, count=count),
        *([compared(low, "images/s", precisions, count=count)] if precisions is not None else []),
    ]


@torch.no_grad()
def embedder_times(pairs: int, number: int = EMBEDDED) -> tuple[tuple[Pairs, Pairs], Pairs, Pairs | None]:
    """Return the seconds of two threads and of one, idle and under load, of both memory formats and both precisions.

    The last are None on a CPU without instructions for bfloat16.
    """
    keep_blocks()
    embedder, other = (create_embedder("dlib_resnet", pretrained=False).freeze() for _ in range(2))
    other.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    faces = torch.rand(number, 3, 112, 112) * 2 - 1

    def embed(network: Embedder, threads: int) -> None:
        torch.set_num_threads(threads)
        for _ in range(EMBEDDINGS):
            network(faces)

    def embed_low() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            embed(embedder, 1)

    one = partial(embed, embedder, 1)
    threads = idle_and_loaded(partial(embed, embedder, 2), one, pairs)
    precisions = paired_seconds(embed_low, one, pairs) if has_bfloat16_instructions() else None
    return threads, paired_seconds(one, partial(embed, other, 1), pairs), precisions
