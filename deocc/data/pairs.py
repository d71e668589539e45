"""Lists of face pairs with same-or-different labels, such as that of MFR2."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from deocc.data.face_set import FaceSet, identity_name, missing_set, read_lines
from deocc.data.folder import square_side
from deocc.data.images import leads_out, read_image, read_size
from deocc.data.landmarks import find_landmarks
from deocc.evaluation.protocol import ListedPairs, OccludedPairs
from deocc.files import expand_user, is_file
from deocc.geometry import get_template
from deocc.masking.registry import kind_numbers

_LABELS: Final = {
    **dict.fromkeys(("1", "same", "true"), True),
    **dict.fromkeys(("0", "-1", "diff", "different", "false"), False),
}
_FOLDS: Final = 10  # as in LFW's protocol and in insightface's evaluation of all lists
_OCCLUDED: Final = {"bare": (False, False), "first": (True, False), "second": (False, True), "both": (True, True)}
"""Which images of a pair show a real occluder, by the word for it in a list and in `PairListFaces.occluded`."""
_EXPECTED: Final = (
    f"IMAGE IMAGE LABEL [FOLD] [OCCLUDED] with a label of {', '.join(_LABELS)} and {', '.join(_OCCLUDED)} for the "
    "images that are occluded, or NAME A B, or NAME A OTHER B, or two lines IMAGE LABEL for each pair"
)


class Pair(NamedTuple):
    """One line of a list: two images relative to the set's root, and whether they show the same person."""

    first: str
    second: str
    same: bool
    line: int
    """Number in the file, from 1."""
    fold: int | None
    occluded: str | None
    """The images with a real occluder, a key of `_OCCLUDED`; like `fold`, None if the line does not contain it."""


class PairedFiles(FaceSet):
    """The image files that a list of pairs names; all people are test people.

    Args:
        title: name of the images in messages, in the plural.
        root: folder to which the names are relative.
        pairs: the list.
        fold: (N,) fold of each pair, from 0.
        advice: how to get missing images; FileNotFoundError contains it.
    """

    def __init__(self, title: str, root: Path, pairs: Sequence[Pair], fold: NDArray[np.int64], advice: str) -> None:
        self.root = root
        stored: dict[str, str] = {}
        for name in {name for pair in pairs for name in pair[:2]}:
            forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
            stored[name] = next((form for form in forms if is_file(root / form)), name)
        self.names = sorted({*stored.values()})
        missing = [name for name in self.names if not is_file(root / name)]
        if missing:
            raise missing_set(title, root, missing, len(self.names), advice)
        place = {name: index for index, name in enumerate(self.names)}
        self._first = np.array([place[stored[pair.first]] for pair in pairs])
        self._second = np.array([place[stored[pair.second]] for pair in pairs])
        self._same = np.array([pair.same for pair in pairs])
        self.protocol = ListedPairs(self._first, self._second, self._same, fold)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read the image at `index`, (H, W, 3) RGB; see `FaceSet.image`."""
        return read_image(self.root / self.names[index])

    def content(self, index: int) -> bytes:
        """Return name and size of the file instead of pixels, which distinguishes copies of a set cheaply."""
        return f"{self.names[index]} {(self.root / self.names[index]).stat().st_size}\n".encode()


class PairListFaces(PairedFiles):
    """The images of any list of pairs, for tests only.

    A line is `IMAGE IMAGE LABEL [FOLD]`: paths relative to `root`, a label (1, same or true; 0, -1, diff, different or
    false) and an integer, separated by commas, tabs (paths may then contain spaces) or spaces; and perhaps a word for
    the images with real occluders: bare, first, second or both. Or it has LFW's form: `NAME A B` for NAME/NAME_000A and
    NAME/NAME_000B of one person, `NAME A OTHER B` for two people; .jpg or .png. Or a pair is two lines `IMAGE LABEL`,
    as in CPLFW. A first line of one or two numbers, or of names of columns, is a header.

    Folds are those of the list, or of a matching header `FOLDS PAIRS` (that many genuine, then that many impostor pairs
    per fold), or contiguous tenths in the order of the list, as in insightface. Fewer than ten pairs are one fold.

    Lists do not contain identities. Our choice: the identity of an image is its folder, unless a pair within the folder
    is labelled different (then each of its images is an identity of its own) or it has no folder. A pair labelled same
    merges two identities.

    Args:
        root: folder to which the paths of the list are relative.
        pairs: file of the list.
        aligned: template of the images, a name of `deocc.geometry.TEMPLATES`, if they are square aligned crops; None
            detects the landmarks once.
        detector: detector of the landmarks, see `deocc.data.landmarks`.
        detector_weights: weights file of the detector, if it needs one.
        occluded: the images of each pair that show real occluders, such as masks: "first", "second" or "both". No mask
            is drawn on any image of the list then, and the masks are predicted. None: as the lines of the list say;
            without such a column all images are bare.
        occluder: kind of the real occluders, under which results are listed.

    Raises:
        FileNotFoundError: there is no such list, or images of it are missing.
        ValueError: a malformed line (the message begins with FILE:LINE), an unknown template or kind, an image that is
            not square, or one that is occluded in one pair and bare in another.
    """

    def __init__(
        self,
        root: str,
        pairs: str,
        aligned: str | None = None,
        detector: str = "dlib",
        detector_weights: str | None = None,
        occluded: Literal["first", "second", "both"] | None = None,
        occluder: str = "surgical",
    ) -> None:
        template = get_template(aligned) if aligned is not None else None
        path, folder = expand_user(pairs), expand_user(root)
        self.credit = f"face pairs of the list {path.name}"  # their owner is not known
        header, listed = read_pairs(path, folder)
        fold = _folds(header, listed)
        advice = "give the folder that the list's paths are relative to"
        super().__init__(f"images of {path.name}", folder, listed, fold, advice)
        self.identity, self.identity_names = _identities(self.names, self._first, self._second, self._same)
        self.split_of_identity = dict.fromkeys(range(len(self.identity_names)), "test")
        words = [occluded or pair.occluded for pair in listed]
        if any(word is not None for word in words):
            images = np.stack([self._first, self._second], 1)
            chosen = np.array([_OCCLUDED[word or "bare"] for word in words])
            if len(both := np.intersect1d(images[chosen], images[~chosen])) > 0:
                raise ValueError(
                    f"{path}: {self.names[both[0]]!r} is occluded in one pair and bare in another: end the lines "
                    "of the list with bare, first, second or both, and leave out `occluded`"
                )
            shown = np.isin(np.arange(len(self.names)), images[chosen])
            self.occluder = np.where(shown, kind_numbers([occluder])[0], -1)
            self.protocol = OccludedPairs(self._first, self._second, self._same, fold, shown)
        if template is None:
            found = find_landmarks(folder, self.names, detector, detector_weights)
            found.warn()
            self.landmarks = found.filled()
        else:
            sides = [square_side(folder / name, read_size(folder / name)) for name in self.names]
            self.landmarks = np.stack([template.tensor(side).double().numpy() for side in sides])


def read_pairs(path: Path, root: Path) -> tuple[list[str], list[Pair]]:
    """Read the header's fields, if there is a header, and the pairs of images below `root` in any form of a list.

    Raises the errors of `read_lines`, and ValueError for a list without pairs or a malformed line, with FILE:LINE.
    """
    lines = [(number, _split_fields(line)) for number, line in read_lines(path, "one pair of images a line")]
    header = lines[0][1]
    numbers = 0 < len(header) <= 2 and all(re.fullmatch(r"\d{1,9}", field) for field in header)
    words = len(header) > 1 and all(re.fullmatch(r"[A-Za-z][\w ]*", field) for field in header)
    if numbers or (words and header[-1].lower() not in _LABELS):  # the latter are names of columns
        lines = lines[1:]
    else:
        header = []
    if lines and all(len(fields) == 2 and fields[1].lower() in _LABELS for _, fields in lines):
        lines = _join_lines(path, lines)
    pairs = [_read_pair(path, root, number, fields) for number, fields in lines]
    if not pairs:
        raise ValueError(f"{path} holds no pair below its header: expected {_EXPECTED}")
    for pair in pairs:
        for name in ("fold", "occluded"):
            if (getattr(pair, name) is None) != (getattr(pairs[0], name) is None):
                raise ValueError(
                    f"{path}:{pair.line}: {name} on some lines and not on others: give it on every line or on none"
                )
    return header, pairs


def contiguous_folds(pairs: int) -> NDArray[np.int64]:
    """Return (pairs,) fold numbers of ten contiguous parts of nearly equal size; one fold for fewer than ten pairs."""
    parts = np.array_split(np.arange(pairs), _FOLDS if pairs >= _FOLDS else 1)
    return np.concatenate([np.full(len(part), fold) for fold, part in enumerate(parts)])


def _folds(header: Sequence[str], pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """Return (N,) the folds of the list, of its header `FOLDS PAIRS` if it matches, or contiguous ones."""
    if pairs[0].fold is not None:
        return np.unique([int(pair.fold or 0) for pair in pairs], return_inverse=True)[1].astype(np.int64)
    folds, half = map(int, header) if len(header) == 2 and header[0].isdecimal() else (0, 0)
    if folds * 2 * half == len(pairs):
        return np.repeat(np.arange(folds), 2 * half).astype(np.int64)
    return contiguous_folds(len(pairs))


def _split_fields(line: str) -> list[str]:
    """Split a line at commas or tabs, or else at spaces; empty fields at the end, as in Kaggle's lists, are dropped."""
    fields = re.split(r"\s*[,\t]\s*", line) if re.search(r"[,\t]", line) else line.split()
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _join_lines(path: Path, lines: Sequence[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Join each two lines `IMAGE LABEL` to one of `IMAGE IMAGE LABEL`."""
    joined = []
    for (number, (first, label)), (_, (second, again)) in zip(lines[::2], lines[1::2], strict=False):
        if label != again:
            raise ValueError(
                f"{path}:{number}: the two lines of a pair have the labels {label} and {again}: make them equal"
            )
        joined.append((number, [first, second, label]))
    if len(lines) % 2:
        raise ValueError(f"{path}:{lines[-1][0]}: the second line of the pair is missing: expected {_EXPECTED}")
    return joined


def _read_pair(path: Path, root: Path, number: int, fields: Sequence[str]) -> Pair:
    fold = occluded = None
    try:
        if len(fields) > 3 and fields[-1].lower() in _OCCLUDED:
            occluded, fields = fields[-1].lower(), fields[:-1]
        if len(fields) in (3, 4) and fields[1].isdecimal() and fields[-1].isdecimal():  # LFW's form
            same = len(fields) == 3
            first, second = _numbered(root, *fields[:2]), _numbered(root, fields[0] if same else fields[2], fields[-1])
        else:
            label = fields[2].lower() if len(fields) in (3, 4) and fields[0] and fields[1] else ""
            if label not in _LABELS or (len(fields) == 4 and not re.fullmatch(r"[+-]?\d+", fields[3])):
                raise ValueError(f"expected {_EXPECTED}, got {' '.join(fields)!r}")
            first, second, same = _inside(fields[0]), _inside(fields[1]), _LABELS[label]
            fold = int(fields[3]) if len(fields) == 4 else None
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}") from error
    if first == second:
        raise ValueError(f"{path}:{number}: {first!r} is paired with itself: remove the line")
    return Pair(first, second, same, number, fold, occluded)


def _numbered(root: Path, name: str, number: str) -> str:
    """Return the image of a person and a number, .jpg or .png, the first of which exists."""
    candidates = [_inside(f"{name}/{name}_{int(number):04d}{suffix}") for suffix in (".jpg", ".png")]
    return next((name for name in candidates if is_file(root / name)), candidates[0])


def _inside(name: str) -> str:
    """Return the path in its shortest form, with slashes for the backslashes of Windows, if it is below its folder."""
    if leads_out(name):
        raise ValueError(f"{name!r} leads out of the set's folder: give paths relative to it, without ..")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise ValueError(f"{name!r} holds control characters: rename the file")
    return PurePosixPath(name.replace("\\", "/")).as_posix()


def _identities(
    names: Sequence[str], first: NDArray[np.int64], second: NDArray[np.int64], same: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the identity of each image, and a name for each identity: its first folder, or its first image."""
    folders = [identity_name(str(PurePosixPath(name).parent)) for name in names]
    mixed = {"."}
    for one, other in zip(first[~same], second[~same], strict=True):
        if folders[one] == folders[other]:
            mixed.add(folders[one])
    labels = [name if folder in mixed else folder for name, folder in zip(names, folders, strict=True)]
    owners, owner = np.unique(labels, return_inverse=True)
    links = coo_array((np.ones(same.sum()), (owner[first[same]], owner[second[same]])), shape=(len(owners),) * 2)
    number = connected_components(links, directed=False)[1]
    first_owner = np.unique(number, return_index=True)[1]
    return number[owner].astype(np.int64), owners[first_owner].tolist()
