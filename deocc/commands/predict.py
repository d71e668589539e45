"""`deocc predict PHOTOS`: predict masks, complete faces and embed them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from deocc.commands.arguments import PARSERS
from deocc.commands.model import detection_of, finder_of, load_model, model_hash, to_pixels
from deocc.data.images import read_image
from deocc.evaluation.figures import panel_image
from deocc.files import checksum
from deocc.inference import outputs
from deocc.inference.batch import FoundPhoto, Outcome, OutcomeFile, find_photos, process_photos
from deocc.inference.faces import FaceFinder, paste_back
from deocc.inference.network import FaceOutput
from deocc.inference.photos import read_bytes, read_photo
from deocc.inference.pipeline import Pipeline
from deocc.messages import printable

PARQUET = "embeddings.parquet"
FACES, MASKS, COMPLETED, PHOTOS, SHEETS = "faces", "masks", "completed", "completed_photos", "contact_sheets"

_PANELS: Final = {"photo": FACES, "predicted mask": MASKS, "completed": COMPLETED}  # columns of a contact sheet
_SHEET_ROWS: Final = 12
_SHEET_MARK: Final = "contact sheet "
_MAX_LABEL: Final = 16  # characters


def main(argv: Sequence[str]) -> int:
    """Run `deocc predict PHOTOS`; return 0 if all photos were processed, 1 if one was left out.

    Writes to --out, for each face: `faces/NAME-FACE.png`, the canonical crop that the model sees,
    `masks/NAME-FACE.png`, the predicted mask (0 = visible, 255 = covered), and `completed/NAME-FACE.png`; for each
    photo `completed_photos/NAME.png`, the photo with the completed faces pasted where their masks are and unchanged
    elsewhere; and for all `embeddings.npz`, the pages of `contact_sheets/`, and `predictions.csv` with a row for each
    face, or one for each photo that was left out. NAME is the photo's path within the given folder. The arrays of
    `embeddings.npz` are name, photo, face, mark, embedding (N, D), unit vectors whose inner product is the similarity,
    and model, a hash of the model. Existing files are never overwritten: results of the same photo, model and settings
    are not made again, and photos whose names are taken by others are left out. Table, embeddings and contact sheets
    are about the photos of this call only.
    """
    chosen = PARSERS["predict"]().parse_args(argv)
    out: Path = chosen.out
    outputs.check_out(out, chosen.photos)
    if chosen.parquet:
        outputs.import_arrow()
    pipeline = load_model(chosen)
    finder = pipeline.finder = finder_of(chosen, pipeline.size)
    model = model_hash(pipeline)
    with outputs.lock_out(out):
        table, embeddings = OutcomeFile(out / "predictions.csv"), outputs.EmbeddingFile(out / "embeddings.npz", model)
        predictor = PhotoPredictor(out, (model, detection_of(chosen)), pipeline, finder, table, embeddings)
        try:
            code = process_photos("predict", find_photos(chosen.photos, [out]), table, predictor, chosen.json)
        finally:
            embeddings.keep({str(row.details.get("embedding")) for row in table.all_rows() if row.done})
            embeddings.write()
            (out / PARQUET).unlink(missing_ok=True)  # that of an earlier run would disagree
        faces = embeddings.faces
        pages = write_sheets(out, faces)
        if faces and chosen.parquet:
            embeddings.write_parquet(out / PARQUET)
        if faces and not chosen.json:
            plural = "s" if len(pages) > 1 else ""
            sheets = f"; {len(pages)} contact sheet{plural} in {out / SHEETS}" if pages else ""
            print(f"embeddings of {len(faces)} faces in {embeddings.path}{sheets}")
    return code


@dataclass(frozen=True)
class PhotoPredictor:
    """Writes the results of one photo per call; table and embeddings contain those of earlier runs."""

    out: Path
    settings: tuple[str, tuple[object, ...]]  # hash of the model, and what determines which faces are found
    pipeline: Pipeline
    finder: FaceFinder
    table: OutcomeFile
    embeddings: outputs.EmbeddingFile

    def __call__(self, found: FoundPhoto) -> list[Outcome]:
        """Write the missing results of a photo and return an outcome for each face."""
        data = read_bytes(found.path)
        mark = checksum(repr((checksum(data), *self.settings)))[:32]
        result = f"{PHOTOS}/{found.name}.png"
        rows = [row for row in self.table.rows(str(found.path)) if row.done and row.output == result]
        names = [f"{found.name}-{row.face}" for row in rows if row.face]
        files = [result, *(f"{folder}/{name}.png" for name in names for folder in _PANELS.values())]
        complete = rows and all(outputs.read_mark(self.out / file) == mark for file in files)
        if complete and all(self.embeddings.mark(name) == mark for name in names):
            return rows  # of an earlier run, all of whose files and embeddings still exist
        photo = completed_photo = read_photo(data, str(found.path))
        faces = self.finder.find(photo, str(found.path))
        parts = self.pipeline.process_faces(torch.stack([face.face for face in faces]))
        output = FaceOutput(*(part.cpu() for part in parts))
        images: dict[str, NDArray[np.uint8]] = {}
        for face, mask, completed_face in zip(faces, output.mask, output.completed_face, strict=True):
            name = f"{found.name}-{face.number}"
            images[f"{FACES}/{name}.png"] = to_pixels(face.face)
            images[f"{MASKS}/{name}.png"] = (mask[0] * 255).round().byte().numpy()
            images[f"{COMPLETED}/{name}.png"] = to_pixels(completed_face)
            completed_photo = paste_back(completed_photo, completed_face, face.matrix, mask)
        images[result] = completed_photo
        try:
            outputs.save_marked(self.out, images, mark, "from another photo, model or setting")
        except ValueError as error:
            raise ValueError(f"{found.path}: {error}") from error
        outcomes = []
        for face, covered, embedding in zip(faces, output.covered.tolist(), output.embedding.numpy(), strict=True):
            name = f"{found.name}-{face.number}"
            self.embeddings.put(outputs.EmbeddedFace(name, str(found.path), face.number, mark, embedding))
            details: dict[str, object] = {"mask": f"{MASKS}/{name}.png", "completed_face": f"{COMPLETED}/{name}.png"}
            details |= {"embedding": name, "visible": round(1 - covered, 3)}
            if (thresholds := self.pipeline.thresholds) is not None:
                details["masked"] = "yes" if covered >= thresholds.masked.limit else "no"
            outcomes.append(Outcome(str(found.path), "", face.number, result, details | face.details))
        self.embeddings.write_when_due()
        return outcomes


def write_sheets(out: Path, faces: Sequence[outputs.EmbeddedFace]) -> list[Path]:
    """Write the contact sheets `contact_sheets/001.png`, ... of the faces and return them.

    Equal pages are kept, later ones removed, and faces whose images are missing left out.
    """
    folders = [out / folder for folder in _PANELS.values()]
    shown = [face for face in faces if all((folder / f"{face.name}.png").is_file() for folder in folders)]
    pages = []
    for number, start in enumerate(range(0, len(shown), _SHEET_ROWS), 1):
        rows = shown[start : start + _SHEET_ROWS]
        path = out / SHEETS / f"{number:03}.png"
        pages.append(path)
        mark = _SHEET_MARK + checksum(repr([(face.name, face.mark) for face in rows]))[:32]
        present = outputs.read_mark(path)
        if path.exists() and not (present or "").startswith(_SHEET_MARK):
            raise outputs.OutputError(f"{path} exists and is no contact sheet of an earlier run: choose another --out")
        if present == mark:
            continue
        columns = {}
        for title, folder in _PANELS.items():
            pixels = [torch.from_numpy(np.array(read_image(out / folder / f"{face.name}.png"))) for face in rows]
            columns[title] = torch.stack(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        labels = []
        for face in rows:  # the end of a name tells faces apart; "$" would start a formula in matplotlib
            text = printable(face.name)
            text = text if len(text) <= _MAX_LABEL else f"…{text[1 - _MAX_LABEL :]}"
            labels.append(text.replace("$", r"\$"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # characters that the font lacks are drawn as boxes
            outputs.save_png(path, panel_image(columns, labels), mark)
    for path in (out / SHEETS).glob("*.png"):
        if path not in pages and (outputs.read_mark(path) or "").startswith(_SHEET_MARK):
            path.unlink()
    return pages
