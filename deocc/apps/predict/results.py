"""What is written for one photo: files that are never overwritten by those of another, embeddings, and the rows that tell of them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.apps.photos import (
    FaceFinder,
    FoundPhoto,
    Outcome,
    OutcomeFile,
    PhotoFace,
    paste_back,
    read_bytes,
    read_mark,
    read_photo,
    save_png,
)
from deocc.apps.pipeline import FaceOutput, Pipeline
from deocc.apps.predict.embeddings import EmbeddedFace, EmbeddingFile
from deocc.evaluation.calibration import covered_share

TABLE, EMBEDDINGS, PARQUET = "predictions.csv", "embeddings.npz", "embeddings.parquet"
FACES, MASKS, COMPLETED, PHOTOS = "faces", "masks", "completed", "completed_photos"
PANELS: Final = {"photo": FACES, "predicted mask": MASKS, "completed": COMPLETED}
"""What a contact sheet shows, and the folder where it lies."""


@dataclass(frozen=True)
class Settings:
    """What decides the results of a photo.

    Attributes:
        out: the folder for everything.
        model: the model's hash.
        finding: all that decides which faces are found.
    """

    out: Path
    model: str
    finding: tuple[object, ...]


class PhotoPredictor:
    """Predicts one photo after the other.

    Args:
        settings: what decides the results.
        pipeline: the model.
        finder: finds the faces.
        table: where rows of an earlier run are.
        embeddings: takes the embeddings, and holds those of an earlier run.
    """

    def __init__(self, settings: Settings, pipeline: Pipeline, finder: FaceFinder, table: OutcomeFile, embeddings: EmbeddingFile) -> None:
        self._settings, self._pipeline, self._finder = settings, pipeline, finder
        self._table, self._embeddings = table, embeddings

    def __call__(self, found: FoundPhoto) -> list[Outcome]:
        """Write what is missing for a photo; a row for each face.

        Raises:
            FileNotFoundError: the photo is gone.
            ValueError: it cannot be read, has no face, or the files of another photo are in the way.
            OutputError: a result cannot be written.
        """
        data = read_bytes(found.path)
        key = repr((hashlib.sha256(data).hexdigest(), self._settings.model, self._settings.finding))
        mark = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
        earlier = self._earlier_rows(found, mark)
        if earlier:
            return earlier
        photo = read_photo(data, str(found.path))
        faces = self._finder.find(photo, str(found.path))
        output = FaceOutput(*(part.cpu() for part in self._pipeline.process_faces(torch.stack([face.face for face in faces]))))
        self._write(found, mark, self._images(found, photo, faces, output))
        for number, embedding in enumerate(output.embedding.numpy(), 1):
            self._embeddings.put(EmbeddedFace(_face_name(found, number), str(found.path), number, mark, embedding))
        self._embeddings.write_when_due()
        return self._rows(found, faces, output)

    def _earlier_rows(self, found: FoundPhoto, mark: str) -> list[Outcome]:
        """The rows of an earlier run that did this very photo, or none."""
        output = _file(PHOTOS, found.name)
        rows = [row for row in self._table.rows(str(found.path)) if row.done and row.output == output]
        names = [_face_name(found, row.face) for row in rows if row.face]
        files = [output, *(_file(folder, name) for name in names for folder in PANELS.values())]
        whole = all(read_mark(self._settings.out / file) == mark for file in files)
        return rows if whole and all(self._embeddings.mark(name) == mark for name in names) else []

    def _images(
        self, found: FoundPhoto, photo: NDArray[np.uint8], faces: list[PhotoFace], output: FaceOutput
    ) -> dict[str, NDArray[np.uint8]]:
        """By file name, the whole photo last."""
        images: dict[str, NDArray[np.uint8]] = {}
        for number, (face, mask, completed_face) in enumerate(zip(faces, output.mask, output.completed_face, strict=True), 1):
            covered = (mask[0] * 255).round().byte().numpy()
            pictures = (_to_pixels(face.face), covered, _to_pixels(completed_face))
            images |= {_file(folder, _face_name(found, number)): picture for folder, picture in zip(PANELS.values(), pictures, strict=True)}
            photo = paste_back(photo, completed_face, face.matrix, mask)
        return {**images, _file(PHOTOS, found.name): photo}

    def _write(self, found: FoundPhoto, mark: str, images: dict[str, NDArray[np.uint8]]) -> None:
        """All files or, where one of another photo is in the way, none."""
        for name in images:
            path = self._settings.out / name
            if path.exists() and read_mark(path) != mark:
                other = f"{path} exists and was made from another photo, model or setting"
                raise ValueError(f"{found.path}: {other}: choose another --out")
        for name, image in images.items():
            save_png(self._settings.out / name, image, mark)

    def _rows(self, found: FoundPhoto, faces: list[PhotoFace], output: FaceOutput) -> list[Outcome]:
        return [
            Outcome(str(found.path), "", number, _file(PHOTOS, found.name), self._details(_face_name(found, number), face, covered))
            for number, (face, covered) in enumerate(zip(faces, covered_share(output.mask).tolist(), strict=True), 1)
        ]

    def _details(self, name: str, face: PhotoFace, covered: float) -> dict[str, object]:
        files = {"mask": _file(MASKS, name), "completed_face": _file(COMPLETED, name), "embedding": name}
        known = self._pipeline.thresholds
        seen = {"visible": round(1 - covered, 3)} | ({} if known is None else {"masked": "yes" if covered >= known.masked.limit else "no"})
        sides = dict(zip(("left", "top", "right", "bottom"), face.box.round(1).tolist(), strict=True))
        return {**files, **seen, "detector": face.detector, "score": round(face.score, 3), **sides}


def _face_name(found: FoundPhoto, number: int) -> str:
    return f"{found.name}-{number}"


def _file(folder: str, name: str) -> str:
    return f"{folder}/{name}.png"


def _to_pixels(image: Tensor) -> NDArray[np.uint8]:
    """(3, S, S) in [-1, 1] -> (S, S, 3)."""
    return np.asarray(((image.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy())
