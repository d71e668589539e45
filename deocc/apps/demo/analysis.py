"""What the page shows of a photo: the steps from clean face to completed face, and whom it resembles."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.apps.demo.attention import deoccluder_attention, heat_picture
from deocc.apps.demo.gallery import Match, OrlGallery
from deocc.apps.photos import PhotoFace
from deocc.apps.pipeline import FaceOutput, Pipeline, Verdict, decide
from deocc.evaluation.calibration import covered_share
from deocc.masking import render

NO_MASK: Final = "none"
"""The kind of a photo that stays as it is: its face may be masked already."""


class Panel(NamedTuple):
    """One picture of the row."""

    title: str
    caption: str
    picture: NDArray[np.uint8] | None
    """(S, S, 3) RGB; None where there is nothing to show, which the caption explains."""


class Comparison(NamedTuple):
    """One similarity, and what follows from it."""

    title: str
    similarity: float
    """Of the embeddings, in [-1, 1]."""
    verdict: Verdict | None
    """None where no threshold is calibrated for this."""


class Search(NamedTuple):
    """Whom of a gallery a face resembles."""

    people: int
    """How many the gallery holds."""
    credit: str
    """Whom its pictures come from."""
    matches: tuple[tuple[Match, Comparison], ...]
    """The nearest ones, the best first."""


@dataclass(frozen=True)
class Analysis:
    """All that the page shows.

    Attributes:
        panels: the steps.
        pair: the first photo against the second, empty without one; the last is what the system says.
        search: None without a gallery.
    """

    panels: tuple[Panel, ...]
    pair: tuple[Comparison, ...]
    search: Search | None


class Analyst:
    """Analyses faces.

    Args:
        pipeline: the trained system.
        gallery: whom to look among; None = nobody.
    """

    def __init__(self, pipeline: Pipeline, gallery: OrlGallery | None) -> None:
        self._pipeline, self._gallery = pipeline, gallery

    def analyse(self, face: PhotoFace, kind: str, seed: int, second: PhotoFace | None = None) -> Analysis:
        """Mask a face, complete it, and compare it.

        Args:
            face: of the first photo; its crop has the pipeline's size.
            kind: a name of `deocc.masking.list_kinds()`, or `NO_MASK`.
            seed: from which the mask follows.
            second: of the second photo, if there is one; it may be masked.

        Raises:
            ValueError: no such kind.
        """
        clean = face.face
        masked = clean if kind == NO_MASK else render(clean[None], face.landmarks[None], kind, torch.tensor([seed]))[0][0]
        others = [] if second is None else [second.face]
        output = self._pipeline.process_faces(torch.stack([clean, masked, *others]))
        covered = covered_share(output.mask).tolist()
        pair = () if second is None else self._pair(masked, output, covered, kind != NO_MASK)
        return Analysis(self._panels(clean, masked, output, kind), pair, self._search(output.embedding[1], covered[1]))

    def _panels(self, clean: Tensor, masked: Tensor, output: FaceOutput, kind: str) -> tuple[Panel, ...]:
        mask, completed_face = output.mask[1].cpu(), output.completed_face[1].cpu()
        first = [Panel("Clean", "the face, cut out and aligned", _picture(clean))]
        if kind == NO_MASK:
            first = [Panel("Photo", "the face, cut out and aligned", _picture(masked))]
        else:
            first.append(Panel("Masked", f"{kind}, drawn on it", _picture(masked)))
        share = f"white = covered: {float(covered_share(mask[None])):.0%} of the face"
        return (
            *first,
            Panel("Predicted mask", share, _picture((mask * 2 - 1).expand(3, -1, -1))),
            Panel("Completed", "what the model puts under the mask", _picture(completed_face)),
            self._attention(masked, mask),
        )

    def _attention(self, masked: Tensor, mask: Tensor) -> Panel:
        deoccluder, title = self._pipeline.network.deoccluder, "Attention"
        if deoccluder is None or deoccluder.generator.attention_branch is None:
            return Panel(title, "this model has no attention branch", None)
        device = self._pipeline.device
        heat = deoccluder_attention(deoccluder, masked.to(device), mask.to(device))
        if heat is None:
            return Panel(title, "nothing is covered, or nothing is visible: nothing to draw from", None)
        return Panel(title, "bright = the generator looks here most", heat_picture(heat, masked))

    def _pair(self, masked: Tensor, output: FaceOutput, covered: list[float], rendered: bool) -> tuple[Comparison, ...]:
        """The first face as it is, with its mask ignored, and completed, against the second."""
        bare = self._pipeline.process_faces(masked[None], torch.zeros_like(masked[None, :1])).embedding[0]
        clean, whole, second = output.embedding
        ignored = Comparison("Masked, not completed" if rendered else "As it is, not completed", float(bare @ second), None)
        completed = self._comparison("Masked, completed" if rendered else "Completed", float(whole @ second), covered[1:])
        if not rendered:
            return ignored, completed
        return self._comparison("Clean", float(clean @ second), covered[::2]), ignored, completed

    def _search(self, embedding: Tensor, covered: float) -> Search | None:
        if self._gallery is None:
            return None
        found = self._gallery.nearest(embedding)
        matches = tuple((match, self._comparison(match.name, match.similarity, [covered, match.covered])) for match in found)
        return Search(len(self._gallery), self._gallery.credit, matches)

    def _comparison(self, title: str, similarity: float, covered: list[float]) -> Comparison:
        thresholds = self._pipeline.thresholds
        if thresholds is None:
            return Comparison(title, similarity, None)
        try:
            return Comparison(title, similarity, decide(thresholds, similarity, (covered[0], covered[1])))
        except ValueError:  # too few people were there to calibrate this condition
            return Comparison(title, similarity, None)


def _picture(face: Tensor) -> NDArray[np.uint8]:
    """(3, S, S) in [-1, 1] -> (S, S, 3)."""
    return np.asarray(((face.cpu() + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
