"""Any folder of faces, `person/image`: crops aligned to a known template, or photographs in which a detector finds the landmarks."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deocc.data.face_set import SPLITS, FaceSet, Split
from deocc.data.folder_listing import list_folder, square_side
from deocc.data.images import read_image
from deocc.data.kept_array import kept_array
from deocc.data.landmark_cache import LEFT_OUT, SUBSTITUTED, FoundLandmarks, find_file_landmarks, warn_of_lost
from deocc.data.sampler import item_seed
from deocc.geometry import Template, get_template


class FolderFaces(FaceSet):
    """Faces in one folder for each person: square aligned crops, or with a `detector` photographs of any size.

    The landmarks of a crop are the template's points scaled to the image. Those of photographs are detected once and cached
    (`deocc.data.landmark_cache`). Photographs without a face are named in a warning. Training and validation leave them out; in a test the
    mean landmarks stand in. A photograph that cannot be read counts as one without a face.

    The split of a person follows from a hash of the folder's name, so adding people does not move anyone. The shares are therefore kept on
    average only.

    Args:
        root: the folder that has a folder for each person.
        aligned: the template that the crops were made with, a name of `deocc.geometry.TEMPLATES`; not used with a `detector`.
        train: share of the people to train on.
        val: share of the people to validate on; the rest are tested on.
        seed: another seed splits the people differently.
        detector: finds the landmarks of photographs, a name of `deocc.detection.list_detectors()`; None for aligned crops.
        detector_weights: the detector's weights file, if it needs one.

    Raises:
        FileNotFoundError: no such folder, or no image in its subfolders.
        ValueError: an unknown template or detector, shares that leave a split nothing, a split without a person, or a crop that is not
            square.
    """

    def __init__(
        self,
        root: str,
        aligned: str = "arcface",
        train: float = 0.6,
        val: float = 0.1,
        seed: int = 0,
        detector: str | None = None,
        detector_weights: str | None = None,
    ) -> None:
        template = get_template(aligned)
        if not (train > 0 and val > 0 and train + val < 1):
            raise ValueError(f"train={train} and val={val}: choose shares above 0 whose sum is below 1, the rest is the test share")
        self.root = Path(root)
        self._files = list_folder(self.root)
        splits = _split_people(self._files.people, train, val, seed)
        if detector is None:
            sides, of_image = np.unique(self._files.sides(), return_inverse=True)
            self.landmarks = np.stack([template.tensor(side).double().numpy() for side in sides.tolist()])[of_image]
        else:
            found = find_file_landmarks(self.root, self._files.names, detector, detector_weights, skip_unreadable=True)
            tested = np.array([split == "test" for split in splits])[self._files.person]
            _tell_lost(found, tested)
            kept = np.flatnonzero(found.found | tested)
            self._files, self.landmarks = self._files.take(kept), found.filled()[kept]
            splits = _split_people(self._files.people, train, val, seed)
        self.names, self.person = self._files.names, self._files.person
        self.split_of_person = dict(enumerate(splits))

    @property
    def credit(self) -> str:
        """The folder's name: whose faces they are only its owner knows."""
        return f"faces of the folder {self.root.resolve().name}"

    def image(self, index: int) -> NDArray[np.uint8]:
        """The image at `index`, (H, W, 3) RGB.

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


def _tell_lost(found: FoundLandmarks, tested: NDArray[np.bool_]) -> None:
    """Warn of photographs without a face, separately for those that are tested on."""
    for chosen, consequence in ((~tested, LEFT_OUT), (tested, SUBSTITUTED)):
        lost = [found.names[index] for index in np.flatnonzero(chosen & ~found.found).tolist()]
        warn_of_lost(lost, int(chosen.sum()), consequence)


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
