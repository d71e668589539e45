"""The command: find the photos, and mask one after the other."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.commands.arguments import PhotoParser, finder_of
from deocc.data.loader import item_seed
from deocc.geometry import TEMPLATES, invert_transform, similarity_transform, transform_points
from deocc.inference.batch import FoundPhoto, find_photos, work_through
from deocc.inference.faces import FaceFinder, PhotoFace, cut, paste_back, weight_in_photo
from deocc.inference.outputs import Outcome, OutcomeFile, alone_in, check_out, read_mark, save_png
from deocc.inference.photos import read_bytes, read_photo
from deocc.masking import draw_kinds, list_kinds, render

RANDOM: Final = "random"

_FINEST, _COARSEST = 1024, 32
"""Bounds on the side of the canonical crop at the photo's own resolution: finer faces get an enlarged occluder, which bounds
memory. OURS."""

_WIDE: Final = 1.6
"""The part of the photo that an occluder may cover, in canonical crops: ear loops, a hand's arm and a scarf reach beyond one; what reaches
beyond 1.6 is cut off there. OURS."""


class MaskedPhoto(NamedTuple):
    """A photo with its faces covered."""

    photo: NDArray[np.uint8]
    """(H, W, 3) RGB, bit-equal to the clean one wherever `mask` is 0."""
    mask: NDArray[np.uint8]
    """(H, W), 1 = covered."""
    kinds: tuple[str, ...]
    """Which occluder each face has."""
    covered: tuple[int, ...]
    """How many pixels each occluder covers."""


def mask_photo(photo: NDArray[np.uint8], faces: Sequence[PhotoFace], kind: str, seeds: Sequence[int]) -> MaskedPhoto:
    """Put an occluder on every given face.

    Args:
        photo: (H, W, 3) RGB.
        faces: of this photo, from `FaceFinder.find`.
        kind: a name of `deocc.masking.list_kinds()`, or "random": each face's seed chooses.
        seeds: one a face, from which everything random follows.

    Raises:
        ValueError: no such kind, or an occluder would lie outside the photo.
    """
    mask = np.zeros(photo.shape[:2], np.uint8)
    kinds, covered = [], []
    for face, seed in zip(faces, seeds, strict=True):
        chosen = list_kinds()[int(draw_kinds(torch.tensor([seed])))] if kind == RANDOM else kind
        photo, added = _cover(photo, face, chosen, seed)
        mask |= added
        kinds.append(chosen)
        covered.append(int(added.sum()))
    return MaskedPhoto(photo, mask, tuple(kinds), tuple(covered))


def _cover(
    photo: NDArray[np.uint8], face: PhotoFace, kind: str, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The photo with one more occluder, and where that lies, (H, W), 1 = covered."""
    landmarks, matrix, size = _wide_crop(face)
    masked_face, mask = render(cut(photo, matrix, size)[None], landmarks[None], kind, torch.tensor([seed]))
    covered = weight_in_photo(mask[0], matrix, *photo.shape[:2]) > 0
    if not covered.any():
        raise ValueError(f"the {kind} would lie outside the photo: too little of the face is in it")
    return paste_back(photo, masked_face[0], matrix, mask[0]), covered.astype(np.uint8)


def _wide_crop(face: PhotoFace) -> tuple[Tensor, Tensor, int]:
    """Landmarks (5, 2) in a crop around the canonical one, the matrix (2, 3) from photo to it, and its side in pixels."""
    points = transform_points(face.landmarks, invert_transform(face.matrix))
    scale = float(torch.linalg.det(face.matrix[:, :2]).abs().sqrt())
    inner = round(min(max(face.face.shape[-1] / scale, _COARSEST), _FINEST))
    template = TEMPLATES["canonical"].tensor(inner) + inner * (_WIDE - 1) / 2
    matrix = similarity_transform(points, template)
    return transform_points(points, matrix), matrix, round(inner * _WIDE)


_PHOTOS, _MASKS, _CROPS = "masked_photos", "masks", "crops"
TABLE: Final = "masks.csv"
CROP_SIZE: Final = 256


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes:
        out: the folder for everything.
        kinds: names of occluders, "random" among them; each gives a masked copy.
        seed: another one gives other masks.
        crops: whether canonical crops are written too.
        finding: all that decides which faces are found.
    """

    out: Path
    kinds: tuple[str, ...]
    seed: int
    crops: bool
    finding: tuple[object, ...]


class PhotoMasker:
    """Makes the masked copies of one photo after the other.

    Args:
        settings: what the user chose.
        finder: finds the faces.
        table: where rows of an earlier run are.
    """

    def __init__(self, settings: Settings, finder: FaceFinder, table: OutcomeFile) -> None:
        self._settings, self._finder, self._table = settings, finder, table

    def __call__(self, found: FoundPhoto) -> list[Outcome]:
        """Write what is missing for a photo; one row for each kind and face.

        Raises:
            FileNotFoundError: the photo is gone.
            ValueError: it cannot be read or has no face.
            OutputError: a result cannot be written.
        """
        data = read_bytes(found.path)
        digest = hashlib.sha256(data).hexdigest()
        rows: list[Outcome] = []
        missing = []
        for kind in self._settings.kinds:
            job = _Job(self._settings, found, kind, digest)
            earlier = job.earlier_rows(self._table)
            rows += earlier
            missing += [] if earlier else [job]
        if missing:
            photo = read_photo(data, str(found.path))
            faces = self._finder.find(photo, str(found.path))
            for job in missing:
                rows += job.attempt(photo, faces)
        return rows


class _Job:
    """One photo under one kind of occluder."""

    def __init__(self, settings: Settings, found: FoundPhoto, kind: str, digest: str) -> None:
        self._settings, self._found, self._kind, self._digest = settings, found, kind, digest
        self._name = f"{found.name}-{kind}"
        key = repr((digest, kind, settings.seed, settings.finding))
        self._mark = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]

    def earlier_rows(self, table: OutcomeFile) -> list[Outcome]:
        """The rows of an earlier run that did this very job, or none."""
        output = self._relative(_PHOTOS)
        rows = [row for row in table.rows(str(self._found.path)) if row.done and row.output == output]
        wanted = [output, self._relative(_MASKS)]
        wanted += (
            [name for row in rows if row.face for name in self._crop_names(row.face)] if self._settings.crops else []
        )
        whole = all(read_mark(self._settings.out / name) == self._mark for name in wanted)
        return rows if whole else []

    def attempt(self, photo: NDArray[np.uint8], faces: list[PhotoFace]) -> list[Outcome]:
        """Mask the photo and tell of its faces, or why this kind cannot be done: other kinds may be."""
        try:
            return self._write(photo, faces)
        except ValueError as error:
            return [Outcome(str(self._found.path), str(error), details={"kind": self._kind})]

    def _write(self, photo: NDArray[np.uint8], faces: list[PhotoFace]) -> list[Outcome]:
        """All files, the masked photo last."""
        seeds = [item_seed(self._settings.seed, self._digest, self._kind, face) for face in range(1, len(faces) + 1)]
        masked = mask_photo(photo, faces, self._kind, seeds)
        files = {self._relative(_MASKS): masked.mask * 255}
        if self._settings.crops:
            files |= self._crops(masked, faces)
        files[self._relative(_PHOTOS)] = masked.photo
        for name in files:
            self._check(self._settings.out / name)
        for name, image in files.items():
            save_png(self._settings.out / name, image, self._mark)
        return [self._row(masked, number, face, seeds) for number, face in enumerate(faces)]

    def _relative(self, folder: str, ending: str = "") -> str:
        return f"{folder}/{self._name}{ending}.png"

    def _crop_names(self, face: int) -> tuple[str, str]:
        return self._relative(_CROPS, f"-{face}"), self._relative(_CROPS, f"-{face}-mask")

    def _check(self, path: Path) -> None:
        if path.exists() and read_mark(path) != self._mark:
            other = f"{path} exists and was made from another photo or with other settings"
            raise ValueError(f"{self._found.path}: {other}: choose another --out")

    def _crops(self, masked: MaskedPhoto, faces: list[PhotoFace]) -> dict[str, NDArray[np.uint8]]:
        """The canonical crops, (S, S, 3), of the masked photo, and of its mask, (S, S)."""
        crops: dict[str, NDArray[np.uint8]] = {}
        cover = np.repeat(masked.mask[..., None] * np.uint8(255), 3, 2)
        for number, face in enumerate(faces, 1):
            for name, source in zip(self._crop_names(number), (masked.photo, cover), strict=True):
                pixels = cut(source, face.matrix, CROP_SIZE).permute(1, 2, 0)
                crops[name] = ((pixels + 1) * 127.5).round().to(torch.uint8).numpy()
            crops[name] = ((crops[name][..., 0] >= 128) * 255).astype(np.uint8)
        return crops

    def _row(self, masked: MaskedPhoto, number: int, face: PhotoFace, seeds: list[int]) -> Outcome:
        sides = dict(zip(("left", "top", "right", "bottom"), face.box.round(1).tolist(), strict=True))
        finding = {"detector": face.detector, "score": round(face.score, 3)}
        details = {
            "mask": self._relative(_MASKS),
            "kind": masked.kinds[number],
            "seed": seeds[number],
            **finding,
            **sides,
        }
        if self._settings.crops:
            details["crop"] = self._crop_names(number + 1)[0]
        covered = masked.covered[number]
        return Outcome(
            str(self._found.path), "", number + 1, self._relative(_PHOTOS), {**details, "covered_pixels": covered}
        )


_ALL = "all"


def main(words: Sequence[str]) -> int:
    """Run `deocc mask` with these words; `deocc mask --help` lists them.

    Below --out are `masked_photos/NAME-KIND.png`, `masks/NAME-KIND.png` (255 = covered), with --crops `crops/NAME-KIND-FACE.png` and its
    mask, and `masks.csv`: a row for each face and kind, or one that says why a photo was left out. NAME is the photo's path within the
    folder that was given, so folders keep their shape. The copies are PNG whatever the photo was, since JPEG would change uncovered pixels
    too. They carry no metadata of the photo. Files that exist stay: those made by the same command from the same photo are not made again,
    so interrupted work goes on, and where others are in the way the photo is left out.

    Returns:
        0 = all done, 1 = something was left out.

    Raises:
        ValueError: words, a kind, detector or alignment that do not exist; --out holds another table, or another command is at work there.
        FileNotFoundError: no such weights file.
        ImportError: a package that the detector needs is not installed.
    """
    chosen = _parser().parse_args(words)
    out: Path = chosen.out
    check_out(out, chosen.photos)
    finding = (chosen.every, chosen.aligned, chosen.detector, chosen.detector_weights)
    settings = Settings(out, _kinds(chosen.kind or ["surgical"]), chosen.seed, chosen.crops, finding)
    finder = finder_of(chosen, CROP_SIZE)
    with alone_in(out):
        table = OutcomeFile(out / TABLE)
        return work_through(
            "mask", find_photos(chosen.photos, outside=out), table, PhotoMasker(settings, finder, table)
        )


def _parser() -> PhotoParser:
    parser = PhotoParser(
        "mask", "Put masks on the faces of photos: masked copies, binary masks, and a list of what was done."
    )
    kinds = f"{', '.join(list_kinds())}; {_ALL} = a copy with each; {RANDOM} = one at random for each face; may be given several times"
    parser.add_argument("--kind", action="append", metavar="KIND", help=f"default: surgical. {kinds}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other masks (default: 0)")
    parser.add_argument(
        "--crops", action="store_true", help=f"write aligned crops of the masked faces too, {CROP_SIZE} pixels a side"
    )
    return parser


def _kinds(names: Sequence[str]) -> tuple[str, ...]:
    """Every kind once, in the order given."""
    allowed = (*list_kinds(), _ALL, RANDOM)
    for name in names:
        if name not in allowed:
            raise ValueError(f"unknown kind of mask {name!r}: choose from {', '.join(allowed)}")
    return tuple(dict.fromkeys(kind for name in names for kind in (list_kinds() if name == _ALL else (name,))))
