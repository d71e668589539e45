"""The command: load the model, find the photos, predict one after the other, and sum up."""

from collections.abc import Sequence
from pathlib import Path

from deocc.apps.model_argument import add_model_argument, load_model, model_hash
from deocc.apps.photos import OutcomeFile, PhotoParser, alone_in, check_out, find_photos, finder_of, work_through
from deocc.apps.predict.embeddings import EmbeddingFile, import_arrow
from deocc.apps.predict.results import EMBEDDINGS, PANELS, PARQUET, TABLE, PhotoPredictor, Settings
from deocc.apps.predict.sheets import write_sheets


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
    settings = Settings(out, model_hash(pipeline), (chosen.every, chosen.aligned, chosen.detector, chosen.detector_weights))
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
    parser = PhotoParser("predict PHOTOS", "Predict masks, complete the faces behind them and embed the faces of photos.")
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
