"""Labeled Faces in the Wild, in any of its copies, with its list of pairs in folds.

Credit: G. B. Huang, M. Ramesh, T. Berg, E. Learned-Miller, "Labeled Faces in the Wild: A Database for Studying Face
Recognition in Unconstrained Environments", University of Massachusetts, Amherst, Technical Report 07-49, 2007. File
formats: the README of the set.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from deocc.data.face_set import Split
from deocc.data.identities import identity_name
from deocc.data.landmarks import LEFT_OUT, SUBSTITUTED, FoundLandmarks, find_file_landmarks, warn_of_lost
from deocc.data.loader import item_seed
from deocc.data.pairs import Pair, PairedFiles, inside, names_columns, numbered_pair, read_lines, split_fields
from deocc.files import expand_user

_FOLDERS: Final = (
    "",
    "lfw",
    "lfw_funneled",
    "lfw-deepfunneled",
    "lfw-deepfunneled/lfw-deepfunneled",  # a widespread copy nests the folder
    "lfw_home/lfw",
    "lfw_home/lfw_funneled",  # scikit-learn's copies
)
_VALIDATION_PHOTOS: Final = 10
"""Photos used of a validation person. Pairs grow with the square, and LFW has 530 photos of one person. Our choice."""

_ADVICE: Final = (
    "get the images, pairs.txt and people.txt from the home page of Labeled Faces in the Wild, University of "
    "Massachusetts, Amherst, or run scikit-learn's fetch_lfw_pairs"
)


class LfwFaces(PairedFiles):
    """LFW for tests on the folds of its list of pairs, and for training on people who are not tested.

    Without `test_folds` the set is for tests only: all folds, and the images that the list names (7,701 of the 13,233
    for `pairs.txt`). With `test_folds`, the test has the pairs of those folds. All people who occur in none of these
    pairs train with all their images, except `val_identities` people with two or more images, chosen by a hash of their
    name. A person is a folder, and `identity_names` are the names of the folders.

    A detector finds the landmarks of all photos of the folder once, for any choice of folds. Training and validation
    leave out photos without a face; in a test they get the mean landmarks. If the list of people is beside the list of
    pairs (`people.txt` beside `pairs.txt`), pairs with people of another fold cause a warning.

    Args:
        root: folder of the images (original, funnelled or deep-funnelled) or a folder that contains it, also
            scikit-learn's `lfw_home` or `scikit_learn_data`.
        detector: detector of the landmarks, see `deocc.data.landmarks`.
        detector_weights: weights file of the detector, if it needs one.
        pairs: name of the list, searched in the images' folder, the one above and `root`: `pairs.txt` for the ten
            folds, or a list of a single fold such as `pairsDevTest.txt`; else the file of this name with the ending
            .csv.
        test_folds: folds to test on, counted from 0; None tests on all folds and trains on none.
        val_identities: number of people with two or more images for validation, if there are `test_folds`; at most ten
            images of each are used.
        seed: seed of the choice of validation people.

    Raises:
        FileNotFoundError: there are no images or no list, or images of the list are missing.
        ValueError: there are several copies of the images below `root`, a malformed line (the message begins with
            FILE:LINE), folds that do not exist, or too few people for training and validation.
    """

    credit = "Labeled Faces in the Wild, Huang et al., University of Massachusetts, Amherst, 2007"

    def __init__(
        self,
        root: str,
        detector: str = "dlib",
        detector_weights: str | None = None,
        pairs: str = "pairs.txt",
        test_folds: Sequence[int] | None = None,
        val_identities: int = 300,
        seed: int = 0,
    ) -> None:
        folder = expand_user(root)
        images = _image_folder(folder)
        path = _find_list(pairs, (images, images.parent, folder))
        listed, folds = _read_pairs(path)
        people = path.with_name(path.name.replace("pairs", "people"))
        if people != path and people.is_file() and path.suffix == ".txt":  # Kaggle's people.csv has no folds
            _check_people(path, listed, people, folds)
        if test_folds is not None:
            if not test_folds or not {*test_folds} <= {*range(folds)}:
                raise ValueError(
                    f"test_folds {list(test_folds)}: choose one or more of 0 to {folds - 1}, the folds of {path}, "
                    "or null to test on all"
                )
            listed = [pair for pair in listed if pair.fold in test_folds]
        fold = np.array([pair.fold for pair in listed], dtype=np.int64)
        super().__init__("LFW images", images, listed, fold, _ADVICE)
        photos = sorted({*self.names, *(image.relative_to(images).as_posix() for image in _photos(images))})
        found = self._find_landmarks(photos, detector, detector_weights)
        split_of_name: dict[str, Split] = dict.fromkeys(map(_person, self.names), "test")
        warn_of_lost(sorted({*found.lost} & {*self.names}), len(self), SUBSTITUTED)
        if test_folds is not None:
            others = [name for name in photos if _person(name) not in split_of_name]
            usable = sorted({*others} - {*found.lost})
            warn_of_lost(sorted({*others} & {*found.lost}), len(others), LEFT_OUT)
            split_of_name |= _split_people(usable, val_identities, seed)
            self.names = [*self.names, *_cap_validation(usable, split_of_name)]  # the protocol refers to the first ones
        names, person = np.unique([_person(name) for name in self.names], return_inverse=True)
        self.identity, self.identity_names = person.astype(np.int64), names.tolist()
        self.split_of_identity = {number: split_of_name[name] for number, name in enumerate(self.identity_names)}
        row = {name: number for number, name in enumerate(photos)}
        self.landmarks = found.filled()[[row[name] for name in self.names]]

    def _find_landmarks(self, names: Sequence[str], detector: str, weights: str | None) -> FoundLandmarks:
        """Find the landmarks of all photos; a method so that tests of the lists can replace it."""
        return find_file_landmarks(self.root, names, detector, weights)


def _image_folder(root: Path) -> Path:
    found = [root / folder for folder in _FOLDERS if any(True for _ in _photos(root / folder))]
    if not found:
        looked = f"looked for NAME/NAME_0001.jpg in it and below it in {', '.join(_FOLDERS[1:])}"
        raise FileNotFoundError(f"no LFW images in {root.absolute()}: {looked}; {_ADVICE}")
    if len(found) > 1:
        copies = ", ".join(str(folder) for folder in found)
        raise ValueError(f"several copies of LFW ({copies}): give the folder of one of them as root")
    return found[0]


def _photos(folder: Path) -> Iterator[Path]:
    """Yield the files NAME/NAME_0001.jpg."""
    files = folder.glob("*/*_[0-9][0-9][0-9][0-9].jpg")
    return (file for file in files if file.name.startswith(f"{file.parent.name}_"))


def _person(name: str) -> str:
    return identity_name(name.split("/")[0])


def _split_people(names: Sequence[str], val_identities: int, seed: int) -> dict[str, Split]:
    """Choose the split of each person in the images `names`, who are not tested."""
    count = Counter(map(_person, names))
    pairable = [person for person, images in count.items() if images > 1]
    pairable.sort(key=lambda person: item_seed(seed, "validation", person))
    if not 1 <= val_identities <= len(pairable):
        available = f"{len(pairable):,} people outside the test folds have two or more images to validate on"
        raise ValueError(
            f"val_identities is {val_identities}, but {available}: choose from 1 to that number, or fewer test_folds"
        )
    splits: dict[str, Split] = dict.fromkeys(count, "train")
    splits.update(dict.fromkeys(pairable[:val_identities], "val"))
    if "train" not in splits.values():
        raise ValueError(
            f"test_folds and val_identities {val_identities} leave no one to train on: choose fewer of either"
        )
    return splits


def _cap_validation(names: Sequence[str], split_of_name: Mapping[str, Split]) -> list[str]:
    """Remove the images of validation people beyond the first ten, so that no person's pairs dominate."""
    count = Counter[str]()
    kept = []
    for name in names:
        person = _person(name)
        count[person] += 1
        if split_of_name[person] == "train" or count[person] <= _VALIDATION_PHOTOS:
            kept.append(name)
    return kept


def _find_list(name: str, places: Sequence[Path]) -> Path:
    for place in places:
        for file in (place / name, (place / name).with_suffix(".csv")):
            if file.is_file():
                return file
    looked = ", ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise FileNotFoundError(f"no LFW list {name}: looked in {looked}; {_ADVICE}")


def _read_pairs(path: Path) -> tuple[list[Pair], int]:
    """Read the pairs, fold by fold, the genuine pairs of a fold before its impostor pairs, and the number of folds."""
    (number, words), *lines = [(number, split_fields(line)) for number, line in read_lines(path)]
    if len(words) > 2 and names_columns(words):  # Kaggle's pairs.csv, in the order of pairs.txt
        half = next((place for place, (_, fields) in enumerate(lines) if len(fields) != 3), 0)
        folds = len(lines) // (2 * half) if half else 0
    elif len(words) not in (1, 2) or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"{path}:{number}: expected a header 'FOLDS PAIRS' or 'PAIRS', got {' '.join(words)!r}")
    else:
        folds, half = ([1, *(int(word) for word in words)])[-2:]
    if len(lines) != folds * 2 * half or not lines:
        raise ValueError(
            f"{path}: its header announces {folds} x 2 x {half} pairs, but {len(lines)} follow: get the whole file"
        )
    pairs = []
    for place, (number, fields) in enumerate(lines):
        fold, within = divmod(place, 2 * half)
        pair = numbered_pair(fields)
        if pair is None or pair[2] != (within < half):
            form = "NAME A B" if within < half else "NAME A OTHER B"
            raise ValueError(f"{path}:{number}: expected {form}, got {' '.join(fields)!r}")
        try:
            pairs.append(Pair(inside(f"{pair[0]}.jpg"), inside(f"{pair[1]}.jpg"), pair[2], fold, number))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return pairs, folds


def _check_people(path: Path, pairs: Sequence[Pair], people_path: Path, folds: int) -> None:
    """Warn of pairs whose people are in another fold: lists of different copies, whose folds may share people."""
    people = _read_people(people_path)
    if len(people) != folds:
        warnings.warn(
            f"{people_path} has {len(people)} folds and {path} has {folds}: take both from one copy of LFW",
            stacklevel=3,
        )
        return
    for pair in pairs:
        strangers = {_person(pair.first), _person(pair.second)} - people[pair.fold or 0]
        if strangers:
            where = f"is not among the people of fold {pair.fold} in {people_path}"
            warnings.warn(f"{path}:{pair.line}: {min(strangers)} {where}: take both from one copy of LFW", stacklevel=3)
            return


def _read_people(path: Path) -> list[set[str]]:
    """Read the people of each fold: their number, then lines `NAME IMAGES`."""
    rows = [(number, line.split()) for number, line in read_lines(path)]
    if len(rows) > 1 and len(rows[1][1]) == 1:
        rows = rows[1:]
    people: list[set[str]] = []
    for number, row in rows:
        if len(row) == 1:
            people.append(set())
        elif people and len(row) == 2:
            people[-1].add(row[0])
        else:
            raise ValueError(
                f"{path}:{number}: expected NAME IMAGES below the number of a fold's people, got {' '.join(row)!r}"
            )
    return people
