"""What is written for one photo: files that are never overwritten by those of another, and the rows that tell of them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from deocc.apps.mask.painting import MaskedPhoto, mask_photo
from deocc.apps.photos import FaceFinder, FoundPhoto, Outcome, OutcomeFile, PhotoFace, read_bytes, read_mark, read_photo, save_png
from deocc.apps.photos.cutting import cut
from deocc.data.sampler import item_seed

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
        wanted += [name for row in rows if row.face for name in self._crop_names(row.face)] if self._settings.crops else []
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
        details = {"mask": self._relative(_MASKS), "kind": masked.kinds[number], "seed": seeds[number], **finding, **sides}
        if self._settings.crops:
            details["crop"] = self._crop_names(number + 1)[0]
        covered = masked.covered[number]
        return Outcome(str(self._found.path), "", number + 1, self._relative(_PHOTOS), {**details, "covered_pixels": covered})
