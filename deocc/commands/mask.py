"""`deocc mask PHOTOS`: put synthetic masks on the faces of photos."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deocc.commands.arguments import ALL_KINDS, CROP_SIZE, PARSERS, RANDOM_KIND
from deocc.commands.model import detection_of, finder_of, to_pixels
from deocc.data.loader import item_seed
from deocc.files import checksum
from deocc.geometry import TEMPLATES, invert_transform, similarity_transform, transform_points
from deocc.inference.batch import FoundPhoto, Outcome, OutcomeFile, find_photos, process_photos
from deocc.inference.faces import FaceFinder, PhotoFace, cut, paste_back, weight_in_photo
from deocc.inference.outputs import check_out, lock_out, read_mark, save_marked
from deocc.inference.photos import read_bytes, read_photo
from deocc.masking import draw_kinds, list_kinds, render

# Not known from the paper; our choice.
_MIN_CROP, _MAX_CROP = 32, 1024  # side of the crop to render in; larger faces get an enlarged mask, which saves memory
_EXTENT: Final = 1.6  # side of that crop in canonical crops: ear loops, arms and scarves reach beyond one


def main(argv: Sequence[str]) -> int:
    """Run `deocc mask PHOTOS`; return 0 if all photos were processed, 1 if one was left out.

    Writes to --out: `masked_photos/NAME-KIND.png`, `masks/NAME-KIND.png` (255 = covered), with --crops
    `crops/NAME-KIND-FACE.png` and its mask, and `masks.csv` with a row for each face and kind, or one for each photo
    that was left out. NAME is the photo's path within the given folder. JPEG would change uncovered pixels, so all
    images are PNG. Existing files are never overwritten: results of the same photo and settings are not made again, and
    photos whose names are taken by others are left out.
    """
    chosen = PARSERS["mask"]().parse_args(argv)
    check_out(chosen.out, chosen.photos)
    allowed = (*list_kinds(), ALL_KINDS, RANDOM_KIND)
    kinds: dict[str, None] = {}  # an ordered set
    for name in chosen.kind or ["surgical"]:
        if name not in allowed:
            raise ValueError(f"unknown kind of mask {name!r}: choose from {', '.join(allowed)}")
        kinds |= dict.fromkeys(list_kinds() if name == ALL_KINDS else [name])
    finder = finder_of(chosen, CROP_SIZE)
    with lock_out(chosen.out):
        table = OutcomeFile(chosen.out / "masks.csv")
        masker = PhotoMasker(chosen, list(kinds), finder, table)
        return process_photos("mask", find_photos(chosen.photos, [chosen.out]), table, masker, chosen.json)


class MaskedPhoto(NamedTuple):
    """A photo with covered faces, unchanged wherever the mask is 0."""

    photo: NDArray[np.uint8]  # (H, W, 3) RGB
    mask: NDArray[np.uint8]  # (H, W), 1 = covered
    kinds: list[str]  # occluder of each face
    covered: list[int]  # number of pixels that it covers


def mask_photo(photo: NDArray[np.uint8], faces: Sequence[PhotoFace], kind: str, seeds: Sequence[int]) -> MaskedPhoto:
    """Render an occluder on each of the given faces.

    Args:
        photo: (H, W, 3) RGB.
        faces: faces of this photo.
        kind: a name of `deocc.masking.list_kinds()`, or "random": each face's seed chooses.
        seeds: one for each face, from which everything random follows.

    Raises:
        ValueError: an occluder is entirely outside the photo.
    """
    height, width = photo.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    kinds, covered = [], []
    for face, seed in zip(faces, seeds, strict=True):
        chosen = list_kinds()[int(draw_kinds(torch.tensor([seed])))] if kind == RANDOM_KIND else kind
        # A crop around the canonical one, at the photo's resolution.
        points = transform_points(face.landmarks, invert_transform(face.matrix))
        scale = float(torch.linalg.det(face.matrix[:, :2]).abs().sqrt())
        inner = round(min(max(face.face.shape[-1] / scale, _MIN_CROP), _MAX_CROP))
        template = TEMPLATES["canonical"].tensor(inner) + inner * (_EXTENT - 1) / 2
        matrix = similarity_transform(points, template)
        crop = cut(photo, matrix, round(inner * _EXTENT))[None]
        landmarks = transform_points(points, matrix)
        masked_face, face_mask = render(crop, landmarks[None], chosen, torch.tensor([seed]))
        added = weight_in_photo(face_mask[0], matrix, height, width) > 0
        if not added.any():
            raise ValueError(f"the {chosen} would lie outside the photo: too little of the face is in it")
        photo = paste_back(photo, masked_face[0], matrix, face_mask[0])
        mask |= added.astype(np.uint8)
        kinds.append(chosen)
        covered.append(int(added.sum()))
    return MaskedPhoto(photo, mask, kinds, covered)


class PhotoMasker:
    """Writes a masked copy of one photo per call for each kind; the table contains the outcomes of earlier runs."""

    def __init__(self, chosen: argparse.Namespace, kinds: list[str], finder: FaceFinder, table: OutcomeFile) -> None:
        self.out: Path = chosen.out
        self.seed, self.crops, self.detection = chosen.seed, chosen.crops, detection_of(chosen)
        self.kinds, self.finder, self.table = kinds, finder, table

    def __call__(self, found: FoundPhoto) -> list[Outcome]:
        """Write the missing results of a photo and return an outcome for each kind and face."""
        data = read_bytes(found.path)
        digest = checksum(data)
        outcomes: list[Outcome] = []
        missing = {}
        for kind in self.kinds:
            mark = checksum(repr((digest, kind, self.seed, self.detection)))[:32]
            name = f"{found.name}-{kind}"
            output = f"masked_photos/{name}.png"
            rows = [row for row in self.table.rows(str(found.path)) if row.done and row.output == output]
            files = [output, f"masks/{name}.png"]
            if self.crops:
                files += [f"crops/{name}-{row.face}{end}.png" for row in rows for end in ("", "-mask")]
            if rows and all(read_mark(self.out / file) == mark for file in files):
                outcomes += rows
            else:
                missing[kind] = mark
        if missing:
            photo = read_photo(data, str(found.path))
            faces = self.finder.find(photo, str(found.path))
            for kind, mark in missing.items():
                try:
                    outcomes += self._mask(found, photo, faces, kind, digest, mark)
                except ValueError as error:  # other kinds may still be possible
                    outcomes.append(Outcome(str(found.path), str(error), details={"kind": kind}))
        return outcomes

    def _mask(
        self, found: FoundPhoto, photo: NDArray[np.uint8], faces: Sequence[PhotoFace], kind: str, digest: str, mark: str
    ) -> list[Outcome]:
        """Mask a photo and write all files, the photo itself last."""
        seeds = [item_seed(self.seed, digest, kind, face.number) for face in faces]
        masked = mask_photo(photo, faces, kind, seeds)
        name = f"{found.name}-{kind}"
        output, mask_file = f"masked_photos/{name}.png", f"masks/{name}.png"
        images = {mask_file: masked.mask * 255}
        outcomes = []
        for face, drawn, seed, covered in zip(faces, masked.kinds, seeds, masked.covered, strict=True):
            details: dict[str, object] = {"mask": mask_file, "kind": drawn, "seed": seed, **face.details}
            if self.crops:
                crop = f"crops/{name}-{face.number}"
                details["crop"] = f"{crop}.png"
                cover = np.repeat(masked.mask[..., None] * np.uint8(255), 3, 2)
                images[f"{crop}.png"] = to_pixels(cut(masked.photo, face.matrix, CROP_SIZE))
                images[f"{crop}-mask.png"] = (cut(cover, face.matrix, CROP_SIZE)[0] >= 0).numpy() * np.uint8(255)
            details["covered_pixels"] = covered
            outcomes.append(Outcome(str(found.path), "", face.number, output, details))
        images[output] = masked.photo
        try:
            save_marked(self.out, images, mark, "from another photo or with other settings")
        except ValueError as error:
            raise ValueError(f"{found.path}: {error}") from error
        return outcomes
