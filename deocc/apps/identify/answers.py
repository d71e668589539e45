"""Who is in a photo: the answer for each of its faces, as rows of the table and as lines on the screen."""

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deocc.apps.identify.decision import Limit, answer, condition_of, limit_for
from deocc.apps.identify.gallery import Gallery
from deocc.apps.identify.search import Match, PersonIndex
from deocc.apps.notices import printable
from deocc.apps.photos import FaceFinder, FoundPhoto, Outcome, PhotoFace, read_photo
from deocc.apps.pipeline import Pipeline
from deocc.evaluation.calibration import Calibration, covered_share

_WIDTH = 200  # of the table where the screen has none


class Identifier:
    """Names the faces of one photo after the other.

    Args:
        pipeline: the model.
        calibration: its thresholds.
        finder: finds the faces.
        gallery: the known people.
        index: of the gallery's faces.
        top: how many people are listed for each face.
        wanted: the share of unknown faces that may be taken for somebody of the gallery.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        calibration: Calibration,
        finder: FaceFinder,
        gallery: Gallery,
        index: PersonIndex,
        top: int,
        wanted: float,
    ) -> None:
        self._pipeline, self._calibration, self._finder = pipeline, calibration, finder
        self._gallery, self._index, self._top, self._wanted = gallery, index, top, wanted
        self._limits: dict[str, Limit] = {}
        self._rows: list[list[str]] = []

    def __call__(self, found: FoundPhoto) -> list[Outcome]:
        """A row for each face of a photo.

        Raises:
            FileNotFoundError: the photo is gone.
            ValueError: it cannot be read or has no face, or no threshold was calibrated for what it shows.
        """
        faces = self._finder.find(read_photo(found.path), str(found.path))
        output = self._pipeline.process_faces(torch.stack([face.face for face in faces]))
        matches = self._index.search(output.embedding.cpu().numpy(), self._top)
        shares = covered_share(output.mask).tolist()
        each = zip(faces, shares, matches, strict=True)
        rows = [Outcome(str(found.path), "", number, "", self._details(*face)) for number, face in enumerate(each, 1)]
        self._rows += [_shown(row, candidates) for row, candidates in zip(rows, matches, strict=True)]
        return rows

    def print(self) -> None:
        """Print a table of all faces so far, and what the limits mean that were applied to them."""
        if not self._rows:
            return
        table = Table("photo", "face", "person", "similarity", "same from", "most similar people")
        for row in self._rows:
            table.add_row(*(Text(cell, overflow="fold") for cell in row))
        console = Console()
        (console if console.is_terminal else Console(width=_WIDTH)).print(table)
        for condition, limit in self._limits.items():
            print(self._meaning(condition, limit))

    def _details(self, face: PhotoFace, covered: float, matches: list[Match]) -> dict[str, object]:
        best = matches[0]
        known = self._gallery.faces[best.place].covered
        condition = condition_of(self._calibration, (covered, known))
        limit = limit_for(self._calibration, condition, len(self._gallery.faces), self._wanted)
        self._limits[condition] = limit
        given = answer(self._calibration, limit, best.similarity, max(covered, known))
        rates = {"false_accept_rate": f"{limit.rate:.3g}", "gallery_false_accept_rate": f"{limit.gallery_rate:.3g}"}
        ranks: dict[str, object] = {}
        for rank, match in enumerate(matches, 1):
            ranks |= {f"person_{rank}": match.person, f"similarity_{rank}": round(match.similarity, 4)}
        return {
            "answer": given,
            "person": best.person if given == "known" else "",
            "similarity": round(best.similarity, 4),
            "same_from": round(limit.same_from, 4),
            **rates,
            "condition": condition,
            "visible": round(1 - covered, 3),
            "gallery_photo": str(self._gallery.faces[best.place].photo),
            "detector": face.detector,
            **dict(zip(("left", "top", "right", "bottom"), face.box.round(1).tolist(), strict=True)),
            **ranks,
        }

    def _meaning(self, condition: str, limit: Limit) -> str:
        faces = len(self._gallery.faces)
        tried = f" ({limit.rate:.2g} on test people)" if limit.rate > limit.target else ""
        said = f"{condition}: known from {limit.same_from:.3f}, calibrated for one false accept in {1 / limit.target:g} comparisons{tried}"
        bound = f"at most {limit.gallery_rate:.2g}" if limit.gallery_rate < 1 else "any share"
        few = (
            ""
            if limit.gallery_rate <= self._wanted * (1 + 1e-9)
            else f", more than the {self._wanted:g} wanted: no stricter limit is known"
        )
        return f"{said}; against {faces} faces {bound} of unknown people may pass{few}"


def _shown(row: Outcome, matches: list[Match]) -> list[str]:
    details = row.details
    name = details["person"] if details["answer"] == "known" else f"({details['answer']})"
    candidates = ", ".join(f"{match.person} {match.similarity:.3f}" for match in matches)
    numbers = (f"{details['similarity']:.3f}", f"{details['same_from']:.3f}")
    return [printable(str(cell)) for cell in (row.photo, row.face, name, *numbers, candidates)]
