"""Whether an exported file gives what torch gives, and what a smaller one costs in accuracy."""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from deocc.apps.export.faces import Faces
from deocc.apps.export.graph import Outputs, Run
from deocc.evaluation import EmbeddingSet
from deocc.evaluation.verification import PairScores, equal_error_rate, pair_scores

LIMIT: Final = 1e-4
"""The largest difference of a float32 file's completed faces and embeddings from torch's."""

_MASKS_ALIKE: Final = 0.999  # share of pixels: single ones may change sides at a threshold
_MASK_STEP: Final = 0.1  # difference of a soft mask that a smaller file may show where it agrees
_BATCH: Final = 32


@dataclass(frozen=True)
class Parity:
    """How a file's outputs differ from torch's.

    Attributes:
        faces: how many were compared.
        equal_masks: number of faces whose masks agree in every pixel, to within `LIMIT`. Another mask changes
            everything computed from it, so the largest differences below are over these faces only; NaN if there are
            none.
        mask_agreement: share of the pixels of all masks that agree.
        completed_face: in the range [-1, 1] of pixels.
        embedding: of the unit vectors' numbers.
        covered: of the covered shares, over the same faces.
    """

    faces: int
    equal_masks: int
    mask_agreement: float
    completed_face: float
    embedding: float
    covered: float

    @property
    def holds(self) -> bool:
        """Whether a float32 file may be trusted: within `LIMIT`, and masks of the same sort."""
        close = all(difference <= LIMIT for difference in (self.completed_face, self.embedding, self.covered))  # a NaN is not
        return close and self.mask_agreement >= _MASKS_ALIKE

    def __str__(self) -> str:
        """One line for people."""
        masks = f"{self.mask_agreement:.4%} of the masks' pixels agree ({self.equal_masks} of {self.faces} masks in all)"
        return f"largest difference of completed_face {self.completed_face:.1e}, of embedding {self.embedding:.1e}; {masks}"


@dataclass(frozen=True)
class Accuracy:
    """Verification of clean against masked faces by a smaller file, beside torch in float32; both unitless shares or cosines.

    Attributes:
        pairs: how many were compared.
        eer: the equal error rate.
        eer_fp32: torch's.
        similarity_mean: how much a similarity differs on average.
        similarity_max: and at most.
        mask_agreement: share of the masks' pixels that agree to within 0.1.
    """

    pairs: int
    eer: float
    eer_fp32: float
    similarity_mean: float
    similarity_max: float
    mask_agreement: float

    def __str__(self) -> str:
        """One line for people."""
        similarity = f"similarities differ by {self.similarity_mean:.4f} on average, {self.similarity_max:.4f} at most"
        masks = f"{self.mask_agreement:.4%} of the masks' pixels agree"
        return f"EER {self.eer_fp32:.2%} in float32, {self.eer:.2%} in this file, {self.pairs} pairs; {similarity}; {masks}"


def run_all(run: Run, face: Tensor) -> Outputs:
    """The outputs of (N, 3, S, S) faces: the first one alone, the others in batches, so that every check tries batches of several sizes."""
    parts = [face[:1], *(face[1:].split(_BATCH) if len(face) > 1 else ())]
    return Outputs(*(torch.cat(column) for column in zip(*map(run, parts), strict=True)))


def compare(expected: Outputs, found: Outputs) -> Parity:
    """How the outputs of a file differ from torch's for the same faces."""
    same = (expected.mask - found.mask).abs() <= LIMIT
    equal = same.flatten(1).all(1)
    largest = {
        name: _largest((getattr(expected, name) - getattr(found, name)).abs()[equal]) for name in ("completed_face", "embedding", "covered")
    }
    return Parity(len(equal), int(equal.sum()), float(same.double().mean()), **largest)


def measure(faces: Faces, reference: Run, run: Run) -> Accuracy:
    """Every clean face against every masked one of another image, by torch and by a file.

    Raises:
        ValueError: it is unknown who the faces are.
    """
    if faces.identity is None:
        raise ValueError(f"nobody knows who the people on {faces.source} are: measure accuracy on the embedded faces")
    expected, found = (_pairs(faces, faces.identity, each) for each in (reference, run))
    difference = (expected[0].similarity - found[0].similarity).abs()
    return Accuracy(
        pairs=len(difference),
        eer=equal_error_rate(found[0].similarity, found[0].same),
        eer_fp32=equal_error_rate(expected[0].similarity, expected[0].same),
        similarity_mean=float(difference.mean()),
        similarity_max=float(difference.max()),
        mask_agreement=float(((expected[1] - found[1]).abs() <= _MASK_STEP).double().mean()),
    )


def _pairs(faces: Faces, identity: Tensor, run: Run) -> tuple[PairScores, Tensor]:
    """The pairs, and the masks of the masked faces."""
    clean, masked = run_all(run, faces.face), run_all(run, faces.masked_face)
    index, bare = torch.arange(len(identity)), torch.full_like(faces.kind, -1)
    gallery = EmbeddingSet(clean.embedding, identity, index, bare, torch.zeros_like(bare))
    return pair_scores(gallery, EmbeddingSet(masked.embedding, identity, index, faces.kind, faces.seed)), masked.mask


def _largest(values: Tensor) -> float:
    return float(values.max()) if len(values) else math.nan
