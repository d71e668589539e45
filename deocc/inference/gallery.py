"""Who is in a photo: the answer for each of its faces, as rows of the table and as lines on the screen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from deocc.evaluation.calibration import CONDITIONS, Calibration, Threshold, covered_share
from deocc.inference.batch import FoundPhoto, find_photos
from deocc.inference.faces import FaceFinder, PhotoFace
from deocc.inference.outputs import Outcome, check_rows, read_arrays, write_arrays
from deocc.inference.photos import read_photo
from deocc.inference.pipeline import Pipeline
from deocc.messages import printable, telling_warnings

WANTED: Final = 0.01
"""The share of unknown faces that may be taken for somebody of the gallery, unless another is asked for."""

_SLACK: Final = 1 + 1e-9  # for rates such as 10 * 0.001

Answer = Literal["known", "unknown", "not sure"]


@dataclass(frozen=True)
class Limit:
    """From which similarity on a face is somebody's of the gallery."""

    same_from: float
    """In [-1, 1]."""
    target: float
    """The false-accept rate of one comparison that it was calibrated for, on validation people."""
    rate: float
    """The same, or what test people's pairs showed where that is more."""
    gallery_rate: float
    """At most this share of unknown faces reaches it with any of the gallery's faces, if `rate` holds for them."""


def limit_for(calibration: Calibration, condition: str, faces: int, wanted: float = WANTED) -> Limit:
    """The lowest calibrated limit that keeps to `wanted` over the whole gallery; where none does, the strictest.

    Args:
        calibration: of the model.
        condition: one of `deocc.evaluation.calibration.CONDITIONS`.
        faces: how many the gallery has.
        wanted: the share of unknown faces that may be accepted.

    Raises:
        ValueError: no threshold was calibrated for this condition.
    """
    known = calibration.thresholds[condition]
    if not known:
        raise ValueError(f"no threshold for {condition}: too few validation people; test on more with `deocc test`")
    fitting = [threshold for threshold in known if _rate(threshold) * faces <= wanted * _SLACK]
    chosen = min(fitting, key=lambda each: each.same) if fitting else max(known, key=lambda each: each.same)
    return Limit(chosen.same, chosen.target, _rate(chosen), min(1.0, _rate(chosen) * faces))


def _rate(threshold: Threshold) -> float:
    """Of one comparison."""
    tried = threshold.test.false_accept_rate if threshold.test is not None else 0.0
    return max(threshold.target, tried)


def condition_of(calibration: Calibration, covered: tuple[float, float]) -> str:
    """The condition of two faces of which these shares, in [0, 1], are covered."""
    return CONDITIONS[sum(share >= calibration.masked.limit for share in covered)]


def answer(calibration: Calibration, limit: Limit, similarity: float, covered: float) -> Answer:
    """What is said of a face of which this share is covered, whose most similar face of the gallery has this similarity."""
    if 1 - covered < calibration.least_visible:
        return "not sure"
    return "known" if similarity >= limit.same_from else "unknown"


_KINDS: Final = {"photo": ("U", 1), "stamp": ("i", 2), "embedding": ("f", 2), "covered": ("f", 1)}
_COLUMNS: Final = tuple(_KINDS)


class KeptFace(NamedTuple):
    """What is kept of a photo."""

    stamp: tuple[int, int]
    """The file's size in bytes and its time of change in nanoseconds."""
    embedding: NDArray[np.float32]
    """(D,) unit vector."""
    covered: float
    """The covered share of the face, in [0, 1]."""


class KeptFaces:
    """Embeddings by photo, in an .npz file without pickles.

    Args:
        path: of the file; it is read where it exists already.
        key: what the embeddings depend on besides the photo: model and search for faces. Those of another key are forgotten.

    Raises:
        ValueError: the file exists and is something else.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self._key = path, key
        self._faces = _read(path, key) if path.exists() else {}
        self._changed = False

    def find(self, photo: Path) -> KeptFace | None:
        """What is kept of a photo that has not changed since; else None."""
        face = self._faces.get(str(photo.resolve()))
        try:
            return face if face is not None and face.stamp == stamp_of(photo) else None
        except OSError:
            return None

    def replace(self, faces: Mapping[Path, KeptFace]) -> None:
        """Keep these, and no others."""
        resolved = {str(path.resolve()): face for path, face in faces.items()}
        same = resolved.keys() == self._faces.keys() and all(
            resolved[name].stamp == face.stamp for name, face in self._faces.items()
        )
        self._changed = self._changed or not same
        self._faces = resolved

    def write(self) -> None:
        """Bring the file up to date, replacing it as a whole, where anything changed.

        Raises:
            OutputError: it cannot be written; the former one is still there.
        """
        if not self._changed:
            return
        columns = dict(
            zip(_COLUMNS[1:], (np.array(column) for column in zip(*self._faces.values(), strict=True)), strict=True)
        )
        write_arrays(self.path, {"photo": np.array(list(self._faces)), **columns, "key": np.array(self._key)})
        self._changed = False


def stamp_of(photo: Path) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds; raises OSError where the file cannot be looked at."""
    status = photo.stat()
    return status.st_size, status.st_mtime_ns


def _read(path: Path, key: str) -> dict[str, KeptFace]:
    try:
        content = read_arrays(path, (*_COLUMNS, "key"))
        check_rows(content, _KINDS)
    except ValueError as error:
        raise ValueError(f"{path} exists and holds no gallery ({error}): choose another --save-index") from error
    if str(content["key"]) != key:
        return {}
    photos, stamps, embeddings, covered = (content[name] for name in _COLUMNS)
    rows = zip(photos.tolist(), stamps.tolist(), embeddings, covered.tolist(), strict=True)
    return {photo: KeptFace((stamp[0], stamp[1]), embedding, share) for photo, stamp, embedding, share in rows}


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


def read_gallery(
    folder: Path, pipeline: Pipeline, finder: FaceFinder, kept: KeptFaces | None = None
) -> tuple[Gallery, list[Outcome]]:
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
        raise kind(
            f"no gallery at {folder}: give a folder of photos, each in a folder or a file called like its person"
        )
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
    return Gallery(
        [GalleryFace(person_of(path, folder), path, entry.embedding, entry.covered) for path, entry in found.items()]
    ), problems


def _embed(
    photos: Sequence[FoundPhoto], pipeline: Pipeline, finder: FaceFinder
) -> tuple[dict[Path, KeptFace], list[Outcome]]:
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


def _look(
    photos: Sequence[FoundPhoto], finder: FaceFinder, problems: list[Outcome]
) -> Iterator[tuple[Path, tuple[int, int], PhotoFace]]:
    """Path, stamp and largest face of each photo that has one; the others become problems."""
    for photo in photos:
        try:
            with telling_warnings():
                stamp, face = stamp_of(photo.path), finder.find(read_photo(photo.path), str(photo.path))[0]
        except _HARMLESS as error:
            problems.append(
                Outcome(str(photo.path), f"gallery: {' '.join(str(error).split()) or type(error).__name__}")
            )
        else:
            yield photo.path, stamp, face


_LINKS, _BUILD_WIDTH, _SEARCH_WIDTH = (
    32,
    200,
    256,
)  # M, efConstruction, efSearch of [1]. OURS, by the recall that the tests ask for
_PER_LIST: Final = 39  # faces a list, below which FAISS warns that clusters are trained on too few
_PROBED: Final = 4  # every fourth list is searched. OURS


class Match(NamedTuple):
    """A person found."""

    person: str
    similarity: float
    """Cosine to the most similar of the person's faces, in [-1, 1]."""
    place: int
    """Which of the gallery's faces that is."""


class PersonIndex:
    """Finds people by the most similar of their faces.

    Args:
        embeddings: (N, D) unit vectors.
        people: N names, whose faces they are.
        kind: a name of `list_indexes()`. "flat" compares with every face; the others find nearly all of the most similar ones faster.

    Raises:
        ValueError: no such kind, no faces, or not a name each.
        ImportError: faiss is not installed.
    """

    def __init__(self, embeddings: NDArray[np.float32], people: Sequence[str], kind: str = "flat") -> None:
        if kind not in _KINDS_search:
            raise ValueError(f"unknown index {kind!r}: choose one of {', '.join(_KINDS_search)}")
        if len(embeddings) == 0 or len(embeddings) != len(people):
            raise ValueError(
                f"expected embeddings (N, D) and N names, N at least 1, got {embeddings.shape} and {len(people)} names"
            )
        self._people = list(people)
        self._most = int(np.unique(self._people, return_counts=True)[1].max())
        self._index = _KINDS_search[kind](import_faiss(), np.ascontiguousarray(embeddings, dtype=np.float32))

    def search(self, embeddings: NDArray[np.float32], top: int) -> list[list[Match]]:
        """The `top` most similar people, or all where there are fewer, the most similar first, for each of (Q, D) unit vectors.

        So many faces are fetched that they belong to `top` people even where each has as many as the one who has most.
        """
        faces = min(top * self._most, len(self._people))
        similarities, places = self._index.search(np.ascontiguousarray(embeddings, dtype=np.float32), faces)
        return [self._people_of(*row)[:top] for row in zip(similarities.tolist(), places.tolist(), strict=True)]

    def _people_of(self, similarities: list[float], places: list[int]) -> list[Match]:
        best: dict[str, Match] = {}
        for similarity, place in zip(similarities, places, strict=True):
            if place >= 0:  # -1 fills up where fewer were found
                best.setdefault(self._people[place], Match(self._people[place], similarity, place))
        return list(best.values())


def list_indexes() -> tuple[str, ...]:
    """Names of the kinds of index."""
    return tuple(_KINDS_search)


def import_faiss() -> Any:
    """The module faiss.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ImportError('deocc identify needs the package faiss-cpu: pip install "deocc[identify]"') from None
    return faiss


def _flat(faiss: Any, embeddings: NDArray[np.float32]) -> Any:
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings)
    return index


def _ivf(faiss: Any, embeddings: NDArray[np.float32]) -> Any:
    """Lists of similar faces [0], about as many as each holds; those nearest to the probe are searched."""
    count, dimension = embeddings.shape
    lists = max(1, min(round(count**0.5), count // _PER_LIST))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(embeddings)
    index.add(embeddings)
    index.nprobe = -(-lists // _PROBED)
    return index


def _hnsw(faiss: Any, embeddings: NDArray[np.float32]) -> Any:
    index = faiss.IndexHNSWFlat(embeddings.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = _BUILD_WIDTH, _SEARCH_WIDTH
    index.add(embeddings)
    return index


_KINDS_search: Final[dict[str, Callable[[Any, NDArray[np.float32]], Any]]] = {"flat": _flat, "ivf": _ivf, "hnsw": _hnsw}


_WIDTH = 200  # of the table where the screen has none


class Identifier:
    """Names the faces of one photo after the other.

    Args:
        pipeline: the model.
        calibration: its thresholds.
        finder: finds the faces.
        gallery: the known people.
        index: of the gallery's faces.
        top: how many people are listed for each face.
        wanted: the share of unknown faces that may be taken for somebody of the gallery.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        calibration: Calibration,
        finder: FaceFinder,
        gallery: Gallery,
        index: PersonIndex,
        top: int,
        wanted: float,
    ) -> None:
        self._pipeline, self._calibration, self._finder = pipeline, calibration, finder
        self._gallery, self._index, self._top, self._wanted = gallery, index, top, wanted
        self._limits: dict[str, Limit] = {}
        self._rows: list[list[str]] = []

    def __call__(self, found: FoundPhoto) -> list[Outcome]:
        """A row for each face of a photo.

        Raises:
            FileNotFoundError: the photo is gone.
            ValueError: it cannot be read or has no face, or no threshold was calibrated for what it shows.
        """
        faces = self._finder.find(read_photo(found.path), str(found.path))
        output = self._pipeline.process_faces(torch.stack([face.face for face in faces]))
        matches = self._index.search(output.embedding.cpu().numpy(), self._top)
        shares = covered_share(output.mask).tolist()
        each = zip(faces, shares, matches, strict=True)
        rows = [Outcome(str(found.path), "", number, "", self._details(*face)) for number, face in enumerate(each, 1)]
        self._rows += [_shown(row, candidates) for row, candidates in zip(rows, matches, strict=True)]
        return rows

    def print(self) -> None:
        """Print a table of all faces so far, and what the limits mean that were applied to them."""
        if not self._rows:
            return
        table = Table("photo", "face", "person", "similarity", "same from", "most similar people")
        for row in self._rows:
            table.add_row(*(Text(cell, overflow="fold") for cell in row))
        console = Console()
        (console if console.is_terminal else Console(width=_WIDTH)).print(table)
        for condition, limit in self._limits.items():
            print(self._meaning(condition, limit))

    def _details(self, face: PhotoFace, covered: float, matches: list[Match]) -> dict[str, object]:
        best = matches[0]
        known = self._gallery.faces[best.place].covered
        condition = condition_of(self._calibration, (covered, known))
        limit = limit_for(self._calibration, condition, len(self._gallery.faces), self._wanted)
        self._limits[condition] = limit
        given = answer(self._calibration, limit, best.similarity, max(covered, known))
        rates = {"false_accept_rate": f"{limit.rate:.3g}", "gallery_false_accept_rate": f"{limit.gallery_rate:.3g}"}
        ranks: dict[str, object] = {}
        for rank, match in enumerate(matches, 1):
            ranks |= {f"person_{rank}": match.person, f"similarity_{rank}": round(match.similarity, 4)}
        return {
            "answer": given,
            "person": best.person if given == "known" else "",
            "similarity": round(best.similarity, 4),
            "same_from": round(limit.same_from, 4),
            **rates,
            "condition": condition,
            "visible": round(1 - covered, 3),
            "gallery_photo": str(self._gallery.faces[best.place].photo),
            "detector": face.detector,
            **dict(zip(("left", "top", "right", "bottom"), face.box.round(1).tolist(), strict=True)),
            **ranks,
        }

    def _meaning(self, condition: str, limit: Limit) -> str:
        faces = len(self._gallery.faces)
        tried = f" ({limit.rate:.2g} on test people)" if limit.rate > limit.target else ""
        said = f"{condition}: known from {limit.same_from:.3f}, calibrated for one false accept in {1 / limit.target:g} comparisons{tried}"
        bound = f"at most {limit.gallery_rate:.2g}" if limit.gallery_rate < 1 else "any share"
        few = (
            ""
            if limit.gallery_rate <= self._wanted * (1 + 1e-9)
            else f", more than the {self._wanted:g} wanted: no stricter limit is known"
        )
        return f"{said}; against {faces} faces {bound} of unknown people may pass{few}"


def _shown(row: Outcome, matches: list[Match]) -> list[str]:
    details = row.details
    name = details["person"] if details["answer"] == "known" else f"({details['answer']})"
    candidates = ", ".join(f"{match.person} {match.similarity:.3f}" for match in matches)
    numbers = (f"{details['similarity']:.3f}", f"{details['same_from']:.3f}")
    return [printable(str(cell)) for cell in (row.photo, row.face, name, *numbers, candidates)]
