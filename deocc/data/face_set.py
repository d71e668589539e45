"""Base class of data sets, and what they share: names, lists, the split of people, cached metadata."""

import hashlib
import re
import unicodedata
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray

from deocc.data.loader import item_seed
from deocc.evaluation.protocol import AllPairs
from deocc.files import cache_folder, replace_file
from deocc.messages import describe_error, name_some, one_line

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_CODING = ("utf-8", "surrogateescape")  # file names that are not UTF-8 are restored exactly

# Letters that Unicode does not decompose into a plain letter and an accent; the last is the Turkish dotless i
_PLAIN: Final = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "\u0131": "i"})


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
            `deocc.masking.list_kinds()` of the real occluder in an image, -1 for a bare face. A test then renders none.
        has_identities: False if each image is an identity of its own, since the set has none; stage 1 needs none.
        credit: the owner of the images, in one line for reports.
    """

    names: Sequence[str]
    landmarks: NDArray[np.float64]
    identity: NDArray[np.int64]
    split_of_identity: dict[int, Split]
    identity_names: Sequence[str] | None = None
    protocol: AllPairs = AllPairs()
    occluder: NDArray[np.int64] | None = None
    has_identities: bool = True
    credit: str = "images of an owner who is not named"

    @abstractmethod
    def image(self, index: int) -> NDArray[np.uint8]:
        """Read the image at `index`, (H, W, 3) RGB.

        Raises:
            ValueError: it is not a readable image, or has an unexpected size; the message names it.
            OSError: the file is missing, or its disk fails.
        """

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

    def content(self, index: int) -> bytes:
        """Return the part of an image that `fingerprint` uses: its pixels, or less for sets too large to be read."""
        return self.image(index).tobytes()

    def fingerprint(self, split: Split) -> str:
        """Return a hash of the split's names, landmarks, identities and images.

        Two runs with equal hashes used the same data. An image that cannot be read counts as such.
        """
        digest, indices = hashlib.sha256(), self.indices(split)
        for index, points in zip(indices.tolist(), np.round(self.landmarks[indices], 2), strict=True):
            try:
                content = self.content(index)
            except (ValueError, OSError):
                content = b"an image that cannot be read"
            parts = self.names[index].encode(*_CODING), points.tobytes(), self.identity[index].tobytes(), content
            digest.update(b"".join(parts))
        return digest.hexdigest()[:16]

    def quick_fingerprint(self, split: Split) -> str:
        """Return a hash that identifies the split's data on this machine; it may avoid reading pixels."""
        return self.fingerprint(split)


def missing_set(title: str, root: Path, missing: Sequence[str], total: int, advice: str) -> FileNotFoundError:
    """Return the error for missing files of a data set.

    >>> print(missing_set("LFW images", Path("/faces"), ["a.jpg"], 9, "get it from LFW's home page"))
    1 of 9 LFW images is missing in /faces (a.jpg): get it from LFW's home page
    """
    verb = "is" if len(missing) == 1 else "are"
    found = f"{len(missing):,} of {total:,} {title} {verb} missing in {root.absolute()} ({name_some(missing)})"
    return FileNotFoundError(one_line(f"{found}: {advice}"))


def split_people(
    people: Sequence[str] | Sequence[int], train: float, val: float, seed: int, needed: Sequence[Split] = SPLITS
) -> list[Split]:
    """Return the split of each person by a hash of the name or number, so that adding people does not move others.

    The shares `train` and `val` are met on average; the others are tested.

    Raises:
        ValueError: one of the `needed` splits is empty; the message names a seed that fills it, if there is one.
    """

    def draw(seed: int) -> list[Split]:
        places = [item_seed(seed, "split", person) / 2**63 for person in people]
        return ["train" if place < train else "val" if place < train + val else "test" for place in places]

    splits = draw(seed)
    empty = [split for split in needed if split not in splits]
    if not empty:
        return splits
    other = next((other for other in range(1000) if {*needed} <= {*draw(other)}), None)
    advice = f"at least {len(needed)} are needed: add people or change the shares"
    raise ValueError(
        f"of {len(people)} people none falls into {' and '.join(empty)} (train {train:g}, val {val:g}, seed {seed}): "
        f"{advice if other is None else f'set seed to {other}'}"
    )


def cached_array(room: str, key: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """Return the array stored in the subfolder `room` of the cache folder, or compute and store it.

    The `key` is a hash of everything that determines the array, which has numbers or strings.
    """
    path = cache_folder() / room / f"{key}.npy"
    try:
        with path.open("rb") as file:
            return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError):  # missing or damaged
        array = compute()
    try_to_store(path, lambda file: np.save(file, array, allow_pickle=False))
    return array


def try_to_store(path: Path, write: Callable[[BinaryIO], None]) -> bool:
    """Write a file below the cache folder; return False, with a warning, if that is not possible."""
    try:
        with replace_file(path) as draft, draft.open("wb") as file:
            write(file)
    except OSError as error:
        warnings.warn(
            f"cannot keep {path.parent.name} in {path.parent} ({describe_error(error)}): "
            "set DEOCC_CACHE to a folder that can be written to, or they are computed again next time",
            stacklevel=4,
        )
        return False
    return True


class NameTable(Sequence[str]):
    """Names as the bytes `text` with the boundaries `ends` (N + 1,), decoded on access.

    Forked workers share the arrays with their parent, since reading changes no reference count.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode(*_CODING) for name in names]
        self.text = np.frombuffer(b"".join(encoded), np.uint8)
        self.ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        at = range(len(self))[place]
        return self.text[self.ends[at] : self.ends[at + 1]].tobytes().decode(*_CODING)


def read_lines(path: Path, content: str) -> list[tuple[int, str]]:
    """Read the lines of a list that are not blank, stripped, with their numbers from 1.

    Raises FileNotFoundError without the file and ValueError if it is blank or not UTF-8 text; both name `content`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no list at {path.absolute()}: give a text file with {content}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}): give a text file with {content}") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} is empty: give a text file with {content}")
    return numbered


def read_people(path: Path) -> list[str]:
    """Read a list of people with one name per line, such as LFW's `people.txt` and `lfw-names.txt`.

    Words are separated by spaces or commas. Numbers after a name are dropped, as are lines that contain only numbers.
    Raises the errors of `read_lines`, and ValueError for a list without a name.
    """
    content = "one name a line, such as LFW's people.txt"
    lines = [re.sub(r"[\s,]+", " ", line).strip() for _, line in read_lines(path, content)]
    people = [name for name in (re.sub(r"( ?\b\d+)+$", "", line) for line in lines) if name_key(name)]
    if not people:
        raise ValueError(f"{path} holds no name: give a text file with {content}")
    return people


def identity_name(folder: str) -> str:
    """Return a person's name from that of a folder, in Unicode's composed form, since systems store either form."""
    return unicodedata.normalize("NFC", folder)


def name_key(name: str) -> str:
    """Return the letters and digits of a name without case, accents, spaces, underscores and punctuation.

    Equal keys do not prove that two people are the same, nor do different keys prove that they differ.

    >>> name_key("Penélope_Cruz"), name_key("J.K. Rowling"), name_key("Lech WAŁĘSA")
    ('penelopecruz', 'jkrowling', 'lechwalesa')
    """
    letters = unicodedata.normalize("NFKD", name.casefold()).translate(_PLAIN)
    return "".join(letter for letter in letters if letter.isalnum())
