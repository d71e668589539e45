"""Recognition by the share of the mean that embeddings keep: `python -m bench.mean_share --data data/lfw`.

`deocc.networks.embedders.embedder.unit_embedding` keeps `MEAN_SHARE` of the component along the mean embedding. This
compares shares, and subtraction of the mean, on the validation people of LFW: bare with bare and bare with masked
faces, by the model's teacher and, with predicted masks, by its student. All faces are aligned by the landmarks of the
bare photos.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import deocc
from bench.found_faces import crops, read_lfw
from deocc.evaluation.verification import verification_scores
from deocc.inference.network import FaceNetwork
from deocc.networks.embedders.embedder import Embedder, centred, unit_embedding
from deocc.networks.student import embed_by_mask

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
_SCORES = ("eer", "tar@1e-2", "tar@1e-3")


def raw_embeddings(
    network: FaceNetwork, teacher: Embedder, bare: Tensor, masked: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the teacher's raw embeddings (N, D) of bare and of masked faces, and the student's of masked faces."""
    found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    batches = list(zip(bare.split(32), masked.split(32), strict=True))
    with torch.no_grad():
        for face, masked_face in track(batches, "embedding", console=Console(stderr=True), transient=True):
            mask = network.predict_mask(masked_face)
            completed_face = network.deoccluder(masked_face, mask) if network.deoccluder is not None else masked_face
            found[0].append(teacher(face))
            found[1].append(teacher(masked_face))
            found[2].append(embed_by_mask(network.student, teacher, masked_face, completed_face, mask))
    return torch.cat(found[0]), torch.cat(found[1]), torch.cat(found[2])


def compare(first: Tensor, second: Tensor, identity: Tensor) -> list[str]:
    """Return EER and true accept rates in percent of all ordered pairs of different photos, of unit embeddings."""
    off_diagonal = ~torch.eye(len(identity), dtype=torch.bool)
    same = identity[:, None] == identity[None]
    scores = verification_scores((first @ second.T)[off_diagonal], same[off_diagonal])
    return [f"{100 * scores[name]:.2f}" for name in _SCORES]


def table_of(network: FaceNetwork, teacher: Embedder, bare: Tensor, masked: Tensor, identity: Tensor) -> Table:
    """Return EER / TAR at 1e-2 / TAR at 1e-3 by share."""
    teacher_bare, teacher_masked, student = raw_embeddings(network, teacher, bare, masked)
    table = Table("share", "teacher, bare", "teacher, masked", "student, masked", title="EER, TAR@1e-2, TAR@1e-3, %")
    ways: dict[str, Callable[[Tensor], Tensor]] = {"mean subtracted": lambda raw: centred(raw, network.center)}
    for share in SHARES:
        ways[f"{share:.1f}"] = lambda raw, share=share: unit_embedding(raw, network.center, share)  # type: ignore[misc]
    for name, unit in ways.items():
        gallery = unit(teacher_bare)
        cells = [compare(gallery, unit(raw), identity) for raw in (teacher_bare, teacher_masked, student)]
        table.add_row(name, *(" ".join(cell) for cell in cells))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Recognition by the share of the mean that embeddings keep.")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="the folder of LFW")
    parser.add_argument("--model", metavar="PATH", help="what deocc.load accepts (default: the packaged model)")
    chosen = parser.parse_args(argv)
    pipeline = deocc.load() if chosen.model is None else deocc.load(chosen.model)
    teacher = pipeline.network.teacher
    if teacher is None:
        parser.error("the model does not contain its teacher: give one trained with bare_faces teacher")
    faces = read_lfw(chosen.data, parser)
    indices = faces.bare("val")
    cut_faces = crops(faces, indices, pipeline.size, None)
    identity = torch.from_numpy(faces.identity[indices])
    Console().print(table_of(pipeline.network, teacher, cut_faces.bare, cut_faces.masked, identity))


if __name__ == "__main__":
    main()
