"""The images, similarities and matches that the demo page shows for a photo, and their HTML."""

import base64
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from typing import Final, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deocc.commands.model import to_pixels
from deocc.data import OrlFaces
from deocc.geometry import TEMPLATES, similarity_transform
from deocc.inference.faces import PhotoFace, cut
from deocc.inference.network import FaceOutput
from deocc.inference.pipeline import Pipeline, Verdict, decide
from deocc.masking import render
from deocc.networks import Deoccluder
from deocc.networks.generator import STRIDE

NO_MASK: Final = "none"  # kind for a photo that is shown unchanged, for example because its face is masked already
EXAMPLES: Final = {
    "One person, surgical mask": ((21, 4), (21, 7), "surgical", 0),
    "Two people, scarf": ((22, 2), (24, 5), "scarf", 1),
    "One person, sunglasses": ((23, 3), (23, 9), "sunglasses", 2),
}
"""By title, two ORL photos as (person 1-40, image 1-10), and kind and seed of the mask drawn on the first one.

Only validation people of the default split, because test people are reserved for `deocc test`; no gallery images."""

_ENLARGEMENT: Final = 4  # of ORL photos, which have 92 x 112 pixels
_MATCHES: Final = 5
_DECISIONS: Final = {"same": "Same person", "different": "Different people", "not sure": "Not sure"}


class Panel(NamedTuple):
    """A picture of one processing step."""

    title: str
    caption: str
    picture: NDArray[np.uint8] | None  # (S, S, 3) RGB; None if the caption explains its absence


class Comparison(NamedTuple):
    """The comparison of a face with the second photo or with a person of the gallery."""

    title: str  # what is compared, or the name of the person
    similarity: float  # cosine, in [-1, 1]
    verdict: Verdict | None  # None if no calibrated threshold applies
    picture: NDArray[np.uint8] | None = None  # (112, 92, 3) RGB, face of the person; None for the second photo


class Analysis(NamedTuple):
    """Everything the page shows for one request."""

    panels: list[Panel]
    pair: list[Comparison]  # of the two photos; the last one is the system's answer
    matches: list[Comparison]  # the most similar people of the gallery, in descending order of similarity
    gallery: "OrlGallery | None"


class OrlGallery:
    """Gallery of the first image of each of the 40 ORL people, embedded once.

    Raises:
        FileNotFoundError: the package that ships the faces is missing or incomplete.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._faces = OrlFaces()
        self.credit = self._faces.credit
        indices = np.unique(self._faces.identity, return_index=True)[1].tolist()
        self.names = [f"ORL person {int(self._faces.identity[index]) + 1}" for index in indices]
        self.pictures = [self._faces.image(index) for index in indices]  # (112, 92, 3) RGB
        template = TEMPLATES["canonical"].tensor(pipeline.size)
        crops = []
        for index, picture in zip(indices, self.pictures, strict=True):
            landmarks = torch.from_numpy(self._faces.landmarks[index]).float()
            crops.append(cut(picture, similarity_transform(landmarks, template), pipeline.size))
        output = pipeline.process_faces(torch.stack(crops))
        self.embeddings, self.covered = output.embedding.cpu(), output.covered.tolist()

    def __len__(self) -> int:
        return len(self.names)

    def example_inputs(self, title: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8], str, int]:
        """Return the page's inputs for one of `EXAMPLES`: two photos (448, 368, 3) RGB, kind and seed."""
        first, second, kind, seed = EXAMPLES[title]
        photos = []
        for person, image in (first, second):
            picture = Image.fromarray(self._faces.image(self._faces.names.index(f"s{person}/{image}")))
            size = picture.width * _ENLARGEMENT, picture.height * _ENLARGEMENT
            photos.append(np.asarray(picture.resize(size, Image.Resampling.BICUBIC)))
        return photos[0], photos[1], kind, seed


@dataclass(frozen=True)
class Analyst:
    """Computes the content of the page; without a gallery, no people are searched."""

    pipeline: Pipeline
    gallery: OrlGallery | None

    def analyse(self, face: PhotoFace, kind: str, seed: int, second: PhotoFace | None = None) -> Analysis:
        """Mask a face, complete it, compare it with a second one and search it in the gallery.

        Both faces are cropped at the pipeline's size. The kind is `NO_MASK` or a name from `deocc.masking.list_kinds`.
        """
        rendered, masked = kind != NO_MASK, face.face
        if rendered:
            masked = render(face.face[None], face.landmarks[None], kind, torch.tensor([seed]))[0][0]
        crops = [face.face, masked] if second is None else [face.face, masked, second.face]
        output = self.pipeline.process_faces(torch.stack(crops))
        covered = output.covered.tolist()
        matches, gallery = [], self.gallery
        if gallery is not None:
            similarities, order = (gallery.embeddings @ output.embedding[1].cpu()).topk(_MATCHES)
            for place, similarity in zip(order.tolist(), similarities.tolist(), strict=True):
                match = self._compare(gallery.names[place], similarity, covered[1], gallery.covered[place])
                matches.append(match._replace(picture=gallery.pictures[place]))
        pair = []
        if second is not None:
            clean, completed, other = output.embedding
            bare = self.pipeline.process_faces(masked[None], torch.zeros_like(masked[None, :1])).embedding[0]
            if rendered:
                pair.append(self._compare("Clean", float(clean @ other), covered[0], covered[2]))
            title = "Masked, not completed" if rendered else "As it is, not completed"
            pair.append(Comparison(title, float(bare @ other), None))
            title = "Masked, completed" if rendered else "Completed"
            pair.append(self._compare(title, float(completed @ other), covered[1], covered[2]))
        return Analysis(self._panels(face.face, masked, output, kind), pair, matches, gallery)

    def _panels(self, clean: Tensor, masked: Tensor, output: FaceOutput, kind: str) -> list[Panel]:
        mask, completed_face = output.mask[1].cpu(), output.completed_face[1].cpu()
        panels = [Panel("Photo" if kind == NO_MASK else "Clean", "the face, cut out and aligned", to_pixels(clean))]
        if kind != NO_MASK:
            panels.append(Panel("Masked", f"{kind}, drawn on it", to_pixels(masked)))
        mask_picture = to_pixels((mask * 2 - 1).expand(3, -1, -1))
        panels.append(Panel("Predicted mask", f"white = covered: {output.covered[1]:.0%} of the face", mask_picture))
        panels.append(Panel("Completed", "what the model puts under the mask", to_pixels(completed_face)))
        picture, caption = None, "this model has no attention branch"
        deoccluder, device = self.pipeline.network.deoccluder, self.pipeline.device
        if deoccluder is not None and deoccluder.generator.attention_branch is not None:
            heat = attention_map(deoccluder, masked.to(device), mask.to(device))
            if heat is None:
                caption = "nothing is covered, or nothing is visible: nothing to draw from"
            else:
                picture, caption = _draw_heat(heat.cpu(), masked), "bright = the generator looks here most"
        return [*panels, Panel("Attention", caption, picture)]

    def _compare(self, title: str, similarity: float, first_covered: float, second_covered: float) -> Comparison:
        verdict = None
        if self.pipeline.thresholds is not None:
            with suppress(ValueError):  # this combination of masked and unmasked faces could not be calibrated
                verdict = decide(self.pipeline.thresholds, similarity, (first_covered, second_covered))
        return Comparison(title, similarity, verdict)


def attention_map(deoccluder: Deoccluder, masked_face: Tensor, mask: Tensor) -> Tensor | None:
    """Return where the generator attends when it fills the covered patches, at the de-occluder's working size.

    `Generator.attend` is summed over all patches that the mask touches. Not known from the paper; our choice.

    Args:
        deoccluder: one whose generator has an attention branch.
        masked_face: (3, S, S) in [-1, 1].
        mask: (1, S, S), 1 = covered.

    Returns:
        (S, S) in [0, 1], or None without a covered or without a visible patch.
    """
    face, mask, size = masked_face[None], mask[None], mask.shape[-1]
    working_size = min(size, deoccluder.size or size)
    if working_size < size:
        face = F.interpolate(face, (working_size, working_size), mode="bilinear", antialias=True, align_corners=False)
        mask = F.adaptive_max_pool2d(mask, working_size)
    covered = F.max_pool2d(mask, STRIDE, ceil_mode=True)[0, 0] > 0
    with torch.no_grad():
        coarse = deoccluder.generator.attend(face, mask)[0][covered].sum(0)
    if not bool(coarse.max() > 0):
        return None
    heat = F.interpolate(coarse[None, None], scale_factor=STRIDE, mode="bilinear", align_corners=False)
    heat = heat[..., :working_size, :working_size]
    heat = heat / heat.max()
    if working_size < size:
        heat = F.interpolate(heat, (size, size), mode="bilinear", align_corners=False)
    return heat[0, 0]


def _draw_heat(heat: Tensor, face: Tensor) -> NDArray[np.uint8]:
    """Blend a heat map (S, S) in [0, 1] over the grey version of a face (3, S, S) in [-1, 1]; (S, S, 3) RGB."""
    levels = (heat * 255).round().byte().numpy()
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    grey = (face.mean(0).cpu().numpy()[..., None] + 1) * 127.5
    opacity = 0.3 + 0.6 * heat.numpy()[..., None]
    return np.asarray((opacity * colours + (1 - opacity) * grey).round().clip(0, 255), dtype=np.uint8)


def render_html(template: str, **values: object) -> str:
    """Render a template of the page; pictures are embedded, so that none is written to disk."""

    def uri(picture: NDArray[np.uint8]) -> str:
        content = BytesIO()
        Image.fromarray(picture).save(content, format="PNG")
        return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"

    def position(similarity: float) -> str:  # on a bar from 0 to 1
        return f"{min(max(similarity, 0.0), 1.0):.1%}"

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(uri=uri, position=position)
    return environment.from_string(read_asset(template)).render(decisions=_DECISIONS, **values)


def read_asset(name: str) -> str:
    """Return a packaged template or style sheet."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
