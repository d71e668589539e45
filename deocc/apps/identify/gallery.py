"""The known people: photos in a folder a person, or files that are called like their person."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from deocc.apps.identify.kept import KeptFace, KeptFaces, stamp_of
from deocc.apps.notices import telling_warnings
from deocc.apps.photos import FaceFinder, FoundPhoto, Outcome, PhotoFace, find_photos, read_photo
from deocc.apps.pipeline import Pipeline
from deocc.evaluation.calibration import covered_share

_AT_ONCE: Final = 32
_HARMLESS = (ValueError, OSError, ImportError, RuntimeError, MemoryError)


@dataclass(frozen=True, eq=False)
class GalleryFace:
    """The largest face of a photo.

    Attributes:
        person: whose.
        photo: where.
        embedding: (D,) unit vector.
        covered: the covered share of the face, in [0, 1].
    """

    person: str
    photo: Path
    embedding: NDArray[np.float32]
    covered: float


class Gallery:
    """At least one face.

    Args:
        faces: of everyone.
    """

    def __init__(self, faces: Sequence[GalleryFace]) -> None:
        self.faces = list(faces)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """(N, D)."""
        return np.stack([face.embedding for face in self.faces])

    @property
    def people(self) -> list[str]:
        """N names, in the order of the faces."""
        return [face.person for face in self.faces]


def person_of(photo: Path, folder: Path) -> str:
    """The first folder below the gallery's or, of a photo that lies in it directly, the name without suffix.

    >>> person_of(Path("people/anna/2020/x.jpg"), Path("people")), person_of(Path("people/bob.png"), Path("people"))
    ('anna', 'bob')
    """
    parts = photo.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else photo.stem


def read_gallery(folder: Path, pipeline: Pipeline, finder: FaceFinder, kept: KeptFaces | None = None) -> tuple[Gallery, list[Outcome]]:
    """The faces of a folder of photos, and a row for each that gave none.

    Args:
        folder: of everyone's photos.
        pipeline: embeds them.
        finder: finds them.
        kept: embeddings of an earlier run, of which those of unchanged photos are taken; it then holds what was found now.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is a file, or no photo in it shows a face.
    """
    if not folder.is_dir():
        kind = ValueError if folder.exists() else FileNotFoundError
        raise kind(f"no gallery at {folder}: give a folder of photos, each in a folder or a file called like its person")
    photos, problems = find_photos([folder])
    known = {photo.path: kept.find(photo.path) for photo in photos} if kept is not None else {}
    new, more_problems = _embed([photo for photo in photos if known.get(photo.path) is None], pipeline, finder)
    problems += more_problems
    entries = {photo.path: known.get(photo.path) or new.get(photo.path) for photo in photos}
    found = {path: entry for path, entry in entries.items() if entry is not None}
    if not found:
        reason = problems[0].reason if problems else "it is empty"
        raise ValueError(f"no face in the gallery {folder} ({reason}): give photos of the people to be known")
    if kept is not None:
        kept.replace(found)
    return Gallery([GalleryFace(person_of(path, folder), path, entry.embedding, entry.covered) for path, entry in found.items()]), problems


def _embed(photos: Sequence[FoundPhoto], pipeline: Pipeline, finder: FaceFinder) -> tuple[dict[Path, KeptFace], list[Outcome]]:
    """What is to be kept of each photo with a face, and rows of the others."""
    console = Console(stderr=True)
    entries: dict[Path, KeptFace] = {}
    problems: list[Outcome] = []
    starts = range(0, len(photos), _AT_ONCE)
    for start in track(starts, "gallery", console=console, transient=True, disable=not console.is_terminal):
        looked = list(_look(photos[start : start + _AT_ONCE], finder, problems))
        if looked:
            output = pipeline.process_faces(torch.stack([face.face for _, _, face in looked]))
            numbers = zip(output.embedding.cpu().numpy(), covered_share(output.mask).tolist(), strict=True)
            entries |= {path: KeptFace(stamp, *pair) for (path, stamp, _), pair in zip(looked, numbers, strict=True)}
    return entries, problems


def _look(photos: Sequence[FoundPhoto], finder: FaceFinder, problems: list[Outcome]) -> Iterator[tuple[Path, tuple[int, int], PhotoFace]]:
    """Path, stamp and largest face of each photo that has one; the others become problems."""
    for photo in photos:
        try:
            with telling_warnings():
                stamp, face = stamp_of(photo.path), finder.find(read_photo(photo.path), str(photo.path))[0]
        except _HARMLESS as error:
            problems.append(Outcome(str(photo.path), f"gallery: {' '.join(str(error).split()) or type(error).__name__}"))
        else:
            yield photo.path, stamp, face
