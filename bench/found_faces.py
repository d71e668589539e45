"""Recognition when faces are found under their masks: `python -m bench.found_faces --data data/lfw`.

`deocc test` aligns a masked face by the landmarks of the bare photo. A user's photo has none: the detector guesses what
the mask hides. Masks are drawn into photos of LFW, and every bare photo is compared with every masked photo, both
aligned by the landmarks of the data set or, as the commands do it, by those of the detector. The people are those of
`--split`: "val", for choices, or "test".
With several faces in a photo, the one nearest to the landmarks counts. The teacher embeds the same crops.
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
from deocc.evaluation.verification import verification_scores
from deocc.geometry import TEMPLATES, invert_transform, similarity_transform, transform_points
from deocc.inference.faces import FaceFinder, NoFaceError, cut
from deocc.inference.pipeline import Pipeline
from deocc.masking import draw_kinds, render
from deocc.networks.embedders.embedder import unit_embedding

KINDS = ("surgical", "cloth", "n95", "scarf", "sunglasses", "hand", "box", "strokes")
_RATES = ("tar@1e-2", "tar@1e-3")


class Crops(NamedTuple):
    """Aligned crops (N, 3, S, S) of the same photos, bare and masked, and how many masked faces were not found."""

    bare: Tensor
    masked: Tensor
    missed: int


def crops(faces: FaceSet, indices: NDArray[np.int64], size: int, finder: FaceFinder | None) -> Crops:
    """Cut all faces as found by the finder, or by the landmarks of the data set if it is None or finds none."""
    missed = 0
    bare, masked = list[Tensor](), list[Tensor]()
    for index in track(indices.tolist(), "cutting faces", console=Console(stderr=True), transient=True):
        photo, points = faces.image(index), np.asarray(faces.landmarks[index], np.float64)
        seed = torch.tensor([index * 7919])
        pixels = torch.tensor(photo).permute(2, 0, 1)[None].float() / 127.5 - 1
        landmarks = torch.from_numpy(points)[None].float()
        drawn = render(pixels, landmarks, draw_kinds(seed, KINDS, 0.0), seed + 1)[0][0]
        covered = drawn.add(1).mul(127.5).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
        for image, collected in ((photo, bare), (covered, masked)):
            crop = cut(image, similarity_transform(landmarks[0], TEMPLATES["canonical"].tensor(size)), size)
            try:
                crop = crop if finder is None else nearest(finder, image, landmarks[0])
            except NoFaceError:
                missed += image is covered
            collected.append(crop)
    return Crops(torch.stack(bare), torch.stack(masked), missed)


def nearest(finder: FaceFinder, photo: NDArray[np.uint8], landmarks: Tensor) -> Tensor:
    """Return the crop of the found face whose landmarks are nearest to the given ones (5, 2) in pixels of the photo."""
    found = finder.find(photo)
    in_photo = [transform_points(face.landmarks, invert_transform(face.matrix)) for face in found]
    distances = torch.stack([(points - landmarks).norm() for points in in_photo])
    return found[int(distances.argmin())].face


def embeddings(pipeline: Pipeline, faces: Tensor) -> dict[str, Tensor]:
    """Return unit embeddings (N, D) of the student, with predicted masks, and of the model's teacher if it has one."""
    found = {"student": pipeline.embed_faces(faces)}
    if pipeline.network.teacher is not None:
        with torch.no_grad():
            raw = torch.cat([pipeline.network.teacher(batch) for batch in faces.split(32)])
        found["teacher"] = unit_embedding(raw, pipeline.network.center)
    return found


def table_of(pipeline: Pipeline, faces: FaceSet, indices: NDArray[np.int64], weights: str | None = None) -> Table:
    """Return EER and true accept rates by network and alignment, bare against masked and bare against bare.

    The detector is MTCNN with the given weights file, default the packaged one.
    """
    identity = torch.from_numpy(faces.identity[indices])
    table = Table("pairs", "landmarks", "network", "EER %", "TAR@1e-2 %", "TAR@1e-3 %", "masked faces missed")
    alignments = {"data set": None, "detector": FaceFinder(pipeline.size, "mtcnn", weights, every=True)}
    for alignment, finder in alignments.items():
        cut_faces = crops(faces, indices, pipeline.size, finder)
        bare, masked = embeddings(pipeline, cut_faces.bare), embeddings(pipeline, cut_faces.masked)
        for pairs, second in (("bare and masked", masked), ("bare", bare)):
            for network in bare:
                first, other = torch.triu_indices(len(identity), len(identity), 1) if second is bare else _all(identity)
                similarity = (bare[network][first] * second[network][other]).sum(1)
                scores = verification_scores(similarity, identity[first] == identity[other])
                figures = [f"{100 * scores[name]:.2f}" for name in ("eer", *_RATES)]
                table.add_row(pairs, alignment, network, *figures, str(cut_faces.missed) if second is masked else "")
    return table


def _all(identity: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of all ordered pairs of different photos."""
    first, second = torch.cartesian_prod(torch.arange(len(identity)), torch.arange(len(identity))).unbind(1)
    return first[first != second], second[first != second]


def read_lfw(folder: str, parser: argparse.ArgumentParser) -> LfwFaces:
    """Return LFW with the people split as for the packaged model; end the program if the folder is unusable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LfwFaces(folder, test_folds=[0, 1, 2, 3, 4], val_identities=300)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Recognition when faces are found under their masks.")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="the folder of LFW")
    parser.add_argument("--model", metavar="PATH", help="what deocc.load accepts (default: the packaged model)")
    parser.add_argument("--mtcnn", metavar="FILE", help="weights of the detector (default: the packaged ones)")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="whose photos (default: val)")
    parser.add_argument("--photos", type=int, default=700, metavar="N", help="at most this many (default: 700)")
    chosen = parser.parse_args(argv)
    pipeline = deocc.load() if chosen.model is None else deocc.load(chosen.model)
    faces = read_lfw(chosen.data, parser)
    indices = faces.bare(chosen.split)
    kept = np.random.default_rng(0).choice(indices, min(chosen.photos, len(indices)), replace=False)
    Console().print(table_of(pipeline, faces, np.sort(kept), chosen.mtcnn))


if __name__ == "__main__":
    main()
