"""Real faces that an exported file is checked on: masked ones, of people who are in no test."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from deocc.apps.photos import find_photos
from deocc.apps.pipeline import Pipeline
from deocc.data import OrlFaces
from deocc.data.dataset import AlignedFaces
from deocc.data.face_set import Split
from deocc.data.orl import FOLDS
from deocc.data.sampler import item_seed
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
    return _masked(f"{len(indices)} ORL faces of {people} people", pixels, torch.tensor(np.stack(landmarks)).float(), identity)


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
