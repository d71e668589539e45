"""The command: load the model, find the photos, predict one after the other, and sum up."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.commands.arguments import PhotoParser, add_model_argument, finder_of, load_model, model_hash
from deocc.data.images import read_image
from deocc.evaluation import panel_image
from deocc.evaluation.calibration import covered_share
from deocc.inference.batch import FoundPhoto, find_photos, work_through
from deocc.inference.embedding_file import EmbeddedFace, EmbeddingFile, import_arrow
from deocc.inference.faces import FaceFinder, PhotoFace, paste_back
from deocc.inference.network import FaceOutput
from deocc.inference.outputs import Outcome, OutcomeFile, OutputError, alone_in, check_out, read_mark, save_png
from deocc.inference.photos import read_bytes, read_photo
from deocc.inference.pipeline import Pipeline
from deocc.messages import printable

SHEETS: Final = "contact_sheets"
_ROWS: Final = 12
_LONGEST: Final = 16  # characters of a label beside a row
_OURS: Final = "contact sheet "


def write_sheets(out: Path, faces: Sequence[EmbeddedFace], columns: Mapping[str, str]) -> list[Path]:
    """Write `contact_sheets/001.png`, ... of the faces whose files are there; pages that show the same faces already stay.

    Args:
        out: the folder for everything.
        faces: in the order to show them.
        columns: by title, the folder below `out` where a face's `NAME.png` lies.

    Returns:
        The pages.

    Raises:
        OutputError: a page cannot be written, or a file that is none is in its place.
    """
    shown = [
        face for face in faces if all((out / folder / f"{face.name}.png").is_file() for folder in columns.values())
    ]
    pages = []
    for number, start in enumerate(range(0, len(shown), _ROWS), 1):
        pages.append(out / SHEETS / f"{number:03}.png")
        _write_page(pages[-1], out, shown[start : start + _ROWS], columns)
    return pages


def _write_page(path: Path, out: Path, faces: Sequence[EmbeddedFace], columns: Mapping[str, str]) -> None:
    key = repr([(face.name, face.mark) for face in faces]).encode(errors="surrogateescape")
    mark = _OURS + hashlib.sha256(key).hexdigest()[:32]
    present = read_mark(path)
    if path.exists() and not (present or "").startswith(_OURS):
        raise OutputError(f"{path} exists and is no contact sheet of an earlier run: choose another --out")
    if present == mark:
        return
    images = {
        title: torch.stack([_pixels(out / folder / f"{face.name}.png") for face in faces])
        for title, folder in columns.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names in scripts that the font lacks show as boxes
        save_png(path, panel_image(images, [_label(face.name) for face in faces]), mark)


def _pixels(path: Path) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1).float() / 127.5 - 1


def _label(name: str) -> str:
    """The end of the name, which tells faces apart; "$" would start a formula."""
    text = printable(name)
    short = text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"
    return short.replace("$", r"\$")


TABLE, EMBEDDINGS, PARQUET = "predictions.csv", "embeddings.npz", "embeddings.parquet"
FACES, MASKS, COMPLETED, PHOTOS = "faces", "masks", "completed", "completed_photos"
PANELS: Final = {"photo": FACES, "predicted mask": MASKS, "completed": COMPLETED}
"""What a contact sheet shows, and the folder where it lies."""


@dataclass(frozen=True)
class Settings:
    """What decides the results of a photo.

    Attributes:
        out: the folder for everything.
        model: the model's hash.
        finding: all that decides which faces are found.
    """

    out: Path
    model: str
    finding: tuple[object, ...]


class PhotoPredictor:
    """Predicts one photo after the other.

    Args:
        settings: what decides the results.
        pipeline: the model.
        finder: finds the faces.
        table: where rows of an earlier run are.
        embeddings: takes the embeddings, and holds those of an earlier run.
    """

    def __init__(
        self, settings: Settings, pipeline: Pipeline, finder: FaceFinder, table: OutcomeFile, embeddings: EmbeddingFile
    ) -> None:
        self._settings, self._pipeline, self._finder = settings, pipeline, finder
        self._table, self._embeddings = table, embeddings

    def __call__(self, found: FoundPhoto) -> list[Outcome]:
        """Write what is missing for a photo; a row for each face.

        Raises:
            FileNotFoundError: the photo is gone.
            ValueError: it cannot be read, has no face, or the files of another photo are in the way.
            OutputError: a result cannot be written.
        """
        data = read_bytes(found.path)
        key = repr((hashlib.sha256(data).hexdigest(), self._settings.model, self._settings.finding))
        mark = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
        earlier = self._earlier_rows(found, mark)
        if earlier:
            return earlier
        photo = read_photo(data, str(found.path))
        faces = self._finder.find(photo, str(found.path))
        output = FaceOutput(
            *(part.cpu() for part in self._pipeline.process_faces(torch.stack([face.face for face in faces])))
        )
        self._write(found, mark, self._images(found, photo, faces, output))
        for number, embedding in enumerate(output.embedding.numpy(), 1):
            self._embeddings.put(EmbeddedFace(_face_name(found, number), str(found.path), number, mark, embedding))
        self._embeddings.write_when_due()
        return self._rows(found, faces, output)

    def _earlier_rows(self, found: FoundPhoto, mark: str) -> list[Outcome]:
        """The rows of an earlier run that did this very photo, or none."""
        output = _file(PHOTOS, found.name)
        rows = [row for row in self._table.rows(str(found.path)) if row.done and row.output == output]
        names = [_face_name(found, row.face) for row in rows if row.face]
        files = [output, *(_file(folder, name) for name in names for folder in PANELS.values())]
        whole = all(read_mark(self._settings.out / file) == mark for file in files)
        return rows if whole and all(self._embeddings.mark(name) == mark for name in names) else []

    def _images(
        self, found: FoundPhoto, photo: NDArray[np.uint8], faces: list[PhotoFace], output: FaceOutput
    ) -> dict[str, NDArray[np.uint8]]:
        """By file name, the whole photo last."""
        images: dict[str, NDArray[np.uint8]] = {}
        for number, (face, mask, completed_face) in enumerate(
            zip(faces, output.mask, output.completed_face, strict=True), 1
        ):
            covered = (mask[0] * 255).round().byte().numpy()
            pictures = (_to_pixels(face.face), covered, _to_pixels(completed_face))
            images |= {
                _file(folder, _face_name(found, number)): picture
                for folder, picture in zip(PANELS.values(), pictures, strict=True)
            }
            photo = paste_back(photo, completed_face, face.matrix, mask)
        return {**images, _file(PHOTOS, found.name): photo}

    def _write(self, found: FoundPhoto, mark: str, images: dict[str, NDArray[np.uint8]]) -> None:
        """All files or, where one of another photo is in the way, none."""
        for name in images:
            path = self._settings.out / name
            if path.exists() and read_mark(path) != mark:
                other = f"{path} exists and was made from another photo, model or setting"
                raise ValueError(f"{found.path}: {other}: choose another --out")
        for name, image in images.items():
            save_png(self._settings.out / name, image, mark)

    def _rows(self, found: FoundPhoto, faces: list[PhotoFace], output: FaceOutput) -> list[Outcome]:
        return [
            Outcome(
                str(found.path),
                "",
                number,
                _file(PHOTOS, found.name),
                self._details(_face_name(found, number), face, covered),
            )
            for number, (face, covered) in enumerate(zip(faces, covered_share(output.mask).tolist(), strict=True), 1)
        ]

    def _details(self, name: str, face: PhotoFace, covered: float) -> dict[str, object]:
        files = {"mask": _file(MASKS, name), "completed_face": _file(COMPLETED, name), "embedding": name}
        known = self._pipeline.thresholds
        seen = {"visible": round(1 - covered, 3)} | (
            {} if known is None else {"masked": "yes" if covered >= known.masked.limit else "no"}
        )
        sides = dict(zip(("left", "top", "right", "bottom"), face.box.round(1).tolist(), strict=True))
        return {**files, **seen, "detector": face.detector, "score": round(face.score, 3), **sides}


def _face_name(found: FoundPhoto, number: int) -> str:
    return f"{found.name}-{number}"


def _file(folder: str, name: str) -> str:
    return f"{folder}/{name}.png"


def _to_pixels(image: Tensor) -> NDArray[np.uint8]:
    """(3, S, S) in [-1, 1] -> (S, S, 3)."""
    return np.asarray(((image.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy())


def main(words: Sequence[str]) -> int:
    """Run `deocc predict PHOTOS...` with these words; `deocc predict PHOTOS --help` lists them.

    Below --out are, of every face, `faces/NAME-FACE.png`, the canonical crop that the model sees,
    `masks/NAME-FACE.png`, the predicted mask (0 = visible, 255 = covered), and `completed/NAME-FACE.png`; of every
    photo, `completed_photos/NAME.png`, in which the completed faces stand where their masks are, as large as the photo
    and bit-equal to it elsewhere; and of all, `embeddings.npz`, the pages of `contact_sheets/` and `predictions.csv`: a
    row for each face, or one that says why a photo was left out. NAME is the photo's path within the folder that was
    given. The arrays of `embeddings.npz` are name, photo, face, mark and embedding (N, D), unit vectors whose inner
    product is the similarity; `model` tells which model made them. Files that exist stay: those made by the same model
    from the same photo are not made again, so interrupted work goes on, and where others are in the way the photo is
    left out.

    Returns:
        0 = all done, 1 = something was left out.

    Raises:
        ValueError: words, a detector or alignment that do not exist; a model that is damaged; --out holds other results, or another command
            is at work there.
        FileNotFoundError: no such model or weights file.
        ImportError: a package that is needed is not installed.
        OutputError: the embeddings or a contact sheet cannot be written.
    """
    chosen = _parser().parse_args(words)
    out: Path = chosen.out
    check_out(out, chosen.photos)
    if chosen.parquet:
        import_arrow()
    pipeline = load_model(chosen)
    finder = finder_of(chosen, pipeline.size)
    settings = Settings(
        out, model_hash(pipeline), (chosen.every, chosen.aligned, chosen.detector, chosen.detector_weights)
    )
    with alone_in(out):
        table, embeddings = OutcomeFile(out / TABLE), EmbeddingFile(out / EMBEDDINGS, settings.model)
        predict = PhotoPredictor(settings, pipeline, finder, table, embeddings)
        try:
            code = work_through("predict", find_photos(chosen.photos, outside=out), table, predict)
        finally:
            embeddings.write()
        _sum_up(out, embeddings, chosen.parquet)
    return code


def _parser() -> PhotoParser:
    parser = PhotoParser(
        "predict PHOTOS", "Predict masks, complete the faces behind them and embed the faces of photos."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--parquet", action="store_true", help=f"write {PARQUET} beside {EMBEDDINGS}")
    add_model_argument(parser)
    return parser


def _sum_up(out: Path, embeddings: EmbeddingFile, parquet: bool) -> None:
    """What is made of all faces, and a line that says where it is."""
    if not embeddings.faces:
        return
    if parquet:
        embeddings.write_parquet(out / PARQUET)
    pages = write_sheets(out, embeddings.faces, PANELS)
    shown = f"; {len(pages)} contact sheet{'s' if len(pages) > 1 else ''} in {pages[0].parent}" if pages else ""
    print(f"embeddings of {len(embeddings.faces)} faces in {embeddings.path}{shown}")
