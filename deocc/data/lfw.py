"""Labeled Faces in the Wild, in any of its copies, with its own list of pairs in folds.

Credit: G. B. Huang, M. Ramesh, T. Berg, E. Learned-Miller, "Labeled Faces in the Wild: A Database for Studying Face Recognition in
Unconstrained Environments", University of Massachusetts, Amherst, Technical Report 07-49, 2007. File formats: the README of the set.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from deocc.data.pair_list import Pair, PairedFiles, inside, numbered_pair, read_lines

_FOLDERS: Final = (
    "",
    "lfw",
    "lfw_funneled",
    "lfw-deepfunneled",
    "lfw-deepfunneled/lfw-deepfunneled",  # a widespread copy nests the folder
    "lfw_home/lfw",
    "lfw_home/lfw_funneled",  # scikit-learn's copies
)
_ADVICE: Final = (
    "get the images, pairs.txt and people.txt from the home page of Labeled Faces in the Wild, University of Massachusetts, Amherst, "
    "or run scikit-learn's fetch_lfw_pairs"
)


class LfwFaces(PairedFiles):
    """LFW's test: the images that its list of pairs names (7,701 of the 13,233 for `pairs.txt`) and the pairs in their folds.

    Images that no pair names are left out, since a test compares nothing with them. Everybody is a test person; `person_names` are LFW's,
    so that another set's training people can be checked against them. Landmarks come from a detector, once. Where the list of people lies
    beside the list of pairs (`people.txt` beside `pairs.txt`), the pairs of each fold must be of that fold's people.

    Args:
        root: the folder of the images (of the original, funnelled or deep-funnelled ones), or the one that holds it, also scikit-learn's
            `lfw_home` or `scikit_learn_data`.
        detector: what finds the landmarks, see `deocc.data.landmark_cache`.
        detector_weights: its weights file, where it needs one.
        pairs: the list's name, looked for in the images' folder, in the one above and in `root`: `pairs.txt` for the ten folds, or a list
            of a single fold such as `pairsDevTest.txt`.

    Raises:
        FileNotFoundError: no images, no list, or images of the list are missing.
        ValueError: several copies of the images below `root`, a malformed line (the message begins with FILE:LINE), or pairs that do not
            fit the list of people.
    """

    credit = "Labeled Faces in the Wild, Huang et al., University of Massachusetts, Amherst, 2007"

    def __init__(self, root: str, detector: str = "dlib", detector_weights: str | None = None, pairs: str = "pairs.txt") -> None:
        images = _image_folder(Path(root))
        places = (images, images.parent, Path(root))
        path = _find(pairs, places)
        listed, folds = _read_pairs(path)
        people = path.with_name(path.name.replace("pairs", "people"))
        if people != path and people.is_file():
            _check_people(path, listed, people, folds)
        super().__init__("LFW images", images, listed, np.array([pair.fold for pair in listed], dtype=np.int64), _ADVICE)
        names, person = np.unique([_person(name) for name in self.names], return_inverse=True)
        self._name_people(person, names.tolist())
        self.landmarks = self._detect(detector, detector_weights)


def _image_folder(root: Path) -> Path:
    found = [root / folder for folder in _FOLDERS if _holds_people(root / folder)]
    if not found:
        looked = f"looked for NAME/NAME_0001.jpg in it and below it in {', '.join(_FOLDERS[1:])}"
        raise FileNotFoundError(f"no LFW images in {root.absolute()}: {looked}; {_ADVICE}")
    if len(found) > 1:
        raise ValueError(f"several copies of LFW ({', '.join(str(folder) for folder in found)}): give the folder of one of them as root")
    return found[0]


def _holds_people(folder: Path) -> bool:
    return any(image.name.startswith(f"{image.parent.name}_") for image in folder.glob("*/*_[0-9][0-9][0-9][0-9].jpg"))


def _find(name: str, places: Sequence[Path]) -> Path:
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None:
        looked = ", ".join(dict.fromkeys(str(place.absolute()) for place in places))
        raise FileNotFoundError(f"no LFW list {name}: looked in {looked}; {_ADVICE}")
    return found


def _read_pairs(path: Path) -> tuple[list[Pair], int]:
    """The pairs, fold by fold, each fold's same pairs before its different ones; and the number of folds."""
    (number, header), *lines = read_lines(path)
    words = header.split()
    if len(words) > 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"{path}:{number}: expected a header 'FOLDS PAIRS' or 'PAIRS', got {header!r}")
    folds, half = ([1, *(int(word) for word in words)])[-2:]
    if len(lines) != folds * 2 * half:
        raise ValueError(f"{path}: its header announces {folds} x 2 x {half} pairs, but {len(lines)} follow: get the whole file")
    return [_pair(path, place, half, *line) for place, line in enumerate(lines)], folds


def _pair(path: Path, place: int, half: int, number: int, line: str) -> Pair:
    fold, within = divmod(place, 2 * half)
    pair = numbered_pair(line.split())
    if pair is None or pair[2] != (within < half):
        form = "NAME A B" if within < half else "NAME A OTHER B"
        raise ValueError(f"{path}:{number}: expected {form}, got {line!r}")
    try:
        return Pair(inside(f"{pair[0]}.jpg"), inside(f"{pair[1]}.jpg"), pair[2], fold, number)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}") from error


def _person(name: str) -> str:
    return name.split("/")[0]


def _check_people(path: Path, pairs: Sequence[Pair], people_path: Path, folds: int) -> None:
    """Warn of pairs whose people are not those of their fold: lists of two copies, perhaps, so that folds share people."""
    people = _read_people(people_path)
    if len(people) != folds:
        warnings.warn(f"{people_path} has {len(people)} folds and {path} has {folds}: take both from one copy of LFW", stacklevel=3)
        return
    for pair in pairs:
        stranger = {_person(pair.first), _person(pair.second)} - people[pair.fold or 0]
        if stranger:
            where = f"is not among the people of fold {pair.fold} in {people_path}"
            warnings.warn(f"{path}:{pair.line}: {min(stranger)} {where}: take both from one copy of LFW", stacklevel=3)
            return


def _read_people(path: Path) -> list[set[str]]:
    """The people of each fold: a line with their number, then as many lines `NAME IMAGES`; above all the number of folds, if several."""
    rows = [(number, line.split()) for number, line in read_lines(path)]
    people: list[set[str]] = []
    for number, row in rows[1:] if len(rows) > 1 and len(rows[1][1]) == 1 else rows:
        if len(row) == 1:
            people.append(set())
        elif people and len(row) == 2:
            people[-1].add(row[0])
        else:
            raise ValueError(f"{path}:{number}: expected NAME IMAGES below the number of a fold's people, got {' '.join(row)!r}")
    return people
