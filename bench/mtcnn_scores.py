"""Scores of MTCNN for masked faces and for what is no face: `python -m bench.mtcnn_scores FILE --data data/lfw`.

The photos are those of LFW's validation people that show one face to the published networks, the FILE of
`bench/mtcnn_weights.py`, at three sizes and with the occluders of `bench.mtcnn_training`. For each threshold of the
score the table has the share of faces that are lost and the mean number of false faces in a photo, which overlap the
face by less than 30 %. The error of the landmarks is in eye distances, of the faces that are found.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.found_faces import read_lfw
from bench.mtcnn_training import SIDE, Photos, draw, overlap, read_photos
from deocc.detection.mtcnn import WEIGHTS_FILE, MtcnnDetector
from deocc.inference.faces import is_plausible

PHOTO_SIDES = (168, 84, 50)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


class Scores(NamedTuple):
    """Scores of the faces of all photos, 0 if not found, and of false faces; errors (N, 5) of landmarks."""

    faces: NDArray[np.float64]
    false: NDArray[np.float64]
    errors: NDArray[np.float64]

    def lost(self, threshold: float) -> float:
        """Return the share of faces below a threshold."""
        return float((self.faces < threshold).mean())

    def false_per_photo(self, threshold: float) -> float:
        """Return the mean number of false faces in a photo that reach a threshold."""
        return float((self.false >= threshold).sum() / len(self.faces))


def scores_of(detector: MtcnnDetector, photos: Photos, sides: Iterable[int] = PHOTO_SIDES) -> Scores:
    """Return the scores that a detector gives in the photos, reduced to each of the sides in pixels."""
    faces, false, errors = list[float](), list[float](), list[NDArray[np.float64]]()
    for side in sides:
        for image, box, landmarks in track(
            list(zip(*photos, strict=True)), "finding faces", console=Console(stderr=True), transient=True
        ):
            scale = side / SIDE
            small = np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
            found = [each for each in detector.find_all(small, THRESHOLDS[0]) if is_plausible(each)]
            overlaps = [float(overlap(box * scale, each.box[None] + 0.5)[0]) for each in found]
            false += [each.score for each, share in zip(found, overlaps, strict=True) if share < 0.3]
            right = [each for each, share in zip(found, overlaps, strict=True) if share > 0.4]
            best = max(right, key=lambda each: each.score, default=None)
            faces.append(0.0 if best is None else best.score)
            if best is not None:
                distances = np.linalg.norm((best.landmarks + 0.5) / scale - landmarks, axis=1)
                errors.append(distances / np.linalg.norm(landmarks[1] - landmarks[0]))
    return Scores(np.array(faces), np.array(false), np.stack(errors))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Scores of MTCNN for masked faces and for what is no face.")
    parser.add_argument("published", type=Path, help="the published weights, as bench.mtcnn_weights writes them")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="the folder of LFW")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_FILE, help="whose scores (default: the packaged ones)")
    chosen = parser.parse_args(argv)
    try:
        published, measured = (MtcnnDetector(str(path)) for path in (chosen.published, chosen.weights))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    photos = read_photos(read_lfw(chosen.data, parser), published, "val")
    masked = draw(photos, np.random.default_rng(0), turned=0.0, bare=0.0)
    table = Table("score", "published: lost %", "false faces a photo", "measured: lost %", "false faces a photo")
    both = [scores_of(detector, masked) for detector in (published, measured)]
    for threshold in THRESHOLDS:
        cells = [(f"{100 * own.lost(threshold):.2f}", f"{own.false_per_photo(threshold):.4f}") for own in both]
        table.add_row(str(threshold), *cells[0], *cells[1])
    Console().print(table)
    errors = " and ".join(f"{own.errors.mean():.3f}" for own in both)
    print(f"{len(photos.images)} photos of {len(PHOTO_SIDES)} sizes; error of the landmarks, both: {errors}")


if __name__ == "__main__":
    main()
