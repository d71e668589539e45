"""Recognition when faces are found under their masks: `python -m bench.found_faces --data data/lfw`.

`deocc test` aligns a masked face by the landmarks of the bare photo. A user's photo has none: the detector guesses what
the mask hides. Masks are drawn into photos of LFW, and every bare photo is compared with every masked photo, both
aligned by the landmarks of the data set or by the detector of `deocc.load`. The people are those of `--split`: "val",
on whom recipes are chosen, or "test". With several faces in a photo, the one nearest to the landmarks counts. The
teacher is compared as it embeds the same crops.
"""

import argparse
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import deocc
from deocc.data import FaceSet, LfwFaces
from deocc.detection import create_detector
from deocc.evaluation.verification import verification_scores
from deocc.geometry import TEMPLATES, similarity_transform
from deocc.inference.faces import cut
from deocc.inference.pipeline import Pipeline
from deocc.masking import draw_kinds, render
from deocc.networks.embedders.embedder import centred

KINDS = ("surgical", "cloth", "n95", "scarf", "sunglasses", "hand", "box", "strokes")
_RATES = ("tar@1e-2", "tar@1e-3")


class Crops(NamedTuple):
    """Aligned crops (N, 3, S, S) of the same photos, bare and masked, and how many masked faces were not found."""

    bare: Tensor
    masked: Tensor
    missed: int


def crops(faces: FaceSet, indices: NDArray[np.int64], size: int, found: bool) -> Crops:
    """Cut all faces by the landmarks of the data set, or `found` by the detector; missed ones by the data set's."""
    detector, missed = create_detector("mtcnn"), 0
    bare, masked = list[Tensor](), list[Tensor]()
    for index in track(indices.tolist(), "cutting faces", console=Console(stderr=True), transient=True):
        photo, points = faces.image(index), np.asarray(faces.landmarks[index], np.float64)
        seed = torch.tensor([index * 7919])
        pixels = torch.tensor(photo).permute(2, 0, 1)[None].float() / 127.5 - 1
        landmarks = torch.from_numpy(points)[None].float()
        drawn = render(pixels, landmarks, draw_kinds(seed, KINDS, 0.0), seed + 1)[0][0]
        covered = drawn.add(1).mul(127.5).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
        for image, collected in ((photo, bare), (covered, masked)):
            at = points
            if found:
                near = sorted(detector.detect(image), key=lambda face: float(np.abs(face.landmarks - points).sum()))
                at = near[0].landmarks if near else points
                missed += not near and image is covered
            target = TEMPLATES["canonical"].tensor(size)
            collected.append(cut(image, similarity_transform(torch.from_numpy(at).float(), target), size))
    return Crops(torch.stack(bare), torch.stack(masked), missed)


def embeddings(pipeline: Pipeline, faces: Tensor) -> dict[str, Tensor]:
    """Return unit embeddings (N, D) of the student, with predicted masks, and of the model's teacher if it has one."""
    found = {"student": pipeline.embed_faces(faces)}
    if pipeline.network.teacher is not None:
        with torch.no_grad():
            raw = torch.cat([pipeline.network.teacher(batch) for batch in faces.split(32)])
        found["teacher"] = centred(raw, pipeline.network.center)
    return found


def table_of(pipeline: Pipeline, faces: FaceSet, indices: NDArray[np.int64]) -> Table:
    """Return EER and true accept rates by network and alignment, bare against masked and bare against bare."""
    identity = torch.from_numpy(faces.identity[indices])
    table = Table("pairs", "landmarks", "network", "EER %", *[f"{rate} %" for rate in _RATES], "masked faces missed")
    for found in (False, True):
        cut_faces = crops(faces, indices, pipeline.size, found)
        bare, masked = embeddings(pipeline, cut_faces.bare), embeddings(pipeline, cut_faces.masked)
        for pairs, second in (("bare and masked", masked), ("bare", bare)):
            for network in bare:
                first, other = torch.triu_indices(len(identity), len(identity), 1) if second is bare else _all(identity)
                similarity = (bare[network][first] * second[network][other]).sum(1)
                scores = verification_scores(similarity, identity[first] == identity[other])
                figures = [f"{100 * scores[name]:.2f}" for name in ("eer", *_RATES)]
                by = "detector" if found else "data set"
                table.add_row(pairs, by, network, *figures, str(cut_faces.missed) if second is masked else "")
    return table


def _all(identity: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of all ordered pairs of different photos."""
    first, second = torch.cartesian_prod(torch.arange(len(identity)), torch.arange(len(identity))).unbind(1)
    return first[first != second], second[first != second]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Recognition when faces are found under their masks.")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="the folder of LFW")
    parser.add_argument("--model", metavar="PATH", help="what deocc.load accepts (default: the packaged model)")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="whose photos (default: val)")
    parser.add_argument("--photos", type=int, default=700, metavar="N", help="at most this many (default: 700)")
    parser.add_argument("--test-folds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="half (default: 0 1 2 3 4)")
    chosen = parser.parse_args(argv)
    pipeline = deocc.load() if chosen.model is None else deocc.load(chosen.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faces = LfwFaces(chosen.data, test_folds=chosen.test_folds, val_identities=300)
    indices = faces.bare(chosen.split)
    kept = np.random.default_rng(0).choice(indices, min(chosen.photos, len(indices)), replace=False)
    Console().print(table_of(pipeline, faces, np.sort(kept)))


if __name__ == "__main__":
    main()
