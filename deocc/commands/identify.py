"""`deocc identify GALLERY PHOTOS`: find the people of a gallery in photos."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deocc.commands.arguments import PARSERS
from deocc.commands.model import detection_of, finder_of, load_model, model_hash
from deocc.evaluation.thresholds import Calibration
from deocc.inference import gallery
from deocc.inference.batch import FoundPhoto, Outcome, OutcomeFile, find_photos, process_photos
from deocc.inference.faces import FaceFinder
from deocc.inference.outputs import check_writable, lock_out
from deocc.inference.photos import read_photo
from deocc.inference.pipeline import Pipeline, condition_of
from deocc.messages import printable, say

_WIDTH: Final = 200  # of the printed table if the output is no terminal


def main(argv: Sequence[str]) -> int:
    """Run `deocc identify GALLERY PHOTOS...`; return 0 if all photos were processed, 1 if one was left out.

    `docs/pages/photos.md` describes the answers. Prints a table, or with --json a list, and writes it to --out with
    more columns: a row for each face, and one for each photo that was left out, including gallery photos. With
    --save-index the embeddings of gallery photos of the same size and modification time, model and detector settings
    are reused.
    """
    chosen = PARSERS["identify"]().parse_args(argv)
    if chosen.top < 1:
        raise ValueError(f"--top {chosen.top}: list at least 1 person")
    if not 0 < chosen.false_accept_rate <= 1:
        raise ValueError(f"--false-accept-rate {chosen.false_accept_rate:g}: give a share above 0 and at most 1")
    check_writable(chosen.out.parent, f"--out {chosen.out}")
    if chosen.save_index is not None:
        check_writable(chosen.save_index.parent, f"--save-index {chosen.save_index}")
    with lock_out(chosen.out):
        return _identify(chosen)


def _identify(chosen: argparse.Namespace) -> int:
    table = OutcomeFile(chosen.out)
    if any(row.done and "answer" not in row.details for row in table.all_rows()):
        raise ValueError(f"{chosen.out} is the table of another command: choose another --out")
    pipeline = load_model(chosen)
    index = gallery.PersonIndex(len(pipeline.network.center), chosen.index)
    if pipeline.thresholds is None:
        raise ValueError(
            "this model has no thresholds to tell unknown people by: write them with `deocc test --checkpoint RUN`"
        )
    finder = pipeline.finder = finder_of(chosen, pipeline.size)
    cache, results = None, [chosen.out]
    if chosen.save_index is not None:
        detection = detection_of(chosen)[1:-1]  # without --all and --face, which do not concern the gallery
        cache = gallery.GalleryCache(chosen.save_index, repr((model_hash(pipeline), detection)))
        results.append(chosen.save_index)
    known, problems = gallery.read_gallery(chosen.gallery, pipeline, finder, cache, results)
    people = [face.person for face in known]
    say(f"gallery: {len(set(people))} people, {len(people)} faces")
    index.add(np.stack([face.embedding for face in known]), people)
    problems += gallery.find_conflicts(known, index)
    identify = Identifier(pipeline, pipeline.thresholds, finder, known, index, chosen.top, chosen.false_accept_rate)
    photos, more_problems = find_photos(chosen.photos, results)
    table.keep(())  # earlier rows may be about another gallery
    try:
        return process_photos("identify", (photos, problems + more_problems), table, identify, chosen.json)
    finally:
        if not chosen.json:
            identify.print()


@dataclass
class Identifier:
    """Identifies the faces of one photo per call, and collects the answers and the limits that were applied."""

    pipeline: Pipeline
    calibration: Calibration
    finder: FaceFinder
    known: Sequence[gallery.GalleryFace]
    index: gallery.PersonIndex  # of the faces in `known`
    top: int  # number of people to list for each face
    wanted: float  # share of unknown faces that may be accepted as anyone of the gallery
    limits: dict[str, gallery.Limit] = field(default_factory=dict)  # by condition
    rows: list[tuple[str, ...]] = field(default_factory=list)  # of the printed table

    def __call__(self, found: FoundPhoto) -> list[Outcome]:
        """Return an outcome for each face of a photo."""
        photo = str(found.path)
        faces = self.finder.find(read_photo(found.path), photo)
        output = self.pipeline.process_faces(torch.stack([face.face for face in faces]))
        matches = self.index.search(output.embedding.cpu().numpy(), self.top)
        outcomes, rows = [], []
        for face, covered, candidates in zip(faces, output.covered.tolist(), matches, strict=True):
            best = candidates[0]
            known = self.known[best.place]
            condition = condition_of(self.calibration, (covered, known.covered))
            limit = gallery.limit_for(self.calibration, condition, len(self.known), self.wanted)
            self.limits[condition] = limit
            answer = gallery.answer(self.calibration, limit, candidates, max(covered, known.covered))
            person = best.person if answer == "known" else ""
            details: dict[str, object] = {
                "answer": answer,
                "person": person,
                "similarity": round(best.similarity, 4),
                "same_from": round(limit.same_from, 4),
                "false_accept_rate": f"{limit.rate:.3g}",
                "gallery_false_accept_rate": f"{limit.gallery_rate:.3g}",
                "condition": condition,
                "visible": round(1 - covered, 3),
                "gallery_photo": str(known.photo),
                **face.details,
            }
            for rank, match in enumerate(candidates, 1):
                details |= {f"person_{rank}": match.person, f"similarity_{rank}": round(match.similarity, 4)}
            outcomes.append(Outcome(photo, "", face.number, "", details))
            number = f"{face.number} of {face.count}" if face.count > 1 else "1"
            similarities = f"{details['similarity']:.3f}", f"{details['same_from']:.3f}"
            people = ", ".join(f"{match.person} {match.similarity:.3f}" for match in candidates)
            rows.append((photo, number, person or f"({answer})", *similarities, people))
        self.rows += rows
        return outcomes

    def print(self) -> None:
        """Print a table of all faces so far, and an explanation of the limits that were applied."""
        if not self.rows:
            return
        table = Table("photo", "face", "person", "similarity", "same from", "most similar people")
        for cells in self.rows:
            table.add_row(*(Text(printable(cell), overflow="fold") for cell in cells))
        console = Console()
        (console if console.is_terminal else Console(width=_WIDTH)).print(table)
        for condition, limit in self.limits.items():
            tested = f" ({limit.rate:.2g} on test people)" if limit.rate > limit.target else ""
            bound = f"at most {limit.gallery_rate:.2g}" if limit.gallery_rate < 1 else "any share"
            missed = limit.gallery_rate > self.wanted * (1 + 1e-9)
            excess = f", more than the {self.wanted:g} wanted: no stricter limit is known" if missed else ""
            print(
                f"{condition}: known from {limit.same_from:.3f}, calibrated for one false accept in "
                f"{1 / limit.target:g} comparisons{tested}; against {len(self.known)} faces {bound} of unknown "
                f"people may pass{excess}"
            )
