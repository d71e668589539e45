"""From a pipeline to the content of a file that was compared with torch on real faces."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from torch import Tensor

from deocc import __version__
from deocc.data import OrlFaces
from deocc.data.dataset import AlignedFaces
from deocc.data.face_set import Split
from deocc.data.loader import item_seed
from deocc.data.orl import FOLDS
from deocc.evaluation import EmbeddingSet
from deocc.evaluation.calibration import covered_share
from deocc.evaluation.verification import PairScores, equal_error_rate, pair_scores
from deocc.geometry import TEMPLATES
from deocc.inference.batch import find_photos
from deocc.inference.graphs import FORMATS, REDUCTIONS, ExportNetwork, Graph, OnnxGraph, Outputs, Run
from deocc.inference.model_folder import licences, weight_bytes
from deocc.inference.pipeline import Pipeline
from deocc.masking import list_kinds, render

_WORD: Final = "export"  # hashed into the masks' seeds: no training and no test draws them


@dataclass(frozen=True)
class Faces:
    """Clean faces, and the same ones masked: image i has the kind of occluder number i, counted round.

    Attributes:
        source: what they are, for reports.
        face: (N, 3, S, S) in [-1, 1].
        masked_face: (N, 3, S, S) in [-1, 1].
        kind: (N,) int64, positions in `deocc.masking.list_kinds()`.
        seed: (N,) int64, of the masks.
        identity: (N,) int64; None where it is unknown who they are.
    """

    source: str
    face: Tensor
    masked_face: Tensor
    kind: Tensor
    seed: Tensor
    identity: Tensor | None = None


def embedded_faces(pipeline: Pipeline, split: Split, every: int = 1) -> Faces:
    """Every so manyth of the ORL faces of the people whom the model was trained (`train`) or validated on (`val`).

    A model whose thresholds come from another data set, or from none, has seen no ORL face: its split is the standard one.

    Raises:
        FileNotFoundError: the package that ships the images is not installed.
        ValueError: the split is `test`, whose people are for tests alone.
    """
    if split == "test":
        raise ValueError("the test people are for tests alone: choose train or val")
    face_set = _own_split(pipeline)
    indices = face_set.indices(split)[::every]
    aligned = AlignedFaces(face_set, pipeline.size, 0)
    faces, landmarks = zip(*(aligned(int(index)) for index in indices), strict=True)
    pixels = torch.tensor(np.stack(faces)).permute(0, 3, 1, 2).float() / 127.5 - 1
    people = {"train": "training", "val": "validation"}[split]
    identity = torch.tensor(face_set.person[indices])
    return _masked(
        f"{len(indices)} ORL faces of {people} people", pixels, torch.tensor(np.stack(landmarks)).float(), identity
    )


def photo_faces(pipeline: Pipeline, photos: Sequence[Path]) -> Faces:
    """The largest face of each photo; folders stand for the photos in them.

    Raises:
        FileNotFoundError: there is no photo at one of the paths.
        ValueError: one cannot be read, or shows no face.
        ImportError: no package that finds faces is installed.
    """
    found, problems = find_photos(photos)
    if problems:
        raise FileNotFoundError(problems[0].reason)
    faces = pipeline.faces([photo.path for photo in found])
    return _masked(f"{len(faces)} photos", faces, None, None)


def _masked(source: str, face: Tensor, landmarks: Tensor | None, identity: Tensor | None) -> Faces:
    kind = torch.arange(len(face)) % len(list_kinds())
    seed = torch.tensor([item_seed(_WORD, number) for number in range(len(face))])
    return Faces(source, face, render(face, landmarks, kind, seed)[0], kind, seed, identity)


def _own_split(pipeline: Pipeline) -> OrlFaces:
    """The split on whose validation people the model was calibrated."""
    standard = OrlFaces()
    if pipeline.thresholds is None or pipeline.thresholds.data != OrlFaces.__name__:
        return standard
    splits = [standard, OrlFaces("development"), *(OrlFaces(fold=fold) for fold in range(FOLDS))]
    return next((each for each in splits if each.fingerprint("val") == pipeline.thresholds.data_hash), standard)


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
        close = all(
            difference <= LIMIT for difference in (self.completed_face, self.embedding, self.covered)
        )  # a NaN is not
        return close and self.mask_agreement >= _MASKS_ALIKE

    def __str__(self) -> str:
        """One line for people."""
        masks = (
            f"{self.mask_agreement:.4%} of the masks' pixels agree ({self.equal_masks} of {self.faces} masks in all)"
        )
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
        name: _largest((getattr(expected, name) - getattr(found, name)).abs()[equal])
        for name in ("completed_face", "embedding", "covered")
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


FORMAT_VERSION: Final = 1
"""Raised when a reader of an earlier version would misread the description or the outputs."""

_FORMAT: Final = "deocc export"
_ALIGNMENTS: Final = {"arcface112": "arcface", "dlib150": "dlib"}  # as `--aligned` calls them


def describe(pipeline: Pipeline) -> dict[str, Any]:
    """The description of a pipeline in values that JSON has.

    `face` is the canonical crop: its side, its five points (eye, eye, nose, mouth corner, mouth corner; x, y in pixels, whose centres are
    whole numbers), its colours and range. `alignments` holds the same of other crops that faces may come in. `thresholds` is
    `deocc.evaluation.calibration.Calibration.plain`, None where the model was never tested; `training` what its test wrote of its data,
    None likewise.
    """
    config, thresholds = pipeline.config, pipeline.thresholds
    data = None if thresholds is None else thresholds.data
    return {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "deocc_version": __version__,
        "face": config["face"],
        "alignments": {name: _alignment(template) for name, template in _ALIGNMENTS.items()},
        "outputs": {
            "completed_face": "(B, 3, S, S), range and colours as the input",
            "mask": "(B, 1, S, S), 1 = covered",
            "embedding": "(B, D) unit vectors, whose dot product is the similarity",
            "covered": "(B,) covered share of the face, which tells masked from clean faces: thresholds.masked.limit",
        },
        "student": config["student"],
        "teacher": config["teacher"],
        "thresholds": None if thresholds is None else thresholds.plain(),
        "training": config.get("training"),
        "licences": config.get("licences") or licences(config["teacher"], data),
        "weights_sha256": config.get("weights_sha256") or _weights_hash(pipeline),
    }


def _alignment(template: str) -> dict[str, Any]:
    return {"size": TEMPLATES[template].size, "template": [list(point) for point in TEMPLATES[template].points]}


def _weights_hash(pipeline: Pipeline) -> str:
    """The hash that a model folder of these weights would have."""
    return hashlib.sha256(weight_bytes(pipeline.network)).hexdigest()


Precision = Literal["fp32", "fp16", "int8"]

_CHECKED_EVERY: Final = 2  # of 40 validation faces
_CALIBRATED_EVERY: Final = (
    8  # of 200 training faces, each masked and clean; similarities differ as much with twice as many
)


@dataclass(frozen=True)
class Export:
    """A finished file, not yet on disk.

    Attributes:
        content: of the file.
        source: the faces that it was checked on.
        parity: of the float32 file.
        accuracy: of a smaller one; None for float32.
    """

    content: bytes
    source: str
    parity: Parity
    accuracy: Accuracy | None = None


def export(pipeline: Pipeline, kind: str, precision: Precision = "fp32", photos: Sequence[Path] = ()) -> Export:
    """Export a pipeline, on the CPU.

    Args:
        pipeline: on the CPU.
        kind: a name of `FORMATS`.
        precision: other than fp32 for onnx alone; needs the embedded faces.
        photos: to compare with torch on, in place of the embedded faces of validation people.

    Raises:
        ValueError: the file's outputs differ from torch's by more than `LIMIT`, the words contradict each other, or a photo has no face.
        FileNotFoundError: no faces to compare on: the package that ships them is not installed, or a photo is missing.
        ImportError: a package is not installed.
    """
    form = FORMATS[kind]
    if precision != "fp32" and kind != "onnx":
        raise ValueError(f"{precision} is for onnx alone, {kind} files are float32: leave it out, or take --to onnx")
    faces = photo_faces(pipeline, photos) if photos else embedded_faces(pipeline, "val", _CHECKED_EVERY)
    reference = reference_of(pipeline)
    graph = form.trace(ExportNetwork(pipeline.network, pipeline.size), faces.masked_face[:1].expand(2, -1, -1, -1))
    metadata = {**describe(pipeline), "to": kind, **form.details, "precision": precision}
    parity = _checked(form.open(graph.content(json.dumps(metadata))), reference, faces, kind)
    metadata["parity"] = {"faces_of": faces.source, **asdict(parity)}
    accuracy = None
    if precision != "fp32":
        graph, accuracy = _reduced(cast(OnnxGraph, graph), pipeline, precision, metadata)
    return Export(graph.content(json.dumps(metadata, allow_nan=False)), faces.source, parity, accuracy)


def reference_of(pipeline: Pipeline) -> Run:
    """What the pipeline itself gives."""

    def run(face: torch.Tensor) -> Outputs:
        output = pipeline.process_faces(face)
        return Outputs(output.completed_face, output.mask, output.embedding, covered_share(output.mask))

    return run


def _checked(run: Run, reference: Run, faces: Faces, kind: str) -> Parity:
    shown = torch.cat([faces.masked_face, faces.face[:2]])
    parity = compare(run_all(reference, shown), run_all(run, shown))
    if not parity.holds:
        raise ValueError(
            f"the {kind} file does not equal torch on {faces.source}, {parity}; allowed is {LIMIT:g}: nothing was written"
        )
    return parity


def _reduced(
    graph: OnnxGraph, pipeline: Pipeline, precision: Precision, metadata: dict[str, Any]
) -> tuple[Graph, Accuracy]:
    """The smaller graph, and what it costs, which is put into the metadata too."""
    validation, training = embedded_faces(pipeline, "val"), embedded_faces(pipeline, "train", _CALIBRATED_EVERY)
    smaller = REDUCTIONS[precision](graph, torch.cat([training.masked_face, training.face]))
    accuracy = measure(validation, reference_of(pipeline), FORMATS["onnx"].open(smaller.content(json.dumps(metadata))))
    calibrated = {"calibrated_on": training.source} if precision == "int8" else {}
    metadata["accuracy"] = {"faces_of": validation.source, **calibrated, **asdict(accuracy)}
    return smaller, accuracy
