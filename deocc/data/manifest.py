"""The fixed evaluation masks: which occluder lies on which image by which seed, as a file and as a hash."""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from deocc.data.dataset import FixedFaces
from deocc.geometry import TEMPLATES
from deocc.masking import list_kinds, render

_SIZE, _SEEDS = 64, 4  # of the faces that stand for the renderer
Row = tuple[str, str, int]
"""Image, kind of occluder, seed."""


def manifest_rows(probes: FixedFaces) -> Iterator[Row]:
    """What each probe carries: all that its mask depends on besides its landmarks and the renderer."""
    names, kinds = probes.aligned.face_set.names, list_kinds()
    for number in range(len(probes)):
        kind, seed = probes.mask_of(number)
        yield names[probes.index_of(number)], kinds[kind], seed


def manifest_hash(probes: FixedFaces) -> str:
    """A hash of the rows and of the renderer, so that a changed renderer is noticed as well as a changed seed."""
    digest = hashlib.sha256(renderer_hash().encode())
    for row in manifest_rows(probes):
        digest.update("/".join(map(str, row)).encode())
    return digest.hexdigest()[:16]


def renderer_hash() -> str:
    """A hash of some masks of every kind as they are rendered on a grey face."""
    kinds = torch.arange(len(list_kinds())).repeat_interleave(_SEEDS)
    seeds = torch.arange(len(kinds))
    faces = torch.zeros(len(kinds), 3, _SIZE, _SIZE)
    landmarks = TEMPLATES["canonical"].tensor(_SIZE).expand(len(kinds), 5, 2)
    _, masks = render(faces, landmarks, kinds, seeds)
    return hashlib.sha256(masks.bool().numpy().tobytes()).hexdigest()[:16]


def write_manifest(path: Path, probes: FixedFaces) -> None:
    """Write the rows as CSV with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "kind", "seed"))
        writer.writerows(manifest_rows(probes))
