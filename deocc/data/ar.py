"""The AR database: 26 frontal shots per person in two sessions, some with real sunglasses or a scarf.

[0] Martinez and Benavente, "The AR Face Database", CVC Technical Report 24, 1998.
[1] Yang et al., "Robust Sparse Coding for Face Recognition", CVPR 2011.
[2] `readraw.m` of L. van der Maaten, 2009, and the ImageMagick command of the repository
    matheustguimaraes/organize-AR-face-db.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deocc.data.face_set import FaceSet, missing_set
from deocc.data.images import is_image, read_image
from deocc.data.landmarks import find_landmarks
from deocc.evaluation.protocol import Galleries
from deocc.files import expand_user, walk_files
from deocc.masking import list_kinds

_SESSION: Final = 13
SHOTS: Final = 2 * _SESSION
"""Shots per person: in each session neutral, smile, anger, scream, and the light from left, right, both; then
sunglasses and a scarf in three lights each."""

_OCCLUDERS: Final = dict.fromkeys((8, 9, 10), "sunglasses") | dict.fromkeys((11, 12, 13), "scarf")
_NAME: Final = re.compile(r"([mwf])-(\d{1,3})-(\d{1,2})", re.IGNORECASE)
_RAW: Final = (3, 576, 768)  # planes of red, green and blue, rows from the top [2]
_ADVICE: Final = (
    "ask for access on the AR Face Database's home page (A. M. Martinez, Ohio State University) and copy all of it"
)


class ArFaces(FaceSet):
    """The original release (768 x 576 pixels, also as .raw files) or the cropped one (120 x 165), for tests only.

    Files have names such as `m-001-01.bmp` (m for men, w or f for women, number of the person, number of the shot), in
    any case, with any image suffix, in any folder below `root`. Shots 8-10 and 21-23 show sunglasses, 11-13 and 24-26 a
    scarf [0]; they are the probes.

    Published galleries differ; our choice: "protocol2" has the neutral shot of a person, "protocol1" the neutral shots
    of session one in its four lights, as the second disguise experiment of [1]. If a person lacks a shot, the same shot
    of the other session replaces it. Only the neutral shots are required; `credit` reports the number of shots.

    Landmarks are detected on the occluded image, since a test has nothing else.

    Args:
        root: folder of the images.
        detector: detector of the landmarks, see `deocc.data.landmarks`.
        detector_weights: weights file of the detector, if it needs one.
        protocol1_shots: gallery shots of protocol 1.

    Raises:
        FileNotFoundError: there is no image, people lack a gallery image, or no image has sunglasses or a scarf.
        ValueError: a shot exists twice, or gallery shots do not exist or show an occluder.
    """

    def __init__(
        self,
        root: str,
        detector: str = "dlib",
        detector_weights: str | None = None,
        protocol1_shots: Sequence[int] = (1, 5, 6, 7),
    ) -> None:
        bare = [shot for shot in range(1, SHOTS + 1) if occluder_of(shot) < 0]
        if not protocol1_shots or not set(protocol1_shots) <= set(bare):
            raise ValueError(
                f"protocol1_shots is {list(protocol1_shots)}: "
                f"choose bare shots, that is some of {', '.join(map(str, bare))}"
            )
        folder = expand_user(root)
        shots = _find_shots(folder)
        self._paths = [path for _, _, path in shots]
        self.names = [f"{person}-{number:02d}" for person, number, _ in shots]
        people, identity = np.unique([person for person, _, _ in shots], return_inverse=True)
        self.identity, self.identity_names = identity.astype(np.int64), people.tolist()
        self.split_of_identity = dict.fromkeys(range(len(people)), "test")
        there = f"{len(shots):,} of {len(people) * SHOTS:,} shots of {len(people)} people"
        self.credit = f"AR Face Database, A. M. Martinez and R. Benavente, 1998 ({there})"
        self.occluder = np.array([occluder_of(number) for _, number, _ in shots], dtype=np.int64)
        if not (self.occluder >= 0).any():
            occluded = [f"{people[0]}-{shot:02d}" for shot in range(1, SHOTS + 1) if occluder_of(shot) >= 0]
            raise missing_set("AR shots with sunglasses or scarf a person", folder, occluded, len(occluded), _ADVICE)
        neutral, all_lights = self._gallery(folder, (1,)), self._gallery(folder, protocol1_shots)
        self.protocol = Galleries({"protocol2": neutral, "protocol1": all_lights})
        files = [path.relative_to(folder).as_posix() for path in self._paths]
        found = find_landmarks(folder, files, detector, detector_weights, _read_file)
        found.warn()
        self.landmarks = found.filled()

    def _gallery(self, root: Path, shots: Sequence[int]) -> NDArray[np.int64]:
        """Return the positions of the gallery images of all people, ascending."""
        place = {name: index for index, name in enumerate(self.names)}
        others = [shot + _SESSION if shot <= _SESSION else shot - _SESSION for shot in shots]  # of the other session
        people = self.identity_names or ()
        chosen: set[int] = set()
        missing = []
        for person in people:
            pairs = [(f"{person}-{one:02d}", f"{person}-{two:02d}") for one, two in zip(shots, others, strict=True)]
            found = {place[one if one in place else two] for one, two in pairs if one in place or two in place}
            chosen |= found
            if not found:
                missing.append(pairs[0][0])
        if missing:
            wanted = " or ".join(str(shot) for shot in sorted({*shots, *others}))
            raise missing_set(f"AR gallery images (shot {wanted} of a person)", root, missing, len(people), _ADVICE)
        return np.array(sorted(chosen), dtype=np.int64)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read the image at `index`, (H, W, 3) RGB; see `FaceSet.image`."""
        return _read_file(self._paths[index])

    def content(self, index: int) -> bytes:
        """Return name and file size instead of pixels: the original release has 4 GB."""
        return f"{self.names[index]} {self._paths[index].stat().st_size}\n".encode()


def occluder_of(shot: int) -> int:
    """Return the position in `deocc.masking.list_kinds()` of the occluder in shot 1-26; -1 for a bare face.

    >>> [list_kinds()[occluder_of(shot)] for shot in (8, 13, 21, 26)]
    ['sunglasses', 'scarf', 'sunglasses', 'scarf']
    """
    kind = _OCCLUDERS.get((shot - 1) % _SESSION + 1)
    return -1 if kind is None else list_kinds().index(kind)


def _find_shots(root: Path) -> list[tuple[str, int, Path]]:
    """Return person, number and file of all shots below the folder, sorted."""
    shots = []
    for file, entry in walk_files(root):
        name = _NAME.fullmatch(Path(file).stem)
        if name is None or not 1 <= int(name[3]) <= SHOTS or not entry.is_file():
            continue
        if file.lower().endswith(".raw") or is_image(entry.path):
            letter = name[1].lower().replace("f", "w")
            shots.append((f"{letter}-{int(name[2]):03d}", int(name[3]), root / file))
    if not shots:
        raise FileNotFoundError(
            f"no AR image below {root.absolute()}: looked for m-001-01.bmp and the like "
            f"(m or w, person, shot from 1 to 26), unpacked, in all its folders; {_ADVICE}"
        )
    shots.sort()
    for (person, number, path), other in pairwise(shots):
        if (person, number) == other[:2]:
            raise ValueError(
                f"shot {number} of {person} is there twice, {path} and {other[2]}: keep one copy of the set"
            )
    return shots


def _read_file(path: Path) -> NDArray[np.uint8]:
    if path.suffix.lower() != ".raw":
        return read_image(path)
    data = np.fromfile(path, np.uint8)
    if data.size != np.prod(_RAW):
        raise ValueError(
            f"{path} has {data.size:,} bytes, but a .raw file of AR has {np.prod(_RAW):,}, three planes of 768 x 576: "
            "copy it again, or convert it to an image file"
        )
    return np.ascontiguousarray(data.reshape(_RAW).transpose(1, 2, 0))
