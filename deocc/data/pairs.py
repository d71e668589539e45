"""Any list of face pairs with same-or-different labels, as of MFR2 or a list of one's own, and what reading such lists has in common."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from deocc.data.archive import leads_out
from deocc.data.face_set import FaceSet, missing_set
from deocc.data.folder import template_landmarks
from deocc.data.images import read_image
from deocc.data.landmarks import SUBSTITUTED, find_file_landmarks, warn_of_lost
from deocc.evaluation.protocol import ListedPairs
from deocc.geometry import get_template

_LABELS: Final = {"1": True, "same": True, "0": False, "-1": False, "diff": False}
_FOLDS: Final = 10  # as LFW's own protocol has, and insightface's evaluation of every list
_EXPECTED: Final = f"IMAGE IMAGE LABEL [FOLD] with a label of {', '.join(_LABELS)}, or NAME A B, or NAME A OTHER B"


class Pair(NamedTuple):
    """One line of a list."""

    first: str
    """The first image, relative to the set's root."""
    second: str
    """The second image."""
    same: bool
    """Whether the list calls them one person."""
    fold: int | None
    """The fold, where the line tells it."""
    line: int
    """The line's number in its file, from 1."""


class PairedFiles(FaceSet):
    """The image files that a list of pairs names, no others; everybody is a test person.

    Args:
        title: what the images are called in messages, in the plural.
        root: the folder that the names are relative to.
        pairs: the list.
        fold: (N,) the fold of each pair, from 0.
        advice: how to get missing images by hand.

    Raises:
        FileNotFoundError: images of the list are missing.
    """

    def __init__(self, title: str, root: Path, pairs: Sequence[Pair], fold: NDArray[np.int64], advice: str) -> None:
        self.root = root
        self.names = sorted({name for pair in pairs for name in (pair.first, pair.second)})
        missing = [name for name in self.names if not _is_there(root / name)]
        if missing:
            raise missing_set(title, root, missing, len(self.names), advice)
        place = {name: index for index, name in enumerate(self.names)}
        self._first = np.array([place[pair.first] for pair in pairs])
        self._second = np.array([place[pair.second] for pair in pairs])
        self._same = np.array([pair.same for pair in pairs])
        self.protocol = ListedPairs(self._first, self._second, self._same, fold)

    def image(self, index: int) -> NDArray[np.uint8]:
        """The photograph at `index`, (H, W, 3) RGB.

        Raises:
            ValueError: the file is not a readable image; the message names it.
        """
        return read_image(self.root / self.names[index])

    def content(self, index: int) -> bytes:
        """The file's name and size, not its pixels: enough to tell copies of a set apart, and cheap for thousands of files."""
        return f"{self.names[index]} {(self.root / self.names[index]).stat().st_size}\n".encode()

    def _name_people(self, person: NDArray[np.int64], names: Sequence[str]) -> None:
        self.person, self.person_names = person.astype(np.int64), list(names)
        self.split_of_person = dict.fromkeys(range(len(names)), "test")


class PairListFaces(PairedFiles):
    """The images of any pair list, for a test alone.

    A line is `IMAGE IMAGE LABEL`, or `IMAGE IMAGE LABEL FOLD`: paths relative to `root`, a label 1 or same, 0, -1 or diff, an integer;
    separated by commas or tabs (paths may then hold spaces) or else by spaces. Or it has LFW's form: `NAME A B` for NAME/NAME_000A and
    NAME/NAME_000B of one person, `NAME A OTHER B` for two; .jpg or .png. A first line of one or two numbers is a header.

    Folds are those of the list, else those of a header `FOLDS PAIRS` that fits it (that many same, then that many different pairs a fold),
    else contiguous tenths in list order, as insightface takes them; fewer than ten pairs are one fold.

    Whom an image shows is OURS, for lists do not tell: its folder, unless a pair within the folder is labelled different (then the folder
    names nobody, and each of its images is a person), or it lies in none. A pair labelled same makes one person of two.

    Args:
        root: the folder that the list's paths are relative to.
        pairs: the list's file.
        aligned: the template, a name of `deocc.geometry.TEMPLATES`, to which the images, all square, are cropped already; None finds the
            landmarks with a detector, once.
        detector: which one, see `deocc.data.landmark_cache`.
        detector_weights: its weights file, where it needs one.

    Raises:
        FileNotFoundError: no such list, or images of it are missing.
        ValueError: a malformed line (the message begins with FILE:LINE), an unknown template, or an image that is not square.
    """

    def __init__(
        self,
        root: str,
        pairs: str,
        aligned: str | None = None,
        detector: str = "dlib",
        detector_weights: str | None = None,
    ) -> None:
        template = get_template(aligned) if aligned is not None else None
        self._list = Path(pairs)
        listed, fold = _read(self._list, Path(root))
        super().__init__(
            f"images of {self._list.name}",
            Path(root),
            listed,
            fold,
            "give the folder that the list's paths are relative to",
        )
        self._name_people(*_people(self.names, self._first, self._second, self._same))
        if template is None:
            found = find_file_landmarks(self.root, self.names, detector, detector_weights)
            warn_of_lost(found.lost, len(self), SUBSTITUTED)
            self.landmarks = found.filled()
        else:
            self.landmarks = np.stack([template_landmarks(self.root / name, template) for name in self.names])

    @property
    def credit(self) -> str:
        """The list's name: whose faces they are only its owner knows."""
        return f"face pairs of the list {self._list.name}"


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, stripped, with their numbers from 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8 text, or blank.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no list at {path.absolute()}: give a text file with one pair of images a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason}): give a text file with one pair of images a line"
        ) from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} is empty: give a text file with one pair of images a line")
    return numbered


def numbered_pair(fields: Sequence[str]) -> tuple[str, str, bool] | None:
    """The images of LFW's form, without their suffix, and whether they show one person; None for a line of another form.

    >>> numbered_pair(["Ada", "1", "12"])
    ('Ada/Ada_0001', 'Ada/Ada_0012', True)
    >>> numbered_pair(["Ada", "1", "Bo", "3"])
    ('Ada/Ada_0001', 'Bo/Bo_0003', False)
    """
    if len(fields) not in (3, 4) or not (fields[1].isdecimal() and fields[-1].isdecimal()):
        return None
    name, other = fields[0], fields[0] if len(fields) == 3 else fields[2]
    return f"{name}/{name}_{int(fields[1]):04d}", f"{other}/{other}_{int(fields[-1]):04d}", len(fields) == 3


def inside(name: str) -> str:
    """The path in its shortest form.

    Raises:
        ValueError: it leads, or might lead, out of the folder that it is relative to.
    """
    if leads_out(name):
        raise ValueError(f"{name!r} leads out of the set's folder: give paths relative to it, without ..")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise ValueError(f"{name!r} holds control characters: rename the file")
    return PurePosixPath(name).as_posix()


def contiguous_folds(pairs: int) -> NDArray[np.int64]:
    """(pairs,) fold numbers: ten contiguous parts, the first ones larger by one where they cannot be equal; one fold for fewer than ten."""
    sizes = [len(part) for part in np.array_split(np.arange(pairs), _FOLDS if pairs >= _FOLDS else 1)]
    return np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)


def _read(path: Path, root: Path) -> tuple[list[Pair], NDArray[np.int64]]:
    """The pairs of a list and their folds."""
    lines = read_lines(path)
    words = lines[0][1].split()
    header = (
        [int(word) for word in words]
        if len(words) <= 2 and all(re.fullmatch(r"\d{1,9}", word) for word in words)
        else []
    )
    pairs = [_pair(path, root, number, line) for number, line in (lines[1:] if header else lines)]
    if not pairs:
        raise ValueError(f"{path} holds no pair below its header: expected {_EXPECTED}")
    odd = next((pair for pair in pairs if (pair.fold is None) != (pairs[0].fold is None)), None)
    if odd is not None:
        raise ValueError(f"{path}:{odd.line}: a fold on some lines and none on others: give every line one or none")
    return pairs, _folds(pairs, header)


def _pair(path: Path, root: Path, number: int, line: str) -> Pair:
    fields = re.split(r"\s*[,\t]\s*", line) if re.search(r"[,\t]", line) else line.split()
    try:
        first, second, same, fold = _fields(root, fields)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}") from error
    if first == second:
        raise ValueError(f"{path}:{number}: {first!r} is paired with itself: remove the line")
    return Pair(first, second, same, fold, number)


def _fields(root: Path, fields: list[str]) -> tuple[str, str, bool, int | None]:
    numbered = numbered_pair(fields)
    if numbered is not None:
        return _with_suffix(root, numbered[0]), _with_suffix(root, numbered[1]), numbered[2], None
    label = fields[2].lower() if len(fields) in (3, 4) else ""
    fold = fields[3] if len(fields) == 4 else None
    if (
        label not in _LABELS
        or (fold is not None and not re.fullmatch(r"[+-]?\d+", fold))
        or not (fields[0] and fields[1])
    ):
        raise ValueError(f"expected {_EXPECTED}, got {' '.join(fields)!r}")
    return inside(fields[0]), inside(fields[1]), _LABELS[label], None if fold is None else int(fold)


def _with_suffix(root: Path, stem: str) -> str:
    """The first of .jpg and .png that exists."""
    candidates = [inside(f"{stem}{suffix}") for suffix in (".jpg", ".png")]
    return next((name for name in candidates if _is_there(root / name)), candidates[0])


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no disk takes
        return False


def _folds(pairs: Sequence[Pair], header: list[int]) -> NDArray[np.int64]:
    if pairs[0].fold is not None:
        return np.unique([pair.fold for pair in pairs if pair.fold is not None], return_inverse=True)[1].astype(
            np.int64
        )
    if len(header) == 2 and header[0] * 2 * header[1] == len(pairs):
        return np.repeat(np.arange(header[0]), 2 * header[1]).astype(np.int64)
    return contiguous_folds(len(pairs))


def _people(
    names: Sequence[str], first: NDArray[np.int64], second: NDArray[np.int64], same: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], list[str]]:
    """The person of each image, and a name for each person: of the folder, else of the image, that comes first."""
    folders = [str(PurePosixPath(name).parent) for name in names]
    mixed = {
        folders[one] for one, other in zip(first[~same], second[~same], strict=True) if folders[one] == folders[other]
    } | {"."}
    owners, owner = np.unique(
        [name if folder in mixed else folder for name, folder in zip(names, folders, strict=True)], return_inverse=True
    )
    links = coo_array(
        (np.ones(same.sum()), (owner[first[same]], owner[second[same]])), shape=(len(owners), len(owners))
    )
    number = connected_components(links, directed=False)[1]
    return number[owner], owners[np.unique(number, return_index=True)[1]].tolist()
