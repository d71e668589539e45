"""The command: read the gallery, index it, and look for everyone in the photos."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from deocc.commands.arguments import PhotoParser, add_model_argument, finder_of, load_model, model_hash
from deocc.inference.batch import find_photos, work_through
from deocc.inference.faces import FaceFinder
from deocc.inference.gallery import (
    WANTED,
    Gallery,
    Identifier,
    KeptFaces,
    PersonIndex,
    import_faiss,
    list_indexes,
    read_gallery,
)
from deocc.inference.outputs import Outcome, OutcomeFile
from deocc.inference.pipeline import Pipeline


def main(words: Sequence[str]) -> int:
    """Run `deocc identify GALLERY PHOTOS...` with these words; `deocc identify --help` lists them.

    The gallery is a folder of photos; whose face each shows says the folder that it lies in or, where it lies in none, its name without
    suffix. The largest face of each counts, and of a person's several the most similar one. The answer for a face is "known", "unknown", or
    "not sure" where too little of it is visible. It is "known" from a limit on which was calibrated for one comparison, and so chosen that
    the rate of false accepts times the number of the gallery's faces stays within --false-accept-rate; where the model's calibration
    supports none so strict, the strictest is taken, and the line below the table says what share of unknown faces may pass.

    Prints a table, and writes it with more columns as CSV, anew each time: a row for each face, or one that says why a photo, be it one of
    the gallery, was left out. With --save-index the gallery's embeddings are kept in a file and taken from it for photos whose size and
    time of change are the same, as long as the model and the search for faces are.

    Returns:
        0 = all done, 1 = a photo was left out, of the gallery or to identify.

    Raises:
        ValueError: wrong words, a gallery without a face, a model without thresholds, or files of other sorts in the place of results.
        FileNotFoundError: no such gallery, model or weights file.
        ImportError: a package that is needed is not installed.
        OutputError: the gallery's embeddings cannot be written.
    """
    chosen = _parser().parse_args(words)
    _check(chosen)
    pipeline = load_model(chosen)
    if pipeline.thresholds is None:
        raise ValueError(
            "this model has no thresholds to tell unknown people by: write them with `deocc test --checkpoint RUN`"
        )
    finder = finder_of(chosen, pipeline.size)
    gallery, problems = _gallery(chosen, pipeline, finder)
    index = PersonIndex(gallery.embeddings, gallery.people, chosen.index)
    identify = Identifier(pipeline, pipeline.thresholds, finder, gallery, index, chosen.top, chosen.false_accept_rate)
    photos, more_problems = find_photos(chosen.photos)
    chosen.out.unlink(missing_ok=True)  # rows about another gallery would mislead
    code = work_through("identify", (photos, problems + more_problems), OutcomeFile(chosen.out), identify)
    identify.print()
    return code


def _check(chosen: argparse.Namespace) -> None:
    """What can be refused before the long work."""
    if chosen.top < 1:
        raise ValueError(f"--top {chosen.top}: list at least 1 person")
    if not 0 < chosen.false_accept_rate <= 1:
        raise ValueError(f"--false-accept-rate {chosen.false_accept_rate:g}: give a share above 0 and at most 1")
    import_faiss()
    if any(row.done and "answer" not in row.details for row in OutcomeFile(chosen.out).all_rows()):
        raise ValueError(f"{chosen.out} is the table of another command: choose another --out")


def _gallery(chosen: argparse.Namespace, pipeline: Pipeline, finder: FaceFinder) -> tuple[Gallery, list[Outcome]]:
    """The gallery and what was left out of it; its embeddings are kept where asked for."""
    finding = (chosen.aligned, chosen.detector, chosen.detector_weights)
    kept = (
        KeptFaces(chosen.save_index, repr((model_hash(pipeline), finding))) if chosen.save_index is not None else None
    )
    gallery, problems = read_gallery(chosen.gallery, pipeline, finder, kept)
    if kept is not None:
        kept.write()
    print(f"gallery: {len(set(gallery.people))} people, {len(gallery.faces)} faces")
    return gallery, problems


def _parser() -> PhotoParser:
    parser = PhotoParser(
        "identify", "Find people of a gallery in photos: the most similar ones, and who is unknown.", photos=False
    )
    who = "folder of the known people's photos: GALLERY/PERSON/PHOTO, or GALLERY/PERSON.jpg"
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help=who)
    parser.add_argument(
        "photos", nargs="+", type=Path, metavar="PHOTOS", help="image files, and folders of them with their subfolders"
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="how many people to list for each face (default: 5)"
    )
    rate = f"share of unknown faces that may be taken for anyone of the gallery (default: {WANTED:g})"
    parser.add_argument("--false-accept-rate", type=float, default=WANTED, metavar="RATE", help=rate)
    kinds = "flat compares with every face, for up to 100,000 or so; hnsw and ivf find nearly all of the most similar ones faster"
    parser.add_argument("--index", choices=list_indexes(), default="flat", help=f"{kinds} (default: flat)")
    parser.add_argument(
        "--save-index",
        type=Path,
        metavar="FILE",
        help="keep the gallery's embeddings in this file, and use those in it",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("identified.csv"), metavar="FILE", help="the table (default: identified.csv)"
    )
    add_model_argument(parser)
    return parser
