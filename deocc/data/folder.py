"""Any folder of faces, `person/image`, that are cropped to a known template already: no landmarks file and no detector is needed."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deocc.data.face_set import SPLITS, FaceSet, Split
from deocc.data.folder_listing import list_folder, square_side
from deocc.data.images import read_image
from deocc.data.kept_array import kept_array
from deocc.data.sampler import item_seed
from deocc.geometry import Template, get_template


class FolderFaces(FaceSet):
    """Square aligned crops, one folder a person; an image's landmarks are the template's points scaled to the image.

    Which split a person belongs to follows from a hash of the folder's name, so adding people moves nobody. The shares are therefore
    kept on average only.

    Args:
        root: the folder that holds a folder a person.
        aligned: the template that the crops were made with, a name of `deocc.geometry.TEMPLATES`.
        train: share of the people to train on.
        val: share of the people to validate on; the rest are tested on.
        seed: another seed splits the people otherwise.

    Raises:
        FileNotFoundError: no such folder, or no image in its subfolders.
        ValueError: an unknown template, shares that leave a split nothing, a split without a person, or an image that is not square.
    """

    def __init__(self, root: str, aligned: str = "arcface", train: float = 0.6, val: float = 0.1, seed: int = 0) -> None:
        template = get_template(aligned)
        if not (train > 0 and val > 0 and train + val < 1):
            raise ValueError(f"train={train} and val={val}: choose shares above 0 whose sum is below 1, the rest is the test share")
        self.root = Path(root)
        self._files = list_folder(self.root)
        self.names, self.person = self._files.names, self._files.person
        self.split_of_person = dict(enumerate(_split_people(self._files.people, train, val, seed)))
        sides, of_image = np.unique(self._files.sides(), return_inverse=True)
        self.landmarks = np.stack([template.tensor(side).double().numpy() for side in sides.tolist()])[of_image]

    @property
    def credit(self) -> str:
        """The folder's name: whose faces they are only its owner knows."""
        return f"face crops of the folder {self.root.resolve().name}"

    def image(self, index: int) -> NDArray[np.uint8]:
        """The crop at `index`, (H, H, 3) RGB.

        Raises:
            ValueError: the file is not a readable image; the message names it.
        """
        return read_image(self.root / self.names[index])

    def fingerprint(self, split: Split) -> str:
        """As `FaceSet.fingerprint`, of pixels; kept under `quick_fingerprint`, so that only the first run reads every image."""
        return str(kept_array("fingerprints", self.quick_fingerprint(split), lambda: np.array(super(FolderFaces, self).fingerprint(split))))

    def quick_fingerprint(self, split: Split) -> str:
        """A hash of where the split's files lie, of their names, sizes, times of modification and landmarks; no file is read."""
        indices = self.indices(split)
        digest = hashlib.sha256(self._files.digest(indices).encode())
        digest.update(self.person[indices].tobytes())
        digest.update(self.landmarks[indices].tobytes())
        return digest.hexdigest()[:32]


def _split(person: str, train: float, val: float, seed: int) -> Split:
    place = item_seed(seed, "split", person) / 2**63
    if place < train:
        return "train"
    return "val" if place < train + val else "test"


def _split_people(people: list[str], train: float, val: float, seed: int) -> list[Split]:
    """The split of each person, or an error that names a seed under which no split is empty."""
    splits = [_split(name, train, val, seed) for name in people]
    empty = [split for split in SPLITS if split not in splits]
    if empty:
        found = f"of {len(people)} people none falls into {' and '.join(empty)} (train {train:g}, val {val:g}, seed {seed})"
        better = (other for other in range(1000) if {_split(name, train, val, other) for name in people} == set(SPLITS))
        advice = next((f"set seed to {other}" for other in better), "at least 3 are needed: add people or change the shares")
        raise ValueError(f"{found}: {advice}")
    return splits


def template_landmarks(path: Path, template: Template) -> NDArray[np.float64]:
    """(5, 2) the template's points, scaled to the square image at `path`.

    Raises:
        ValueError: the image is not square.
    """
    return template.tensor(square_side(path)).double().numpy()
