"""Check the predicted mask on photos of masked people: `python -m bench.masked_photos --photos FOLDER`.

Such photos have no annotated masks, so the detected landmarks are the reference: a worn face mask covers the nose tip
and both mouth corners and leaves both eyes free. A point is covered if the predicted mask is at least 0.5 at its pixel
of the canonical crop.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

import deocc
from deocc.evaluation.bootstrap import wilson
from deocc.inference.batch import find_photos
from deocc.inference.faces import NoFaceError, PhotoFace
from deocc.inference.photos import read_photo
from deocc.inference.pipeline import Pipeline

_COLUMNS, _TILE = 12, 128
_EYES, _LOWER_FACE = [0, 1], [2, 3, 4]


class MaskedFace(NamedTuple):
    """The main face of a photo and the mask predicted for it, (S, S) in [0, 1]."""

    face: PhotoFace
    mask: Tensor

    @property
    def covered(self) -> Tensor:
        """(5,) bool: the landmarks that the mask covers; a landmark outside the crop counts as its nearest pixel."""
        column, row = self.face.landmarks.round().long().clamp(0, len(self.mask) - 1).unbind(-1)
        return self.mask[row, column] >= 0.5


def predict_masks(paths: Sequence[Path], pipeline: Pipeline) -> list[MaskedFace]:
    """Find the main face of each photo and predict its mask; photos without a face are left out."""
    found = []
    for path in track(paths, "predicting masks", console=Console(stderr=True), transient=True):
        try:
            face = pipeline.finder.find(read_photo(path), str(path))[0]
        except NoFaceError:
            continue
        found.append(MaskedFace(face, pipeline.process_faces(face.face[None]).mask[0, 0].cpu()))
    return found


def summarise(photos: int, faces: Sequence[MaskedFace]) -> dict[str, tuple[int, int]]:
    covered = torch.stack([face.covered for face in faces]) if faces else torch.zeros(0, 5, dtype=torch.bool)
    return {
        "photos with a detected face": (len(faces), photos),
        "faces with nose tip and mouth corners covered": (int(covered[:, _LOWER_FACE].all(1).sum()), len(faces)),
        "faces with neither eye covered": (int((~covered[:, _EYES]).all(1).sum()), len(faces)),
    }


def contact_sheet(faces: Sequence[MaskedFace]) -> NDArray[np.uint8]:
    """RGB image of all crops with the outline of the mask in green and the landmarks in red."""
    tiles = []
    for face in faces:
        pixels = face.face.face.add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
        tile = np.asarray(cv2.resize(pixels, (_TILE, _TILE), interpolation=cv2.INTER_AREA), np.uint8)
        mask = cv2.resize(face.mask.float().numpy(), (_TILE, _TILE)) >= 0.5
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, outlines, -1, (0, 255, 0), 1)
        for x, y in ((face.face.landmarks + 0.5) * (_TILE / len(face.mask)) - 0.5).round().int().tolist():
            cv2.circle(tile, (x, y), 1, (255, 0, 0), -1)
        tiles.append(tile)
    tiles += [np.zeros((_TILE, _TILE, 3), np.uint8)] * (-len(tiles) % _COLUMNS)
    return np.concatenate([np.concatenate(tiles[i : i + _COLUMNS], 1) for i in range(0, len(tiles), _COLUMNS)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Where the predicted mask falls on photos of masked people.")
    parser.add_argument("--photos", type=Path, required=True, metavar="FOLDER", help="photos of people in face masks")
    parser.add_argument("--model", metavar="PATH", help="what deocc.load accepts (default: the packaged model)")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="write all crops with the outlined mask here")
    chosen = parser.parse_args(argv)
    paths = [photo.path for photo in find_photos([chosen.photos])[0]]
    if not paths:
        parser.error(f"no photo in {chosen.photos}: give a folder of images")
    pipeline = deocc.load() if chosen.model is None else deocc.load(chosen.model)
    faces = predict_masks(paths, pipeline)
    for name, (successes, trials) in summarise(len(paths), faces).items():
        low, high = wilson(successes, trials)
        share = successes / trials if trials else float("nan")
        print(
            f"{name}: {successes} of {trials}, {100 * share:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})"
        )
    if chosen.sheet is not None and faces:
        cv2.imwrite(str(chosen.sheet), contact_sheet(faces)[..., ::-1])
        print(f"wrote {chosen.sheet}")


if __name__ == "__main__":
    main()
