"""Compare the face detectors: faces found, false alarms, landmark errors and time.

    python -m bench.detectors                                   # embedded ORL faces
    python -m bench.detectors --lfw FOLDER --images 400         # a seeded sample of LFW
    python -m bench.detectors --photos FOLDER                   # without landmarks: share with a face, time
    python -m bench.detectors --photos FOLDER --turned          # upright photos, also turned by 90, 180, 270 degrees

Each detector runs on the bare photo and on the same photo under a rendered occluder, with alternating kinds. A face is
found if the centre of a box is within one eye distance of the centre of its landmarks; all other boxes are extra, on
LFW including bystanders. Landmark errors are medians over the found faces in eye distances. There are two references:
"dlib" is the 68-point predictor on the bare photo (on ORL `orl_landmarks.csv`), "self" the same detector on it.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from deocc.data import OrlFaces
from deocc.detection import Detection, Detector, create_detector, list_detectors
from deocc.inference.batch import find_photos
from deocc.inference.faces import FaceFinder, NoFaceError, find_rivals
from deocc.inference.photos import read_photo
from deocc.masking import list_kinds, render

PADDING, SCALE = 24, 3
_REFERENCE = "dlib"
_SLOW = "dlib_cnn"

Image = NDArray[np.uint8]
Points = NDArray[np.float64]


class Photograph(NamedTuple):
    """An image (H, W, 3) RGB and the reference landmarks (5, 2) of its face in pixels."""

    image: Image
    landmarks: Points


class Outcome(NamedTuple):
    """Result of a detector on one photograph: landmarks (5, 2) or None, number of extra boxes, seconds."""

    landmarks: Points | None
    extra: int
    seconds: float


def orl_photographs(number: int) -> list[Photograph]:
    """Return ORL faces, spread evenly over the people, padded by their edges and enlarged three times."""
    faces, photographs = OrlFaces(), []
    for index in _spread(len(faces), number):
        padded = np.pad(faces.image(index), ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="edge")
        image = cv2.resize(padded, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
        landmarks = (faces.landmarks[index] + PADDING + 0.5) * SCALE - 0.5
        photographs.append(Photograph(np.asarray(image, dtype=np.uint8), landmarks))
    return photographs


def _spread(count: int, number: int) -> list[int]:
    """Return at most `number` of `count` positions, evenly spread."""
    positions: list[int] = np.linspace(0, count, min(number, count), endpoint=False).astype(int).tolist()
    return positions


def lfw_photographs(folder: Path, number: int, seed: int = 0) -> list[Photograph]:
    """Return a seeded sample of LFW photos with the landmarks of dlib; photos without a face found by dlib are skipped.

    Raises:
        ValueError: there is no photo in the folder.
    """
    paths = sorted(folder.rglob("*_[0-9][0-9][0-9][0-9].jpg"))
    if not paths:
        raise ValueError(f"no LFW photo NAME_0001.jpg in {folder} or below: give the folder of the images")
    order = np.random.default_rng(seed).permutation(len(paths))[:number]
    detector = create_detector(_REFERENCE)
    photographs = []
    for index in sorted(order.tolist()):
        image = read_photo(paths[index])
        middle = (np.array(image.shape[1::-1]) - 1) / 2
        faces = detector.detect(image)
        if faces:
            landmarks = min(faces, key=lambda face: float(np.linalg.norm(centre(face) - middle))).landmarks
            photographs.append(Photograph(image, landmarks))
    return photographs


def mask_all(bare: Sequence[Photograph]) -> list[Photograph]:
    """Render occluders with alternating kinds; the position in the list is the seed."""
    masked = []
    for number, photograph in enumerate(bare):
        face = torch.tensor(photograph.image).permute(2, 0, 1)[None] / 127.5 - 1
        landmarks = torch.tensor(photograph.landmarks, dtype=torch.float32)[None]
        face, _ = render(face, landmarks, torch.tensor([number % len(list_kinds())]), torch.tensor([number]))
        masked.append(photograph._replace(image=face[0].add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()))
    return masked


def measure(detector: Detector, photograph: Photograph) -> Outcome:
    """Run the detector once and find the box of the reference face."""
    start = time.perf_counter()
    faces = detector.detect(photograph.image)
    seconds = time.perf_counter() - start
    truth = photograph.landmarks
    near = [face for face in faces if np.linalg.norm(centre(face) - truth.mean(0)) <= _eye_distance(truth)]
    return Outcome(near[0].landmarks if near else None, len(faces) - len(near), seconds)


def centre(face: Detection) -> Points:
    return np.asarray(face.box.reshape(2, 2).mean(0))


def _eye_distance(landmarks: Points) -> float:
    return float(np.linalg.norm(landmarks[1] - landmarks[0]))


def errors(found: Sequence[Points | None], truth: Sequence[Points | None]) -> list[str]:
    """Return the median errors of eyes, nose and mouth corners in eye distances, over faces with both landmarks."""
    pairs = [(a, b) for a, b in zip(found, truth, strict=True) if a is not None and b is not None]
    if not pairs:
        return ["", "", ""]
    relative = np.array([np.linalg.norm(a - b, axis=1) / _eye_distance(b) for a, b in pairs])
    return [f"{np.median(relative[:, points]):.3f}" for points in (slice(0, 2), slice(2, 3), slice(3, 5))]


def row(outcomes: Sequence[Outcome], truth: Sequence[Points], own: Sequence[Points | None] | None) -> list[str]:
    """Return the cells of one row: found, extra boxes, errors against both references, time."""
    found = [outcome.landmarks for outcome in outcomes]
    cells = [
        f"{sum(landmarks is not None for landmarks in found)} of {len(found)}",
        str(sum(outcome.extra for outcome in outcomes)),
    ]
    cells += [" ".join(errors(found, truth)), "" if own is None else " ".join(errors(found, own))]
    return [*cells, f"{1000 * statistics.median(outcome.seconds for outcome in outcomes):.0f}"]


def compare_faces(detectors: dict[str, Detector], bare: Sequence[Photograph], slow_images: int) -> Table:
    table = Table(
        "detector", "faces", "found", "extra boxes", "eyes, nose, mouth: dlib", "eyes, nose, mouth: self", "ms an image"
    )
    masked = mask_all(bare)
    truth = [photograph.landmarks for photograph in bare]
    for name, detector in detectors.items():
        count = slow_images if name == _SLOW else len(bare)
        detector.detect(bare[0].image)  # the first call loads what later calls reuse
        on_bare = [measure(detector, photograph) for photograph in bare[:count]]
        on_masked = [measure(detector, photograph) for photograph in masked[:count]]
        table.add_row(name, "bare", *row(on_bare, truth[:count], None))
        table.add_row(name, "masked", *row(on_masked, truth[:count], [outcome.landmarks for outcome in on_bare]))
    return table


def compare_photos(detectors: dict[str, Detector], paths: Sequence[Path], slow_images: int) -> Table:
    table = Table("detector", "photos", "with a face", "share", "faces a photo", "choice left open", "ms a photo")
    for name, detector in detectors.items():
        counts, seconds, unclear = [], [], 0
        for index in _spread(len(paths), slow_images if name == _SLOW else len(paths)):
            photo = read_photo(paths[index])
            start = time.perf_counter()
            found = detector.detect(photo)
            seconds.append(time.perf_counter() - start)
            counts.append(len(found))
            unclear += bool(found and find_rivals(found))
        shown = sum(count > 0 for count in counts)
        share, faces = f"{100 * shown / len(counts):.1f} %", f"{sum(counts) / len(counts):.2f}"
        milliseconds = f"{1000 * statistics.median(seconds):.0f}"
        table.add_row(name, str(len(counts)), str(shown), share, faces, str(unclear), milliseconds)
    return table


def compare_turned(finders: dict[str, FaceFinder], paths: Sequence[Path]) -> Table:
    """Turn upright photos and count those of which a face is found, and found in the right orientation."""
    table = Table("detector", "turned by", "photos", "with a face", "right orientation")
    for name, finder in finders.items():
        for quarters in range(4):
            turns = []
            for path in track(paths, f"{name}, {90 * quarters} degrees", console=Console(stderr=True), transient=True):
                try:
                    turns.append(finder.find(np.ascontiguousarray(np.rot90(read_photo(path), -quarters)))[0].turned)
                except NoFaceError:
                    continue
            right = sum(turn == 90 * quarters for turn in turns)
            table.add_row(name, str(90 * quarters), str(len(paths)), str(len(turns)), str(right))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    warnings.filterwarnings("ignore", ".*found the face after turning")
    parser = argparse.ArgumentParser(description="Compare the face detectors.")
    parser.add_argument("--images", type=int, default=400, help="faces of ORL or LFW to look at (default: 400)")
    parser.add_argument(
        "--lfw", type=Path, metavar="FOLDER", help="folder of LFW images, in place of the embedded ORL faces"
    )
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="FOLDER",
        help="any photos: measure the share with a face, how often the choice among several is left open, and the time",
    )
    parser.add_argument(
        "--turned", action="store_true", help="with --photos: turn them, and check the orientation found"
    )
    parser.add_argument("--detectors", nargs="+", choices=list_detectors(), default=["dlib", _SLOW, "mtcnn"])
    parser.add_argument("--yunet", metavar="FILE", help="weights of yunet")
    parser.add_argument("--slow-images", type=int, default=40, help=f"images for {_SLOW}, which is slow (default: 40)")
    chosen = parser.parse_args(argv)
    if chosen.turned and chosen.photos is None:
        parser.error("--turned needs upright photos: give their folder as --photos")
    detectors = {name: create_detector(name, chosen.yunet if name == "yunet" else None) for name in chosen.detectors}
    if chosen.photos is not None:
        paths = [photo.path for photo in find_photos([chosen.photos])[0]]
        if not paths:
            parser.error(f"no photo in {chosen.photos}: give a folder of images")
        if chosen.turned:
            weights = {"yunet": chosen.yunet}
            table = compare_turned({name: FaceFinder(112, name, weights.get(name)) for name in detectors}, paths)
        else:
            table = compare_photos(detectors, paths, chosen.slow_images)
    else:
        bare = orl_photographs(chosen.images) if chosen.lfw is None else lfw_photographs(chosen.lfw, chosen.images)
        table = compare_faces(detectors, bare, chosen.slow_images)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
