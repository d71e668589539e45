"""The images, similarities and matches that the demo page shows for a photo."""

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
from deocc.evaluation.thresholds import covered_share
from deocc.geometry import TEMPLATES, similarity_transform
from deocc.inference.faces import PhotoFace, cut
from deocc.inference.network import FaceOutput
from deocc.inference.pipeline import Pipeline, Verdict, decide
from deocc.masking import render
from deocc.networks import Deoccluder
from deocc.networks.generator import STRIDE, Generator

NO_MASK: Final = "none"
"""Mask kind for a photo that is shown unchanged, for example because its face is masked already."""

_ENLARGEMENT: Final = 4
"""Scale of ORL photos on the page; the originals have 92 x 112 pixels."""


class Example(NamedTuple):
    """Two ORL photos and the mask drawn on the first one.

    Photos are given as (person 1-40, image 1-10).
    """

    title: str
    photo: tuple[int, int]
    second: tuple[int, int]
    kind: str
    seed: int


EXAMPLES: Final = (
    Example("One person, surgical mask", (21, 4), (21, 7), "surgical", 0),
    Example("Two people, scarf", (22, 2), (24, 5), "scarf", 1),
    Example("One person, sunglasses", (23, 3), (23, 9), "sunglasses", 2),
)
"""Only validation people of the default split, because test people are reserved for `deocc test`; no gallery images."""


class Match(NamedTuple):
    """A person of the gallery.

    Attributes:
        name: for example "ORL person 7".
        picture: (112, 92, 3) RGB.
        similarity: cosine similarity to the query, in [-1, 1].
        covered: covered share of the gallery face, measured on its predicted mask.
    """

    name: str
    picture: NDArray[np.uint8]
    similarity: float
    covered: float


class Panel(NamedTuple):
    """A picture of one processing step; `picture` is (S, S, 3) RGB, or None if the caption explains its absence."""

    title: str
    caption: str
    picture: NDArray[np.uint8] | None


class Comparison(NamedTuple):
    """A cosine similarity and the decision; `verdict` is None if no calibrated threshold applies."""

    title: str
    similarity: float
    verdict: Verdict | None


class Search(NamedTuple):
    """The gallery's size and image credit, and the nearest people in descending order of similarity."""

    people: int
    credit: str
    matches: tuple[tuple[Match, Comparison], ...]


@dataclass(frozen=True)
class Analysis:
    """Everything the page shows for one request.

    Attributes:
        panels: the processing steps.
        pair: comparisons of the two photos, empty without a second photo. The last one is the system's answer.
        search: the gallery search, or None without a gallery.
    """

    panels: tuple[Panel, ...]
    pair: tuple[Comparison, ...]
    search: Search | None


class OrlGallery:
    """Gallery of the first image of each of the 40 ORL people, embedded once.

    Args:
        pipeline: the trained system.

    Raises:
        FileNotFoundError: the package that ships the faces is missing or incomplete.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._faces = OrlFaces()
        self._indices = np.unique(self._faces.identity, return_index=True)[1].tolist()
        template = TEMPLATES["canonical"].tensor(pipeline.size)
        crops = []
        for index in self._indices:
            landmarks = torch.from_numpy(self._faces.landmarks[index]).float()
            crops.append(cut(self._faces.image(index), similarity_transform(landmarks, template), pipeline.size))
        output = pipeline.process_faces(torch.stack(crops))
        self._embeddings = output.embedding.cpu()
        self._covered = covered_share(output.mask).tolist()

    def __len__(self) -> int:
        """Return the number of people."""
        return len(self._indices)

    @property
    def credit(self) -> str:
        """Credit line of the images."""
        return self._faces.credit

    def nearest(self, embedding: Tensor, count: int = 5) -> list[Match]:
        """Return the `count` people most similar to a unit embedding (D,), in descending order of similarity."""
        similarities, order = (self._embeddings @ embedding.cpu()).topk(min(count, len(self)))
        matches = []
        for place, similarity in zip(order.tolist(), similarities.tolist(), strict=True):
            index = self._indices[place]
            name = f"ORL person {int(self._faces.identity[index]) + 1}"
            matches.append(Match(name, self._faces.image(index), similarity, self._covered[place]))
        return matches

    def photo(self, person: int, image: int) -> NDArray[np.uint8]:
        """Return image 1-10 of person 1-40, enlarged to (448, 368, 3) RGB."""
        picture = Image.fromarray(self._faces.image(self._faces.names.index(f"s{person}/{image}")))
        size = (picture.width * _ENLARGEMENT, picture.height * _ENLARGEMENT)
        return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


class Analyst:
    """Computes the content of the page.

    Args:
        pipeline: the trained system.
        gallery: people to search; None disables the search.
    """

    def __init__(self, pipeline: Pipeline, gallery: OrlGallery | None) -> None:
        self._pipeline = pipeline
        self._gallery = gallery

    def analyse(self, face: PhotoFace, kind: str, seed: int, second: PhotoFace | None = None) -> Analysis:
        """Mask a face, complete it, compare it with a second one and search it in the gallery.

        Args:
            face: face of the first photo, cropped at the pipeline's size.
            kind: a name from `deocc.masking.list_kinds()`, or `NO_MASK`.
            seed: seed of the rendered mask.
            second: face of the second photo, which may be masked.

        Raises:
            ValueError: unknown kind.
        """
        rendered = kind != NO_MASK
        masked = face.face
        if rendered:
            masked = render(face.face[None], face.landmarks[None], kind, torch.tensor([seed]))[0][0]
        crops = [face.face, masked] if second is None else [face.face, masked, second.face]
        output = self._pipeline.process_faces(torch.stack(crops))
        covered = covered_share(output.mask).tolist()

        search = None
        if self._gallery is not None:
            matches = []
            for match in self._gallery.nearest(output.embedding[1]):
                matches.append((match, self._compare(match.name, match.similarity, covered[1], match.covered)))
            search = Search(len(self._gallery), self._gallery.credit, tuple(matches))
        pair = () if second is None else self._compare_pair(masked, output, covered, rendered)
        return Analysis(self._panels(face.face, masked, output, kind), pair, search)

    def _panels(self, clean: Tensor, masked: Tensor, output: FaceOutput, kind: str) -> tuple[Panel, ...]:
        mask, completed_face = output.mask[1].cpu(), output.completed_face[1].cpu()
        if kind == NO_MASK:
            panels = [Panel("Photo", "the face, cut out and aligned", _to_picture(masked))]
        else:
            panels = [
                Panel("Clean", "the face, cut out and aligned", _to_picture(clean)),
                Panel("Masked", f"{kind}, drawn on it", _to_picture(masked)),
            ]
        share = float(covered_share(mask[None]))
        mask_picture = _to_picture((mask * 2 - 1).expand(3, -1, -1))
        panels.append(Panel("Predicted mask", f"white = covered: {share:.0%} of the face", mask_picture))
        panels.append(Panel("Completed", "what the model puts under the mask", _to_picture(completed_face)))
        panels.append(self._attention_panel(masked, mask))
        return tuple(panels)

    def _attention_panel(self, masked: Tensor, mask: Tensor) -> Panel:
        deoccluder = self._pipeline.network.deoccluder
        if deoccluder is None or deoccluder.generator.attention_branch is None:
            return Panel("Attention", "this model has no attention branch", None)
        device = self._pipeline.device
        heat = deoccluder_attention(deoccluder, masked.to(device), mask.to(device))
        if heat is None:
            return Panel("Attention", "nothing is covered, or nothing is visible: nothing to draw from", None)
        return Panel("Attention", "bright = the generator looks here most", draw_heat(heat, masked))

    def _compare_pair(
        self, masked: Tensor, output: FaceOutput, covered: list[float], rendered: bool
    ) -> tuple[Comparison, ...]:
        """Compare the clean, the masked but not completed, and the completed first face with the second face."""
        clean, completed, second = output.embedding
        no_mask = torch.zeros_like(masked[None, :1])
        bare = self._pipeline.process_faces(masked[None], no_mask).embedding[0]
        without_completion = Comparison(
            "Masked, not completed" if rendered else "As it is, not completed", float(bare @ second), None
        )
        with_completion = self._compare(
            "Masked, completed" if rendered else "Completed", float(completed @ second), covered[1], covered[2]
        )
        if not rendered:
            return without_completion, with_completion
        original = self._compare("Clean", float(clean @ second), covered[0], covered[2])
        return original, without_completion, with_completion

    def _compare(self, title: str, similarity: float, first_covered: float, second_covered: float) -> Comparison:
        thresholds = self._pipeline.thresholds
        if thresholds is None:
            return Comparison(title, similarity, None)
        try:
            verdict = decide(thresholds, similarity, (first_covered, second_covered))
        except ValueError:  # this combination of masked and unmasked faces could not be calibrated
            verdict = None
        return Comparison(title, similarity, verdict)


def attention_map(generator: Generator, masked_face: Tensor, mask: Tensor) -> Tensor | None:
    """Return where the generator attends when it fills the covered patches.

    `Generator.attend` is summed over all patches that the mask touches. Not known from the paper; our choice.

    Args:
        generator: with or without an attention branch.
        masked_face: (3, S, S) in [-1, 1].
        mask: (1, S, S), 1 = covered.

    Returns:
        (S, S) with maximum 1, or None without an attention branch, without a covered or without a visible patch.
    """
    if generator.attention_branch is None:
        return None
    covered = F.max_pool2d(mask[None], STRIDE, ceil_mode=True)[0, 0] > 0
    with torch.no_grad():
        coarse = generator.attend(masked_face[None], mask[None])[0][covered].sum(0)
    if not bool(coarse.max() > 0):
        return None
    size = mask.shape[-1]
    heat = F.interpolate(coarse[None, None], scale_factor=STRIDE, mode="bilinear", align_corners=False)
    heat = heat[0, 0, :size, :size]
    return heat / heat.max()


def deoccluder_attention(deoccluder: Deoccluder, masked_face: Tensor, mask: Tensor) -> Tensor | None:
    """Return `attention_map` at the de-occluder's working size, enlarged to the face: (S, S)."""
    size = masked_face.shape[-1]
    working_size = min(size, deoccluder.size or size)
    if working_size == size:
        return attention_map(deoccluder.generator, masked_face, mask)
    target = (working_size, working_size)
    small_face = F.interpolate(masked_face[None], target, mode="bilinear", antialias=True, align_corners=False)[0]
    heat = attention_map(deoccluder.generator, small_face, F.adaptive_max_pool2d(mask[None], working_size)[0])
    if heat is None:
        return None
    return F.interpolate(heat[None, None], (size, size), mode="bilinear", align_corners=False)[0, 0]


def draw_heat(heat: Tensor, face: Tensor) -> NDArray[np.uint8]:
    """Blend a heat map (S, S) in [0, 1] over the grey version of a face (3, S, S) in [-1, 1]; (S, S, 3) RGB."""
    levels = (heat.cpu() * 255).round().byte().numpy()
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    grey = (face.mean(0).cpu().numpy()[..., None] + 1) * 127.5
    opacity = 0.3 + 0.6 * heat.cpu().numpy()[..., None]
    return np.asarray((opacity * colours + (1 - opacity) * grey).round().clip(0, 255), dtype=np.uint8)


def _to_picture(face: Tensor) -> NDArray[np.uint8]:
    """Convert (3, S, S) in [-1, 1] to (S, S, 3) RGB."""
    return np.asarray(((face.cpu() + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
