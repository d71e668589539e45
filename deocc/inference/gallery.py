"""Identification in a gallery: embed a folder of known people, find the most similar ones, apply a threshold."""

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.data.face_set import identity_name
from deocc.evaluation.thresholds import Calibration
from deocc.inference.batch import RECOVERABLE, Outcome, find_photos
from deocc.inference.faces import FaceFinder
from deocc.inference.outputs import WriteTimer, read_rows, write_rows
from deocc.inference.photos import read_photo
from deocc.inference.pipeline import Pipeline
from deocc.messages import describe_error, one_line, show_progress, telling_warnings

_SLACK: Final = 1 + 1e-9  # for the rounding of products such as 10 * 0.001
_BATCH: Final = 32
_SEARCHED: Final = 256  # faces at once, which bounds memory if one person has many photos
_SAVE_INTERVAL: Final = 30.0  # seconds of embedding that a killed process may lose
_TIE: Final = 0.01  # of similarity: less than JPEG compression changes it; our choice
_SAME_PHOTO: Final = 0.98  # similarity of two people from which they are the same photo or person; our choice
_CACHE_COLUMNS: Final = {"photo": ("U", 1), "stamp": ("i", 2), "embedding": ("f", 2), "covered": ("f", 1)}

Answer = Literal["known", "unknown", "not sure"]


class Limit(NamedTuple):
    """The similarity from which a face is accepted as someone of the gallery."""

    same_from: float  # the similarity, in [-1, 1]
    target: float  # false-accept rate of one comparison that it was calibrated for, on validation people
    rate: float  # the same rate, or the one measured on the test people if that is higher
    gallery_rate: float  # upper bound of the share of unknown faces that reach it with any gallery face


def limit_for(calibration: Calibration, condition: str, faces: int, wanted: float) -> Limit:
    """Return the lowest calibrated limit of a condition that suits a gallery, or else the strictest one.

    A limit suits a gallery with this number of faces if at most the share `wanted` of unknown faces is accepted.
    """
    limits = []
    for threshold in calibration.thresholds[condition]:
        rate = max(threshold.target, threshold.test.false_accept_rate if threshold.test is not None else 0.0)
        limits.append(Limit(threshold.same, threshold.target, rate, min(1.0, rate * faces)))
    if not limits:
        raise ValueError(f"no threshold for {condition}: too few validation people; test on more with `deocc test`")
    fitting = [limit for limit in limits if limit.rate * faces <= wanted * _SLACK]
    if fitting:
        return min(fitting, key=lambda limit: limit.same_from)
    return max(limits, key=lambda limit: limit.same_from)


def answer(calibration: Calibration, limit: Limit, matches: Sequence["Match"], covered: float) -> Answer:
    """Return the answer for a face and the most similar people, most similar first.

    `covered` is the covered share of this face or of the best match's, whichever is higher, in [0, 1].
    """
    if 1 - covered < calibration.least_visible:
        return "not sure"
    if matches[0].similarity < limit.same_from:
        return "unknown"
    tie = len(matches) > 1 and matches[0].similarity - matches[1].similarity < _TIE
    return "not sure" if tie else "known"


class CachedFace(NamedTuple):
    """The cached embedding of a photo; `embedding` and `covered` are those of `GalleryFace`."""

    photo: str  # resolved path
    stamp: list[int]  # size of the file in bytes and its modification time in nanoseconds
    embedding: NDArray[np.float32]
    covered: float


class GalleryCache:
    """Embeddings by photo in an .npz file without pickles; an existing one is read, ValueError if it is something else.

    The key is a hash of the model and the detector settings; entries of another key are dropped.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self._key = path, key
        self.faces: dict[str, CachedFace] = {}
        if path.exists():
            try:
                rows, found = read_rows(path, _CACHE_COLUMNS, CachedFace, "key")
            except ValueError as error:
                raise ValueError(
                    f"{path} exists and holds no gallery ({error}): choose another --save-index"
                ) from error
            self.faces = {row.photo: row for row in rows if found == key}

    def update(self, faces: Sequence[CachedFace]) -> None:
        """Replace all entries by these and write the file if that changes anything; none leave it as it is."""
        before = {face.photo: face.stamp for face in self.faces.values()}
        after = {face.photo: face for face in faces}
        if after and before != {face.photo: face.stamp for face in faces}:
            write_rows(self.path, _CACHE_COLUMNS, list(after.values()), "key", self._key)
            self.faces = after


@dataclass(frozen=True, eq=False)
class GalleryFace:
    """The face of a gallery photo."""

    person: str
    photo: Path
    embedding: NDArray[np.float32]  # (D,) unit vector
    covered: float  # covered share of the face, in [0, 1]


def person_of(photo: Path, folder: Path) -> str:
    """Return the first folder below the gallery, or the name without suffix of a photo directly in it.

    >>> person_of(Path("people/anna/2020/x.jpg"), Path("people")), person_of(Path("people/bob.png"), Path("people"))
    ('anna', 'bob')
    """
    parts = photo.relative_to(folder).parts
    return identity_name(parts[0] if len(parts) > 1 else photo.stem)


def read_gallery(
    folder: Path,
    pipeline: Pipeline,
    finder: FaceFinder,
    cache: GalleryCache | None = None,
    outside: Collection[Path] = (),
) -> tuple[list[GalleryFace], list[Outcome]]:
    """Embed the face of each photo of a gallery, and return an outcome for each photo without one.

    Photos of several similarly prominent faces are left out, also if the finder chooses one by its number. The cache
    provides the embeddings of unchanged photos, and is updated, also after Ctrl-C. `outside` are results to skip.
    Raises FileNotFoundError or ValueError if there is no such folder, or no face in it.
    """
    if not folder.is_dir():
        kind = ValueError if folder.exists() else FileNotFoundError
        raise kind(
            f"no gallery at {folder}: give a folder of photos, each in a folder or a file called like its person"
        )
    found, problems = find_photos([folder], outside, lambda photo: (person_of(photo, folder), photo.resolve()))
    cached = {} if cache is None else cache.faces
    faces: dict[Path, CachedFace | None] = {}  # in the order of the photos; None until the face is embedded
    stamps = {}
    for photo in (each.path for each in found):
        stamps[photo] = [0, 0]
        with suppress(OSError):  # also reported when the photo is read
            status = photo.stat()
            stamps[photo] = [status.st_size, status.st_mtime_ns]
        face = cached.get(str(photo.resolve()))
        faces[photo] = face if face is not None and face.stamp == stamps[photo] else None
    new = [photo for photo, face in faces.items() if face is None]

    def save() -> None:
        if cache is not None:
            cache.update([face for face in faces.values() if face is not None])

    timer = WriteTimer(_SAVE_INTERVAL)
    try:
        for start in show_progress(range(0, len(new), _BATCH), "gallery"):
            crops, more_problems = _find_faces(finder, new[start : start + _BATCH])
            problems += more_problems
            if crops:
                output = pipeline.process_faces(torch.stack(list(crops.values())))
                rows = zip(crops, output.embedding.cpu().numpy(), output.covered.tolist(), strict=True)
                for photo, embedding, covered in rows:
                    faces[photo] = CachedFace(str(photo.resolve()), stamps[photo], embedding, covered)
            timer.call_when_due(save)
    finally:
        save()
    known = [(photo, face) for photo, face in faces.items() if face is not None]
    if not known:
        reason = problems[0].reason if problems else "it is empty"
        raise ValueError(f"no face in the gallery {folder} ({reason}): give photos of the people to be known")
    gallery = []
    for photo, face in known:
        gallery.append(GalleryFace(person_of(photo, folder), photo, face.embedding, face.covered))
    return gallery, problems


def _find_faces(finder: FaceFinder, photos: Sequence[Path]) -> tuple[dict[Path, Tensor], list[Outcome]]:
    """Return the crops of gallery photos, and an outcome for each photo without a single face."""
    crops, problems = {}, []
    for photo in photos:
        try:
            with telling_warnings():
                crops[photo] = finder.find_single(read_photo(photo), str(photo), may_choose=False).face
        except RECOVERABLE as error:
            problems.append(Outcome(str(photo), f"gallery: {one_line(error) or type(error).__name__}"))
    return crops, problems


class Match(NamedTuple):
    """A person of the gallery: name, cosine to the person's most similar face, in [-1, 1], and that face's index."""

    person: str
    similarity: float
    place: int


class PersonIndex:
    """Finds people by the most similar of their faces.

    Args:
        dimension: length of the embeddings.
        description: string for `faiss.index_factory`; "Flat" compares with every face, others such as "HNSW32" are
            approximate: they find candidates, of which the exact similarities are computed.
    """

    def __init__(self, dimension: int, description: str = "Flat") -> None:
        try:
            import faiss
        except ImportError:
            raise ImportError('deocc identify needs the package faiss-cpu: pip install "deocc[identify]"') from None
        try:
            self._index = faiss.index_factory(dimension, description, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ValueError(
                f"unknown index {description!r}: give a string for faiss.index_factory, such as Flat or HNSW32"
            ) from error
        self._embeddings = np.zeros((0, dimension), np.float32)
        self._people: list[str] = []
        self._most_faces = 0

    def add(self, embeddings: NDArray[np.float32], people: Sequence[str]) -> None:
        """Train the index on the faces of a gallery, (N, D) unit vectors, N at least 1, of N people, and add them."""
        self._embeddings, self._people = embeddings, list(people)
        self._most_faces = Counter(people).most_common(1)[0][1]
        try:
            self._index.train(embeddings)
            self._index.add(embeddings)
        except RuntimeError as error:
            reason = describe_error(error)
            raise ValueError(f"cannot index {len(people)} faces ({reason}): choose --index Flat") from error

    def search(self, embeddings: NDArray[np.float32], top: int) -> list[list[Match]]:
        """Return the `top` most similar people for each of (Q, D) unit vectors, or all if there are fewer."""
        # So many faces belong to at least `top` people, even if each has as many as the one with the most.
        faces = min(top * self._most_faces, len(self._people))
        found = []
        for start in range(0, len(embeddings), _SEARCHED):
            block = embeddings[start : start + _SEARCHED]
            for embedding, row in zip(block, self._index.search(block, faces)[1], strict=True):
                places = row[row >= 0]  # an approximate index fills missing results with -1
                if len(places) == 0:
                    raise ValueError("the approximate index finds no face of the gallery: choose --index Flat")
                similarities = self._embeddings[places] @ embedding
                best: dict[str, Match] = {}
                for rank in np.argsort(-similarities, kind="stable"):
                    place = int(places[rank])
                    person = self._people[place]
                    best.setdefault(person, Match(person, float(similarities[rank]), place))
                    if len(best) == top:
                        break
                found.append(list(best.values()))
        return found


def find_conflicts(gallery: Sequence[GalleryFace], index: PersonIndex) -> list[Outcome]:
    """Return an outcome for each gallery photo that also appears, nearly unchanged, under another person's name.

    Faces of which less than half is visible do not count, since their embeddings resemble each other.
    """
    found = index.search(np.stack([face.embedding for face in gallery]), top=2)
    problems = []
    for face, matches in zip(gallery, found, strict=True):
        others = [match for match in matches if match.person != face.person and match.similarity >= _SAME_PHOTO]
        if others and max(face.covered, (other := gallery[others[0].place]).covered) < 0.5:
            reason = (
                f"gallery: {face.photo} ({face.person}) and {other.photo} ({other.person}) show nearly the same face "
                f"(similarity {others[0].similarity:.3f}): remove one of them"
            )
            problems.append(Outcome(str(face.photo), reason))
    return problems
