"""Labeled Faces in the Wild, in any of its copies, with its list of pairs in folds.

Credit: G. B. Huang, M. Ramesh, T. Berg, E. Learned-Miller, "Labeled Faces in the Wild: A Database for Studying Face
Recognition in Unconstrained Environments", University of Massachusetts, Amherst, Technical Report 07-49, 2007. File
formats: the README of the set.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deocc.data.face_set import Split, identity_name
from deocc.data.landmarks import LEFT_OUT, SUBSTITUTED, find_landmarks
from deocc.data.loader import item_seed
from deocc.data.pairs import Pair, PairedFiles, read_pairs
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
    "get the images and pairs.txt from the home page of Labeled Faces in the Wild, University of Massachusetts, "
    "Amherst, or run scikit-learn's fetch_lfw_pairs"
)


class LfwFaces(PairedFiles):
    """LFW for tests on the folds of its list of pairs, and for training on people who are not tested.

    Without `test_folds` the set is for tests only: all folds, and the images that the list names (7,701 of the 13,233
    for `pairs.txt`). With `test_folds`, the test has the pairs of those folds. All people who occur in none of these
    pairs train with all their images, except `val_identities` people, chosen by a hash of their name. A person is a
    folder. A person in the pairs of two folds causes a warning.

    A detector finds the landmarks of all photos of the folder once, for any choice of folds. Training and validation
    leave out photos without a face; in a test they get the mean landmarks.

    Args:
        root: folder of the images (original, funnelled or deep-funnelled) or a folder that contains it, also
            scikit-learn's `lfw_home` or `scikit_learn_data`.
        detector: detector of the landmarks, see `deocc.data.landmarks`.
        detector_weights: weights file of the detector, if it needs one.
        pairs: list in the images' folder, the one above or `root`, also with the ending .csv: `pairs.txt` for the ten
            folds, or a list of a single fold such as `pairsDevTest.txt`.
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
        listed, fold = _read_folds(path, images)
        if test_folds is not None:
            if not test_folds or not {*test_folds} <= {*fold.tolist()}:
                raise ValueError(
                    f"test_folds {list(test_folds)}: "
                    f"choose one or more of 0 to {fold.max()}, the folds of {path}, or null to test on all"
                )
            listed = [pair for pair, own_fold in zip(listed, fold, strict=True) if own_fold in test_folds]
            fold = fold[np.isin(fold, test_folds)]
        super().__init__("LFW images", images, listed, fold, _ADVICE)
        photos = sorted({*self.names, *(image.relative_to(images).as_posix() for image in _photos(images))})
        found = find_landmarks(images, photos, detector, detector_weights)
        found.warn(np.isin(photos, self.names), SUBSTITUTED)
        split_of_name: dict[str, Split] = dict.fromkeys(map(_person, self.names), "test")
        if test_folds is not None:
            others = np.array([_person(name) not in split_of_name for name in photos])
            found.warn(others, LEFT_OUT)
            usable = [photos[index] for index in np.flatnonzero(others & found.found).tolist()]
            splits, kept = _split_people(usable, val_identities, seed)
            split_of_name |= splits
            self.names = [*self.names, *kept]  # the protocol refers to the first ones
        names, person = np.unique([_person(name) for name in self.names], return_inverse=True)
        self.identity, self.identity_names = person.astype(np.int64), names.tolist()
        self.split_of_identity = {number: split_of_name[name] for number, name in enumerate(self.identity_names)}
        row = {name: number for number, name in enumerate(photos)}
        self.landmarks = found.filled()[[row[name] for name in self.names]]


def _image_folder(root: Path) -> Path:
    found = [root / folder for folder in _FOLDERS if next(_photos(root / folder), None)]
    if not found:
        raise FileNotFoundError(
            f"no LFW images in {root.absolute()}: "
            f"looked for NAME/NAME_0001.jpg in it and below it in {', '.join(_FOLDERS[1:])}; {_ADVICE}"
        )
    if len(found) > 1:
        copies = ", ".join(map(str, found))
        raise ValueError(f"several copies of LFW ({copies}): give the folder of one of them as root")
    return found[0]


def _photos(folder: Path) -> Iterator[Path]:
    """Return the files NAME/NAME_0001.jpg."""
    files = folder.glob("*/*_[0-9][0-9][0-9][0-9].jpg")
    return (file for file in files if file.name.startswith(f"{file.parent.name}_"))


def _person(name: str) -> str:
    return identity_name(name.split("/")[0])


def _split_people(names: Sequence[str], val_identities: int, seed: int) -> tuple[dict[str, Split], list[str]]:
    """Return the split of each untested person of the images `names`, and the images used for it."""
    photos: dict[str, list[str]] = {}
    for name in names:
        photos.setdefault(_person(name), []).append(name)
    pairable = [person for person, own in photos.items() if len(own) > 1]
    pairable.sort(key=lambda person: item_seed(seed, "validation", person))
    if not 1 <= val_identities <= len(pairable):
        raise ValueError(
            f"val_identities is {val_identities}, but {len(pairable):,} people outside the test folds have two or more "
            "images to validate on: choose from 1 to that number, or fewer test_folds"
        )
    if val_identities == len(photos):
        raise ValueError(
            f"test_folds and val_identities {val_identities} leave no one to train on: choose fewer of either"
        )
    splits: dict[str, Split] = dict.fromkeys(photos, "train")
    splits.update(dict.fromkeys(pairable[:val_identities], "val"))
    unused = {name for person in pairable[:val_identities] for name in photos[person][_VALIDATION_PHOTOS:]}
    return splits, [name for name in names if name not in unused]


def _find_list(name: str, places: Sequence[Path]) -> Path:
    for place in places:
        for file in (place / name, (place / name).with_suffix(".csv")):
            if file.is_file():
                return file
    looked = ", ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise FileNotFoundError(f"no LFW list {name}: looked in {looked}; {_ADVICE}")


def _read_folds(path: Path, images: Path) -> tuple[list[Pair], NDArray[np.int64]]:
    """Read the pairs, fold by fold, the genuine pairs of a fold before its impostor pairs, and (N,) their folds."""
    header, pairs = read_pairs(path, images)
    if len(header) > 2:  # the names of columns: Kaggle's pairs.csv, in the order of pairs.txt
        half = next((place for place, pair in enumerate(pairs) if not pair.same), 0)
        folds = len(pairs) // (2 * half) if half else 0
    elif not header or not all(word.isdecimal() and int(word) > 0 for word in header):
        raise ValueError(f"{path}:1: expected a header 'FOLDS PAIRS' or 'PAIRS', got {' '.join(header)!r}")
    else:
        folds, half = ([1, *map(int, header)])[-2:]
    if len(pairs) != folds * 2 * half:
        raise ValueError(
            f"{path}: its header announces {folds} x 2 x {half} pairs, but {len(pairs)} follow: get the whole file"
        )
    fold, within = np.divmod(np.arange(len(pairs)), 2 * half)
    first_fold: dict[str, int] = {}
    mixed: list[str] = []  # people in the pairs of two folds, as if lists of different copies were mixed
    for pair, own_fold, genuine in zip(pairs, fold.tolist(), within < half, strict=True):
        if pair.same != genuine:
            form = "NAME A B" if genuine else "NAME A OTHER B"
            raise ValueError(f"{path}:{pair.line}: expected {form} for {pair.first} and {pair.second}")
        for person in (_person(pair.first), _person(pair.second)):
            if first_fold.setdefault(person, own_fold) != own_fold:
                mixed.append(f"{path}:{pair.line}: {person} is in the folds {first_fold[person]} and {own_fold}")
    if mixed:
        warnings.warn(f"{mixed[0]}, which should share no person: get the list again", stacklevel=3)
    return pairs, fold.astype(np.int64)
