"""What the page shows of a photo: the steps from clean face to completed face, and whom it resembles."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deocc.data import OrlFaces
from deocc.evaluation.calibration import covered_share
from deocc.geometry import TEMPLATES, similarity_transform
from deocc.inference.faces import PhotoFace, cut
from deocc.inference.network import FaceOutput
from deocc.inference.pipeline import Pipeline, Verdict, decide
from deocc.masking import render
from deocc.networks import Deoccluder
from deocc.networks.generator import STRIDE, Generator

_LEAST_HEAT, _MOST_HEAT = (
    0.3,
    0.9,
)  # how much of the picture the colours are where it is dark and where it is bright. OURS


def attention_map(generator: Generator, masked_face: Tensor, mask: Tensor) -> Tensor | None:
    """How much of the covered part is drawn from each place: the mean of `Generator.attend` over the patches that the mask touches. OURS.

    Args:
        generator: with or without an attention branch.
        masked_face: (3, S, S) in [-1, 1].
        mask: (1, S, S), 1 = covered.

    Returns:
        (S, S), its largest value 1; None without a branch, where nothing is covered, and where no patch is wholly visible.
    """
    if generator.attention_branch is None:
        return None
    covered = F.max_pool2d(mask[None], STRIDE, ceil_mode=True)[0, 0] > 0
    with torch.no_grad():
        drawn = generator.attend(masked_face[None], mask[None])[0][covered].sum(0)
    if not bool(drawn.max() > 0):
        return None
    size = mask.shape[-1]
    fine = F.interpolate(drawn[None, None], scale_factor=STRIDE, mode="bilinear", align_corners=False)[
        0, 0, :size, :size
    ]
    return fine / fine.max()


def deoccluder_attention(deoccluder: Deoccluder, masked_face: Tensor, mask: Tensor) -> Tensor | None:
    """`attention_map` of a de-occluder's generator at the side that it works at, enlarged to that of the face; (S, S)."""
    side = masked_face.shape[-1]
    small = min(side, deoccluder.size or side)
    if small < side:
        masked_face = F.interpolate(
            masked_face[None], (small, small), mode="bilinear", antialias=True, align_corners=False
        )[0]
        mask = F.adaptive_max_pool2d(mask[None], small)[0]
    heat = attention_map(deoccluder.generator, masked_face, mask)
    if heat is None or small == side:
        return heat
    return F.interpolate(heat[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]


def heat_picture(heat: Tensor, face: Tensor) -> NDArray[np.uint8]:
    """Colours from dark to bright over a grey face: heat (S, S) in [0, 1], face (3, S, S) in [-1, 1] -> (S, S, 3) RGB."""
    levels = (heat.cpu() * 255).round().byte().numpy()
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    grey = (face.mean(0).cpu().numpy()[..., None] + 1) * 127.5
    share = _LEAST_HEAT + (_MOST_HEAT - _LEAST_HEAT) * heat.cpu().numpy()[..., None]
    return np.asarray((share * colours + (1 - share) * grey).round().clip(0, 255), dtype=np.uint8)


_ENLARGED = 4  # the pictures are 92 x 112 pixels


class Example(NamedTuple):
    """Two photos and what to do with the first."""

    title: str
    photo: tuple[int, int]
    """Person 1-40 and image 1-10 of the database."""
    second: tuple[int, int]
    kind: str
    seed: int


EXAMPLES = (
    Example("One person, surgical mask", (21, 4), (21, 7), "surgical", 0),
    Example("Two people, scarf", (22, 2), (24, 5), "scarf", 1),
    Example("One person, sunglasses", (23, 3), (23, 9), "sunglasses", 2),
)
"""Validation people of the usual split only; its test people are for `deocc test` alone. Images other than the gallery's first."""


class Match(NamedTuple):
    """A person of the gallery."""

    name: str
    picture: NDArray[np.uint8]
    """(112, 92, 3) RGB."""
    similarity: float
    """Of the embeddings, in [-1, 1]."""
    covered: float
    """The covered share of the gallery's face, by its predicted mask."""


class OrlGallery:
    """The first image of each of the 40 people, embedded once.

    Args:
        pipeline: what embeds.

    Raises:
        FileNotFoundError: the package that ships the faces is not installed, or is incomplete.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._faces = OrlFaces()
        self._indices = np.unique(self._faces.person, return_index=True)[1].tolist()
        crops = torch.stack([self._crop(index, pipeline.size) for index in self._indices])
        output = pipeline.process_faces(crops)
        self._embeddings, self._covered = output.embedding.cpu(), covered_share(output.mask).tolist()

    def __len__(self) -> int:
        """How many people it holds."""
        return len(self._indices)

    @property
    def credit(self) -> str:
        """Whom to credit for the images."""
        return self._faces.credit

    def nearest(self, embedding: Tensor, most: int = 5) -> list[Match]:
        """The people most similar to a unit embedding (D,), the best first."""
        similarity, order = (self._embeddings @ embedding.cpu()).topk(min(most, len(self)))
        return [self._match(place, value) for place, value in zip(order.tolist(), similarity.tolist(), strict=True)]

    def photo(self, person: int, image: int) -> NDArray[np.uint8]:
        """An image of the database, both numbers from 1, enlarged for the page: (448, 368, 3) RGB."""
        picture = Image.fromarray(self._faces.image(self._faces.names.index(f"s{person}/{image}")))
        larger = (picture.width * _ENLARGED, picture.height * _ENLARGED)
        return np.asarray(picture.resize(larger, Image.Resampling.BICUBIC))

    def _match(self, place: int, similarity: float) -> Match:
        index = self._indices[place]
        name = f"ORL person {int(self._faces.person[index]) + 1}"
        return Match(name, self._faces.image(index), similarity, self._covered[place])

    def _crop(self, index: int, size: int) -> Tensor:
        points = torch.from_numpy(self._faces.landmarks[index]).float()
        return cut(self._faces.image(index), similarity_transform(points, TEMPLATES["canonical"].tensor(size)), size)


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
        masked = (
            clean if kind == NO_MASK else render(clean[None], face.landmarks[None], kind, torch.tensor([seed]))[0][0]
        )
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
        ignored = Comparison(
            "Masked, not completed" if rendered else "As it is, not completed", float(bare @ second), None
        )
        completed = self._comparison(
            "Masked, completed" if rendered else "Completed", float(whole @ second), covered[1:]
        )
        if not rendered:
            return ignored, completed
        return self._comparison("Clean", float(clean @ second), covered[::2]), ignored, completed

    def _search(self, embedding: Tensor, covered: float) -> Search | None:
        if self._gallery is None:
            return None
        found = self._gallery.nearest(embedding)
        matches = tuple(
            (match, self._comparison(match.name, match.similarity, [covered, match.covered])) for match in found
        )
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
