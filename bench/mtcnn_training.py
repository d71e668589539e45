"""Train MTCNN for masked faces: `python -m bench.mtcnn_training FILE --data data/lfw`.

The published networks guess the landmarks that a mask hides, overlook masked faces and take parts of a mask for faces.
Training goes on from their weights, the FILE of `bench/mtcnn_weights.py`, with photos of LFW that show one face, of the
people who trained the packaged model. Occluders are drawn into turned and coarsened photos. Of each, squares around the
face are cut out, whose targets are the box that the published networks find in the bare photo and the landmarks of the
data set, and squares without a face: those that the trained networks still take for faces, and random ones.
`python -m bench.mtcnn_scores` and `python -m bench.found_faces` measure the result on validation people.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from bench.found_faces import read_lfw
from deocc.data import FaceSet
from deocc.data.face_set import Split
from deocc.detection.mtcnn import (
    SIDES,
    WEIGHTS_FILE,
    MtcnnDetector,
    apply_network,
    cut_square,
    squares_of,
)
from deocc.geometry import transform_points, warp
from deocc.masking import draw_kinds, render
from deocc.masking.distractors import add_camera_defects, add_cast, add_worn, expose

KINDS = (*2 * ("surgical", "cloth", "n95"), "sunglasses", "hand", "box", "strokes", "blob")
"""Face masks count twice. The scarf is kept for tests."""

SIDE = 168
"""Side in pixels to which photos are reduced; LFW's faces are then about 70 pixels wide."""

_SPREAD = {"proposal": 1.0, "refinement": 1.5, "output": 1.0}  # of the squares around the face
_BARE = 0.3  # share of photos without an occluder
_PHOTOS, _POSITIVES = 24, 4  # photos per step, squares with a face of each
_NEGATIVES, _HARD_NEGATIVES = 3, 8  # squares without a face of each photo: of each random kind, and candidates
_COARSEST = 0.2  # share of `SIDE` to which photos are reduced at most
_TURNED, _LARGEST_TURN = 0.7, 0.7  # share of photos that are turned, by at most this angle in radians
_LEARNING_RATE = 1e-3

Floats = NDArray[np.float64]


class Photos(NamedTuple):
    """Images (N, S, S, 3) with the boxes (N, 4) and landmarks (N, 5, 2) of their faces, relative to pixel edges."""

    images: NDArray[np.uint8]
    boxes: Floats
    landmarks: Floats

    def take(self, index: NDArray[np.int64]) -> "Photos":
        """Return some of the photos."""
        return Photos(self.images[index], self.boxes[index], self.landmarks[index])


class Crops(NamedTuple):
    """Crops (N, 3, S, S) in [0, 255], whether they show a face (N,), and its box and landmarks (N, 14) if so.

    The targets have the form of `apply_network("output")`.
    """

    images: Tensor
    is_face: Tensor
    targets: Tensor


def read_photos(faces: FaceSet, detector: MtcnnDetector, split: Split = "train") -> Photos:
    """Read the photos of a split in which the detector finds one face, that of the landmarks."""
    images, boxes, landmarks = list[NDArray[np.uint8]](), list[Floats](), list[Floats]()
    for index in track(faces.bare(split).tolist(), "finding faces", console=Console(stderr=True), transient=True):
        photo, points = faces.image(index), np.asarray(faces.landmarks[index], np.float64)
        found = detector.detect(photo)
        if len(found) == 1 and np.abs(found[0].landmarks - points).max() < np.ptp(points, 0).max() / 4:
            scale = SIDE / np.array(photo.shape[1::-1])
            images.append(np.asarray(cv2.resize(photo, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8))
            boxes.append((found[0].box + 0.5) * np.tile(scale, 2))
            landmarks.append((points + 0.5) * scale)
    return Photos(np.stack(images), np.stack(boxes), np.stack(landmarks))


def turn(images: Tensor, points: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Turn square images (N, 3, S, S) and points (N, P, 2) in their pixels by angles (N,) in radians."""
    cos, sin, centre = angles.cos(), angles.sin(), (images.shape[-1] - 1) / 2
    upper, lower = torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)
    linear = torch.stack([upper, lower], 1)
    matrix = torch.cat([linear, centre - centre * linear.sum(2, keepdim=True)], 2)
    return warp(images, matrix, images.shape[-1]), transform_points(points, matrix)


def draw(photos: Photos, rng: np.random.Generator, turned: float = _TURNED, bare: float = _BARE) -> Photos:
    """Turn a share of the photos, draw occluders on faces but a share of them, and add the defects of cameras."""
    count = len(photos.images)
    seeds = torch.from_numpy(rng.integers(0, 2**62, count))
    angles = rng.uniform(-_LARGEST_TURN, _LARGEST_TURN, count) * (rng.random(count) < turned)
    images = torch.from_numpy(photos.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    x0, y0, x1, y1 = photos.boxes.T
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    edges = np.stack([x0, y, x, y0, x1, y, x, y1], 1).reshape(-1, 4, 2)  # middles of left, upper, right and lower edge
    points = torch.from_numpy(np.concatenate([photos.landmarks, edges], 1) - 0.5).float()
    images, points = turn(images, points, torch.from_numpy(angles).float())
    landmarks = points[:, :5].contiguous()
    images = add_worn(images, landmarks, seeds)
    masked, mask = render(images, landmarks, draw_kinds(seeds, KINDS, bare), seeds)
    masked = add_camera_defects(add_cast(expose(masked, mask, seeds), landmarks, seeds), seeds)
    pixels = masked.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    moved = points.double().numpy() + 0.5
    centres = moved[:, 5:].mean(1)
    sizes = np.linalg.norm(moved[:, [7, 8]] - moved[:, [5, 6]], axis=2)
    return Photos(pixels, np.concatenate([centres - sizes / 2, centres + sizes / 2], 1), moved[:, :5])


def cut_crops(photos: Photos, detector: MtcnnDetector, rng: np.random.Generator) -> dict[str, Crops]:
    """Cut squares with and without a face out of the photos, each reduced by a random factor, for each network."""
    cut = {network: (list[NDArray[np.uint8]](), list[Floats]()) for network in SIDES}
    for image, box, landmarks in zip(*photos, strict=True):
        side = round(SIDE * min(1.0, _COARSEST ** rng.uniform(-0.6, 1.0)))
        image = np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
        face, points = box * side / SIDE, landmarks * side / SIDE
        proposals = detector.propose(image)
        candidates = {"proposal": proposals, "refinement": proposals, "output": detector.refine(image, proposals)}
        for network, (images, targets) in cut.items():
            for square in [*near(face, rng, _SPREAD[network]), *distant(face, candidates[network], side, rng)]:
                images.append(cut_square(image, square, SIDES[network]))
                own = np.concatenate([face - square, (points - square[:2]).T.ravel()]) / (square[2] - square[0])
                targets.append(own if overlap(face, square[None])[0] > 0.4 else np.full(14, np.nan))
    return {network: _stack(images, targets) for network, (images, targets) in cut.items()}


def _stack(images: Sequence[NDArray[np.uint8]], targets: Sequence[Floats]) -> Crops:
    found = torch.from_numpy(np.stack(targets)).float()
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return Crops(stacked, ~found.isnan().any(1), found.nan_to_num())


def near(face: Floats, rng: np.random.Generator, spread: float = 1.0) -> NDArray[np.int64]:
    """Return squares in whole pixels that are about where and as large as the face."""
    side = (face[2:] - face[:2]).max() * np.exp(spread * rng.uniform(-0.25, 0.3, (_POSITIVES, 1)))
    centres = (face[:2] + face[2:]) / 2 + spread * rng.uniform(-0.15, 0.15, (_POSITIVES, 2)) * side
    squares = squares_of(np.concatenate([centres - side / 2, centres + side / 2], 1))
    return squares[overlap(face, squares) > 0.45]


def distant(face: Floats, candidates: Floats, side: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return squares that hardly overlap the face: of the candidates, anywhere in the photo, and around the face."""
    sides = np.concatenate(
        [
            side * rng.uniform(0.15, 0.6, (_NEGATIVES, 1)),
            (face[2:] - face[:2]).max() * rng.uniform(0.4, 1.6, (_NEGATIVES, 1)),
        ]
    )
    around = (face[:2] + face[2:]) / 2 + rng.uniform(-1, 1, (_NEGATIVES, 2)) * (face[2:] - face[:2])
    centres = np.concatenate([rng.uniform(0, side, (_NEGATIVES, 2)), around])
    drawn = squares_of(np.concatenate([centres - sides / 2, centres + sides / 2], 1))
    wrong = squares_of(candidates[overlap(face, candidates) < 0.3])
    squares = np.concatenate([rng.permutation(wrong)[:_HARD_NEGATIVES], drawn])
    return squares[overlap(face, squares) < 0.3]


def overlap(face: Floats, boxes: NDArray[np.floating] | NDArray[np.int64]) -> Floats:
    """Return intersection over union of a box with boxes (N, 4)."""
    shared = (np.minimum(face[2:], boxes[:, 2:]) - np.maximum(face[:2], boxes[:, :2])).clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (face[2:] - face[:2]).prod()
    return np.asarray(shared / (areas - shared), np.float64)


def loss_of(output: Tensor, crops: Crops) -> Tensor:
    """Cross-entropy, of the hardest 70 % of crops without a face, and l1 distances of box and landmarks."""
    entropy = F.binary_cross_entropy(output[:, 0].clamp(1e-6, 1 - 1e-6), crops.is_face.float(), reduction="none")
    missed, false = entropy[crops.is_face], entropy[~crops.is_face]
    classified = missed.mean() + false.topk(max(1, int(0.7 * len(false)))).values.mean()
    places = output[:, 1:]
    error = (places - crops.targets[:, : places.shape[1]])[crops.is_face].abs().mean(0)
    landmarks = error[4:].mean() if len(error) > 4 else 0.0  # only the third network finds any
    return classified + 2 * error[:4].mean() + 20 * landmarks


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train MTCNN for masked faces.")
    parser.add_argument("published", type=Path, help="the weights to start from, as bench.mtcnn_weights writes them")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="the folder of LFW")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--output", type=Path, default=WEIGHTS_FILE, help="default: the file in the package")
    chosen = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    try:
        detector = MtcnnDetector(str(chosen.published))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    photos = read_photos(read_lfw(chosen.data, parser), detector)
    weights = detector.weights
    trained = [tensor.requires_grad_() for tensor in weights.values()]
    optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, chosen.steps, pct_start=0.05)
    print(f"training on {len(photos.images)} photos", flush=True)
    losses = list[list[float]]()
    for step in track(range(1, chosen.steps + 1), "training", console=Console(stderr=True), transient=True):
        index = rng.choice(len(photos.images), min(_PHOTOS, len(photos.images)), replace=False)
        crops = cut_crops(draw(photos.take(index), rng), detector, rng)
        terms = [loss_of(apply_network(weights, network, own.images).flatten(1), own) for network, own in crops.items()]
        optimizer.zero_grad()
        torch.stack(terms).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
        schedule.step()
        losses.append([float(term.detach()) for term in terms])
        if step % 100 == 0 or step == chosen.steps:
            means = zip(crops, np.mean(losses[-100:], 0), strict=True)
            print(f"step {step}: " + ", ".join(f"loss of {network} {mean:.4f}" for network, mean in means), flush=True)
            half = {name: tensor.detach().half().contiguous() for name, tensor in weights.items()}
            save_file(half, chosen.output, metadata={"source": "facenet-pytorch 2.6.0, trained on masked faces of LFW"})


if __name__ == "__main__":
    main()
