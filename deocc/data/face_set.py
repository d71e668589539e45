"""Base class of data sets, and the error for a set whose files are missing."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from deocc.evaluation.protocol import AllPairs
from deocc.messages import name_some, one_line

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_UNREADABLE: Final = b"an image that cannot be read"


class FaceSet(ABC):
    """Images with five landmarks and an identity each. An identity belongs to one split only.

    A subclass fills the attributes in `__init__` and reads one image in `image`.

    Attributes:
        names: a unique name for each image, for messages and reports.
        landmarks: (N, 5, 2) x, y in pixels of the image.
        identity: (N,) int64, the identity of each image.
        split_of_identity: the split of each identity.
        identity_names: the name of each identity, if the set has names.
        protocol: comparisons of a test.
        occluder: None if all faces are bare and masks are rendered; otherwise (N,) the position in
            `deocc.masking.list_kinds()` of the real occluder in an image, -1 for a bare face. No mask is rendered on
            the faces of such a set in a test.
        has_identities: False if each image is an identity of its own, since the set has none; stage 1 needs none.
    """

    names: Sequence[str]
    landmarks: NDArray[np.float64]
    identity: NDArray[np.int64]
    split_of_identity: dict[int, Split]
    identity_names: Sequence[str] | None = None
    protocol: AllPairs = AllPairs()
    occluder: NDArray[np.int64] | None = None
    has_identities: bool = True

    @abstractmethod
    def image(self, index: int) -> NDArray[np.uint8]:
        """Read the image at `index`, (H, W, 3) RGB.

        Raises:
            ValueError: the file is not a readable image.
            OSError: the file is missing, or its disk fails.
        """

    @property
    @abstractmethod
    def credit(self) -> str:
        """The owner of the images, in one line for reports."""

    def __len__(self) -> int:
        return len(self.names)

    def indices(self, split: Split) -> NDArray[np.int64]:
        """Return the positions of the images of a split, ascending."""
        identities = [identity for identity, own_split in self.split_of_identity.items() if own_split == split]
        return np.flatnonzero(np.isin(self.identity, identities)).astype(np.int64)

    def bare(self, split: Split) -> NDArray[np.int64]:
        """Return the positions of the split's images without a real occluder."""
        indices = self.indices(split)
        return indices if self.occluder is None else indices[self.occluder[indices] < 0]

    def occluded(self, split: Split) -> NDArray[np.int64]:
        """Return the positions of the split's images with a real occluder."""
        indices = self.indices(split)
        return indices[:0] if self.occluder is None else indices[self.occluder[indices] >= 0]

    def content(self, index: int) -> bytes:
        """Return the part of an image that `fingerprint` uses: its pixels, or less for sets too large to be read."""
        return self.image(index).tobytes()

    def fingerprint(self, split: Split) -> str:
        """Return a hash of the split's names, landmarks, identities and images.

        Two runs with equal hashes used the same data. An image that cannot be read counts as such.
        """
        digest, indices = hashlib.sha256(), self.indices(split)
        landmarks = np.round(self.landmarks[indices], 2)
        for index, points, identity in zip(indices.tolist(), landmarks, self.identity[indices], strict=True):
            try:
                content = self.content(index)
            except (ValueError, OSError):
                content = _UNREADABLE
            digest.update(b"".join([self.names[index].encode(), points.tobytes(), identity.tobytes(), content]))
        return digest.hexdigest()[:16]

    def quick_fingerprint(self, split: Split) -> str:
        """Return a hash that identifies the split's data on this machine; it may avoid reading pixels."""
        return self.fingerprint(split)


def missing_set(title: str, root: Path, missing: Sequence[str], total: int, advice: str) -> FileNotFoundError:
    """Return the error for missing files of a data set.

    >>> print(missing_set("LFW images", Path("/faces"), ["a", "b", "c", "d"], 9, "get them from LFW's home page"))
    4 of 9 LFW images are missing in /faces (a, b, c, ...): get them from LFW's home page
    >>> print(missing_set("LFW images", Path("/faces"), ["a.jpg"], 9, "get it from LFW's home page"))
    1 of 9 LFW images is missing in /faces (a.jpg): get it from LFW's home page

    Args:
        title: what was expected, in the plural.
        root: where it was expected.
        missing: names of the missing files, in the order of the search.
        total: number of expected files.
        advice: how to get the set by hand.
    """
    verb = "is" if len(missing) == 1 else "are"
    lack = f"{len(missing):,} of {total:,} {title} {verb} missing in {root.absolute()} ({name_some(missing)})"
    return FileNotFoundError(one_line(f"{lack}: {advice}"))
