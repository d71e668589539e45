"""Export a pipeline to the content of a file that was compared with torch on real faces."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from deocc import __version__
from deocc.data import OrlFaces
from deocc.data.dataset import AlignedFaces
from deocc.data.loader import item_seed
from deocc.data.orl import FOLDS
from deocc.evaluation.verification import equal_error_rate
from deocc.files import checksum
from deocc.geometry import TEMPLATES
from deocc.inference.batch import find_photos
from deocc.inference.export_formats import OPSET, Run, open_content, serialize, to_fp16, to_int8, trace
from deocc.inference.model_card import licences
from deocc.inference.model_folder import weight_bytes
from deocc.inference.network import ExportNetwork, FaceOutput
from deocc.inference.pipeline import Pipeline
from deocc.masking import list_kinds, render
from deocc.messages import telling_warnings

LIMIT: Final = 1e-4
"""Largest allowed difference between a float32 file and torch, of completed faces, embeddings and covered shares."""
FORMAT_VERSION: Final = 1  # increased when readers of earlier versions would misread the description or the outputs

# Not known from the paper; our choice.
_MIN_MASK_AGREEMENT: Final = 0.999  # share of pixels: single ones may change sides at the segmenter's threshold
_MASK_TOLERANCE: Final = 0.1  # difference of soft masks that counts as agreement in fp16 and int8
_CHECK_EVERY: Final = 2  # of 40 validation faces
_CALIBRATE_EVERY: Final = 8  # of 200 training faces, each masked and clean; twice as many give the same differences
_BATCH: Final = 32

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Faces:
    """Clean faces and masked copies; image i has occluder i, modulo the number of occluders."""

    source: str  # description for reports
    face: Tensor  # (N, 3, S, S) in [-1, 1]
    masked_face: Tensor  # (N, 3, S, S) in [-1, 1]
    identity: Tensor  # (N,) int64; of photos, whose people are unknown, one for each


def embedded_faces(pipeline: Pipeline, split: Literal["train", "val"], every: int = 1) -> Faces:
    """Return each `every`-th ORL face of the people that the model was trained (`train`) or validated (`val`) on.

    A model with thresholds from another data set, or without any, has seen no ORL face; the standard split is used.
    Raises FileNotFoundError if the package that ships the images is not installed.
    """
    face_set, thresholds = OrlFaces(), pipeline.thresholds
    if thresholds is not None and thresholds.data == OrlFaces.__name__:
        splits = [face_set, OrlFaces("development"), *(OrlFaces(fold=fold) for fold in range(FOLDS))]
        face_set = next((each for each in splits if each.fingerprint("val") == thresholds.data_hash), face_set)
    indices = face_set.indices(split)[::every]
    aligned = AlignedFaces(face_set, pipeline.size, 0)
    faces, landmarks = zip(*(aligned(int(index)) for index in indices), strict=True)
    pixels = torch.tensor(np.stack(faces)).permute(0, 3, 1, 2).float() / 127.5 - 1
    people = {"train": "training", "val": "validation"}[split]
    points, identity = torch.tensor(np.stack(landmarks)).float(), torch.tensor(face_set.identity[indices])
    return _add_masks(f"{len(indices)} ORL faces of {people} people", pixels, points, identity)


def _add_masks(source: str, face: Tensor, landmarks: Tensor | None, identity: Tensor) -> Faces:
    kind = torch.arange(len(face)) % len(list_kinds())
    # The word makes the seeds differ from those of training and tests.
    seed = torch.tensor([item_seed("export", number) for number in range(len(face))])
    return Faces(source, face, render(face, landmarks, kind, seed)[0], identity)


@dataclass(frozen=True)
class Parity:
    """Differences between the outputs of a file and torch.

    A different mask changes all that follows, so the largest differences are over the faces with equal masks only; NaN
    if there are none.
    """

    faces: int  # number of faces compared
    equal_masks: int  # number of faces whose masks agree in every pixel, to within `LIMIT`
    mask_agreement: float  # share of the pixels of all masks that agree
    completed_face: float  # largest difference, in the range [-1, 1] of pixels
    embedding: float  # largest difference of the unit vectors' elements
    covered: float  # largest difference of the covered shares

    @property
    def holds(self) -> bool:
        """True if a float32 file is accepted: all differences within `LIMIT` (NaN is not), and masks that agree."""
        close = all(difference <= LIMIT for difference in (self.completed_face, self.embedding, self.covered))
        return close and self.mask_agreement >= _MIN_MASK_AGREEMENT

    def __str__(self) -> str:
        return (
            f"largest difference of completed_face {self.completed_face:.1e}, of embedding {self.embedding:.1e}; "
            f"{self.mask_agreement:.4%} of the masks' pixels agree ({self.equal_masks} of {self.faces} masks in all)"
        )


@dataclass(frozen=True)
class Accuracy:
    """Verification of clean against masked faces by a file in lower precision, beside torch in float32."""

    pairs: int  # number of pairs compared
    eer: float  # equal error rate of the file, in [0, 1]
    eer_fp32: float  # equal error rate of torch
    similarity_mean: float  # mean absolute difference of the similarities
    similarity_max: float  # largest one
    mask_agreement: float  # share of the masks' pixels that agree to within 0.1

    def __str__(self) -> str:
        return (
            f"EER {self.eer_fp32:.2%} in float32, {self.eer:.2%} in this file, {self.pairs} pairs; "
            f"similarities differ by {self.similarity_mean:.4f} on average, {self.similarity_max:.4f} at most; "
            f"{self.mask_agreement:.4%} of the masks' pixels agree"
        )


def run_all(run: Run, face: Tensor) -> FaceOutput:
    """Run (N, 3, S, S) faces: the first one alone, the others in batches, so that several batch sizes are checked."""
    parts = [face[:1], *(face[1:].split(_BATCH) if len(face) > 1 else ())]
    return FaceOutput(*(torch.cat(column) for column in zip(*map(run, parts), strict=True)))


def compare(expected: FaceOutput, found: FaceOutput) -> Parity:
    """Compare the outputs of a file with torch's for the same faces."""
    same = (expected.mask - found.mask).abs() <= LIMIT
    equal = same.flatten(1).all(1)
    largest = {}
    for name in ("completed_face", "embedding", "covered"):
        difference = (getattr(expected, name) - getattr(found, name)).abs()[equal]
        largest[name] = float(difference.max()) if len(difference) else math.nan
    return Parity(len(equal), int(equal.sum()), float(same.double().mean()), **largest)


def measure(faces: Faces, reference: Run, run: Run) -> Accuracy:
    """Compare each clean face with each masked face of another image, by torch and by a file.

    Raises ValueError if embeddings of the file are not finite.
    """
    others = ~torch.eye(len(faces.identity), dtype=torch.bool)
    same = (faces.identity[:, None] == faces.identity[None])[others]
    similarities, masks = [], []
    for each in (reference, run):
        clean, masked = run_all(each, faces.face), run_all(each, faces.masked_face)
        similarities.append((clean.embedding @ masked.embedding.T)[others])
        masks.append(masked.mask)
    if not similarities[1].isfinite().all():
        raise ValueError(
            f"the file's embeddings of {faces.source} are not finite: choose another precision; nothing was written"
        )
    difference = (similarities[0] - similarities[1]).abs()
    return Accuracy(
        pairs=len(difference),
        eer=equal_error_rate(similarities[1], same),
        eer_fp32=equal_error_rate(similarities[0], same),
        similarity_mean=float(difference.mean()),
        similarity_max=float(difference.max()),
        mask_agreement=float(((masks[0] - masks[1]).abs() <= _MASK_TOLERANCE).double().mean()),
    )


def describe(pipeline: Pipeline) -> dict[str, Any]:
    """Return the description of a pipeline that is stored in the file, in JSON values.

    `face` describes the canonical crop: side, five points (eye, eye, nose, mouth corner, mouth corner; x, y in pixels
    whose centres are integers), colours and range. `alignments` contains side and points of other crops that faces may
    come in. `thresholds` is `deocc.evaluation.thresholds.Calibration.plain`, and `training` the origin of the model;
    both are None if it was never tested.
    """
    config, thresholds = pipeline.config, pipeline.thresholds
    templates = {"arcface112": TEMPLATES["arcface"], "dlib150": TEMPLATES["dlib"]}  # names as for --aligned
    terms = config.get("licences") or licences(config["teacher"], None if thresholds is None else thresholds.data)
    return {
        "format": "deocc export",
        "format_version": FORMAT_VERSION,
        "deocc_version": __version__,
        "face": config["face"],
        "alignments": {name: {"size": each.size, "template": each.points} for name, each in templates.items()},
        "outputs": {
            "completed_face": "(B, 3, S, S), range and colours as the input",
            "mask": "(B, 1, S, S), 1 = covered",
            "embedding": "(B, D) unit vectors, whose dot product is the similarity",
            "covered": "(B,) covered share of the face, which tells masked from clean faces: thresholds.masked.limit",
        },
        "student": config["student"],
        "bare_faces": config["bare_faces"],
        "teacher": config["teacher"],
        "thresholds": None if thresholds is None else thresholds.plain(),
        "training": config.get("training"),
        "licences": terms,
        "weights_sha256": config.get("weights_sha256") or checksum(weight_bytes(pipeline.network)),
    }


@dataclass(frozen=True)
class Export:
    """The content of a file, and a description of the faces it was checked on."""

    content: bytes
    source: str
    parity: Parity  # of the float32 file
    accuracy: Accuracy | None = None  # of a file in lower precision


def export(pipeline: Pipeline, kind: str, precision: Precision = "fp32", photos: Sequence[Path] = ()) -> Export:
    """Export a pipeline that is on the CPU, and compare the float32 file with torch.

    Args:
        pipeline: the model.
        kind: a format of `deocc.inference.export_formats.SUFFIXES`.
        precision: other than "fp32" for "onnx" only.
        photos: photos, or folders of them, on whose most prominent faces to compare; default: the embedded faces of
            validation people.

    Raises:
        FileNotFoundError: there is no photo at one of the paths.
        ValueError: the float32 file differs from torch, or embeddings in lower precision are not finite. Others as
            `Pipeline.faces`.
    """
    if photos:
        found, problems = find_photos(photos)
        if problems:
            raise FileNotFoundError(problems[0].reason)
        with telling_warnings():
            crops = pipeline.faces([photo.path for photo in found])
        faces = _add_masks(f"{len(crops)} photos", crops, None, torch.arange(len(crops)))
    else:
        faces = embedded_faces(pipeline, "val", _CHECK_EVERY)
    network = ExportNetwork(pipeline.network, pipeline.size)
    traced = trace(kind, network, faces.masked_face[:1].expand(2, -1, -1, -1))
    opset = {"opset": OPSET} if kind == "onnx" else {}
    metadata = {**describe(pipeline), "to": kind, **opset, "precision": precision}
    run = open_content(kind, serialize(kind, traced, json.dumps(metadata)))
    shown = torch.cat([faces.masked_face, faces.face[:2]])
    parity = compare(run_all(pipeline.process_faces, shown), run_all(run, shown))
    if not parity.holds:
        raise ValueError(
            f"the {kind} file does not equal torch on {faces.source}, {parity}; allowed is {LIMIT:g}: "
            "nothing was written"
        )
    metadata["parity"] = {"faces_of": faces.source, **asdict(parity)}

    accuracy = None
    if precision != "fp32":
        validation = embedded_faces(pipeline, "val")
        metadata["accuracy"] = {"faces_of": validation.source}
        if precision == "int8":
            training = embedded_faces(pipeline, "train", _CALIBRATE_EVERY)
            traced = to_int8(traced, torch.cat([training.masked_face, training.face]))
            metadata["accuracy"]["calibrated_on"] = training.source
        else:
            traced = to_fp16(traced)
        run = open_content(kind, serialize(kind, traced, json.dumps(metadata)))
        accuracy = measure(validation, pipeline.process_faces, run)
        metadata["accuracy"] |= asdict(accuracy)
    return Export(serialize(kind, traced, json.dumps(metadata, allow_nan=False)), faces.source, parity, accuracy)
