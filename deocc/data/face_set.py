"""What to say where a data set is missing or half copied: one line for every set."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from deocc.evaluation.protocol import AllPairs

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_UNREADABLE: Final = b"an image that cannot be read"


class FaceSet(ABC):
    """Images with five landmarks and an identity each; no identity lies in two splits.

    A new data set is one subclass: fill the attributes in `__init__`, read one image in `image`.

    Attributes:
        names: one name an image, unique, for messages and reports.
        landmarks: (N, 5, 2) x, y in pixels of the image.
        person: (N,) int64, the identity of each image.
        split_of_person: the split of each identity.
        person_names: the name of each identity, where the set knows names.
        protocol: what a test compares.
        occluder: None where every face is bare and masks are rendered; else (N,) the position in `deocc.masking.list_kinds()` of the real
            occluder that an image shows, -1 for a bare face. Nothing is rendered on such a set's faces in a test.
    """

    names: Sequence[str]
    landmarks: NDArray[np.float64]
    person: NDArray[np.int64]
    split_of_person: dict[int, Split]
    person_names: Sequence[str] | None = None
    protocol: AllPairs = AllPairs()
    occluder: NDArray[np.int64] | None = None

    @abstractmethod
    def image(self, index: int) -> NDArray[np.uint8]:
        """The photograph at `index`: (H, W, 3) RGB.

        Raises:
            ValueError: the file is not a readable image.
            OSError: it is gone, or its disk fails.
        """

    @property
    @abstractmethod
    def credit(self) -> str:
        """Whom to credit, in one line for reports."""

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    def indices(self, split: Split) -> NDArray[np.int64]:
        """The positions of the images of one split, ascending."""
        people = [person for person, its_split in self.split_of_person.items() if its_split == split]
        return np.flatnonzero(np.isin(self.person, people)).astype(np.int64)

    def bare(self, split: Split) -> NDArray[np.int64]:
        """The positions of the split's images that show no real occluder."""
        indices = self.indices(split)
        return indices if self.occluder is None else indices[self.occluder[indices] < 0]

    def occluded(self, split: Split) -> NDArray[np.int64]:
        """The positions of the split's images that show a real occluder."""
        indices = self.indices(split)
        return indices[:0] if self.occluder is None else indices[self.occluder[indices] >= 0]

    def content(self, index: int) -> bytes:
        """What `fingerprint` takes of an image: its pixels. A set too large to be read whole may take less, and says so."""
        return self.image(index).tobytes()

    def fingerprint(self, split: Split) -> str:
        """A hash of the split's names, landmarks, identities and images (`content`): two runs with equal hashes saw the same data.

        An image that cannot be read, which a training leaves out, counts as such: the hash is another once it can be.
        """
        digest, indices = hashlib.sha256(), self.indices(split)
        for index, points, person in zip(
            indices.tolist(), np.round(self.landmarks[indices], 2), self.person[indices], strict=True
        ):
            digest.update(
                b"".join([self.names[index].encode(), points.tobytes(), person.tobytes(), self._content(index)])
            )
        return digest.hexdigest()[:16]

    def _content(self, index: int) -> bytes:
        try:
            return self.content(index)
        except (ValueError, OSError):
            return _UNREADABLE

    def quick_fingerprint(self, split: Split) -> str:
        """What tells a split's data from any other on this machine. A set that reads pixels in `fingerprint` may do with less here."""
        return self.fingerprint(split)


_SHOWN: Final = 3


def missing_set(title: str, root: Path, missing: Sequence[str], total: int, advice: str) -> FileNotFoundError:
    """The error to raise where files of a data set are missing.

    >>> print(missing_set("LFW images", Path("/faces"), ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], 9, "get them from LFW's home page"))
    4 of 9 LFW images are missing in /faces (a.jpg, b.jpg, c.jpg, ...): get them from LFW's home page
    >>> print(missing_set("LFW images", Path("/faces"), ["a.jpg"], 9, "get it from LFW's home page"))
    1 of 9 LFW images is missing in /faces (a.jpg): get it from LFW's home page

    Args:
        title: what was looked for, in the plural.
        root: where it was looked for.
        missing: what is not there, in the order of the search; the first three are named.
        total: how many were looked for.
        advice: how to get the set by hand.

    Returns:
        The error, its message one line.
    """
    names = ", ".join([*missing[:_SHOWN], *(["..."] if len(missing) > _SHOWN else [])])
    verb = "is" if len(missing) == 1 else "are"
    message = f"{len(missing):,} of {total:,} {title} {verb} missing in {root.absolute()} ({names}): {advice}"
    return FileNotFoundError(" ".join(message.split()))
