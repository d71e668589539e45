"""CelebA: 202,599 images of 10,177 people, with the set's own landmarks, identities and partition.

Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015. For non-commercial research; nothing of it is in
this repository.
"""

import re
import warnings
from itertools import islice
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deocc.data.face_set import SPLITS, FaceSet, NameTable, missing_set, name_key, read_lines, read_people
from deocc.data.images import IMAGE_SUFFIXES, ImageStore, open_images
from deocc.files import expand_user

Images = Literal["aligned", "in_the_wild"]

_FOLDERS: Final = {"aligned": "img_align_celeba", "in_the_wild": "img_celeba"}
_LANDMARKS: Final = {"aligned": "list_landmarks_align_celeba", "in_the_wild": "list_landmarks_celeba"}
_IDENTITIES, _PARTITION = "identity_CelebA", "list_eval_partition"
_PLACES: Final = ("", "Anno", "Eval", "Img")
_ADVICE: Final = (
    "get them from CelebA's home page at the Multimedia Laboratory of the Chinese University of Hong Kong (copies with "
    ".csv lists lack identity_CelebA.txt, which stage 1 does without if identities: false is set) and put them there "
    "or into its folders Anno, Eval and Img, .7z archives unpacked"
)
_NAME: Final = "U32"  # names of the set have ten characters


class _Rows(NamedTuple):
    """Content of the lists, sorted by image name."""

    names: NDArray[np.str_]
    identity: NDArray[np.int64]  # the set's number of each person
    landmarks: NDArray[np.float64]  # (N, 5, 2)
    partition: NDArray[np.int64]  # positions in `SPLITS`


class CelebaFaces(FaceSet):
    """Images and landmarks of CelebA, split by its official partition into training, validation and test.

    Lists and images are searched in `root` and its subfolders `Anno`, `Eval` and `Img`: `.txt` files of the release or
    `.csv` files of widespread copies; a folder (also nested in one of the same name) or the zip of the release, JPEG or
    PNG. Images that are in the lists only are counted in a warning and left out, so that a subset can be used. The
    release does not define the origin of landmarks; our choice: pixel centres, counted from 0.

    If the partition assigns images of one person to several splits, the person belongs to the split with most of them
    (of equals the earlier one), and images in other splits are left out with a warning (our choice).

    Args:
        root: folder of the set.
        images: "aligned" for crops of 178 x 218, "in_the_wild" for the original photos of any size.
        exclude: list of people (LFW's `people.txt` or `lfw-names.txt`) to exclude from training and validation; needs
            `names`.
        names: file of lines `IMAGE NAME` or `IDENTITY NAME`, which is not part of the release. The first name of a
            person counts; people without one are called `CelebA identity NUMBER`.
        identities: False to do without `identity_CelebA.txt`: each image is an identity of its own. For stage 1.

    Attributes:
        excluded: names of the people that `exclude` removed.

    Raises:
        FileNotFoundError: lists, rows of a list or all images are missing; the message says which and where to get
            them.
        ValueError: a list or zip cannot be read, `images` is unknown, `exclude` is given without `names`, or a split is
            empty.
    """

    credit = "CelebA, Z. Liu, P. Luo, X. Wang, X. Tang, ICCV 2015; for non-commercial research only"

    def __init__(
        self,
        root: str,
        images: Images = "aligned",
        exclude: str | None = None,
        names: str | None = None,
        identities: bool = True,
    ) -> None:
        if images not in _FOLDERS:
            raise ValueError(f"unknown CelebA images {images!r}: choose one of {', '.join(_FOLDERS)}")
        if exclude is not None and names is None:
            raise ValueError(
                "exclude needs names: CelebA numbers its people, so give a file of lines IMAGE NAME or IDENTITY NAME"
            )
        folder = expand_user(root)
        self._store, rows, all_rows = _read_lists(folder, images, identities)
        self.has_identities = identities
        numbers, person = np.unique(rows.identity, return_inverse=True)
        counts = np.bincount(person * len(SPLITS) + rows.partition, minlength=len(numbers) * len(SPLITS))
        split_of_identity = counts.reshape(-1, len(SPLITS)).argmax(1)  # positions in `SPLITS`
        kept = rows.partition == split_of_identity[person]
        if not kept.all():
            warnings.warn(
                f"CelebA's partition spreads {len(np.unique(person[~kept])):,} people over several splits: "
                f"{np.sum(~kept):,} images outside the split with most of their person's are left out",
                stacklevel=2,
            )
        known = {} if names is None else _read_names(expand_user(names), all_rows, numbers)
        out = [] if exclude is None else _find_excluded(expand_user(exclude), known, split_of_identity)
        kept &= ~np.isin(person, out)
        self.names, self.landmarks = NameTable(rows.names[kept].tolist()), rows.landmarks[kept]
        self.identity = person[kept].astype(np.int64)
        self.split_of_identity = {int(at): SPLITS[split_of_identity[at]] for at in np.unique(self.identity)}
        empty = [split for split in SPLITS if split not in self.split_of_identity.values()]
        if empty:
            raise ValueError(
                f"CelebA in {folder.absolute()} leaves no one for {' and '.join(empty)}: check {_PARTITION} and the "
                "excluded people; a subset needs images of all three splits, which are numbered 1 to 162770, to 182637 "
                "and to 202599"
            )
        self.excluded = [known[at] for at in out]
        if names is not None:
            self.identity_names = [known.get(at, f"CelebA identity {number}") for at, number in enumerate(numbers)]

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read the image at `index`, (H, W, 3) RGB; aligned images are 218 x 178; see `FaceSet.image`."""
        return self._store.read(self.names[index])

    def content(self, index: int) -> bytes:
        """Return size and name of the file instead of pixels, which would take minutes; equal in a folder and a zip."""
        return f"{self._store.size(self.names[index])} {self.names[index]}".encode()


def _read_lists(root: Path, images: Images, identities: bool) -> tuple[ImageStore, _Rows, _Rows]:
    """Find the images and join the lists, which all name the same images; errors name what is missing.

    Returns:
        The images, the rows of those that are there, and the rows of all.
    """
    wanted = [*([_IDENTITIES] if identities else []), _LANDMARKS[images], _PARTITION]
    paths, missing = [], []
    for name in wanted:
        places = [root / place / f"{name}{suffix}" for suffix in (".txt", ".csv") for place in _PLACES]
        found = [path for path in places if path.is_file()]
        paths += found[:1]
        missing += [] if found else [f"{name}.txt"]
    store = open_images(root, _FOLDERS[images], _PLACES) or open_images(root, f"{_FOLDERS[images]}_png", _PLACES)
    missing += [] if store else [f"{_FOLDERS[images]}/ or {_FOLDERS[images]}.zip"]
    if missing or store is None:
        raise missing_set("parts of CelebA", root, missing, len(wanted) + 1, _ADVICE)
    lists = [_read_list(path) for path in paths]
    names = np.unique(np.concatenate([rows["name"] for rows in lists]))
    for path, rows in zip(paths, lists, strict=True):
        absent = np.setdiff1d(names, rows["name"], assume_unique=True)
        if len(absent):
            raise missing_set(f"rows of {path.name}", path.parent, absent.tolist(), len(names), _ADVICE)
    landmarks, partition = (rows["values"] for rows in lists[-2:])
    if not np.isin(partition, range(len(SPLITS))).all():
        raise ValueError(f"{paths[-1]} holds other numbers than 0 (train), 1 (validation) and 2 (test): get it again")
    identity = lists[0]["values"][:, 0].astype(np.int64) if identities else np.arange(len(names))
    listed = _Rows(names, identity, landmarks.reshape(-1, 5, 2), partition[:, 0].astype(np.int64))
    stored = {_stem(name): name for name in store.names()}
    file_names = np.array([stored.get(_stem(name), "") for name in names.tolist()], dtype=_NAME)
    there = file_names != ""
    if not there.all():
        missing_images = missing_set("CelebA images", store.path, names[~there].tolist(), len(names), _ADVICE)
        if not there.any():
            raise missing_images
        warnings.warn(f"{missing_images}; for a subset, nothing needs to be done", stacklevel=3)
    return store, _Rows(*(column[there] for column in listed._replace(names=file_names))), listed


def _stem(name: str) -> str:
    """Return an image name without its ending, since copies have PNG images and lists name JPEG ones."""
    return name.rpartition(".")[0]


def _read_list(path: Path) -> NDArray[np.void]:
    """Read the rows of a list, sorted by image name: `name`, and as `values` ten numbers of landmarks or else one."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = [re.split(r"[\s,]", line, maxsplit=1)[0] for line in islice(file, 3)]
        header = next((at for at, word in enumerate(first) if Path(word).suffix.lower() in IMAGE_SUFFIXES), None)
        if header is None:
            raise ValueError("no line begins with an image's name")
        layout = np.dtype([("name", _NAME), ("values", np.float64, (10 if "landmarks" in path.name else 1,))])
        separator = "," if path.suffix == ".csv" else None
        rows = np.loadtxt(path, layout, None, separator, skiprows=header, encoding="utf-8-sig", ndmin=1)
    except ValueError as error:
        raise ValueError(f"cannot read {path} ({error}): it may be half copied or altered, get it again") from error
    promised = int(first[0]) if first[0].isdigit() else 0
    if len(rows) < promised:
        raise FileNotFoundError(f"{path} announces {promised:,} images and has {len(rows):,}: {_ADVICE}")
    order = np.unique(rows["name"], return_index=True)[1]
    if len(order) < len(rows):
        raise ValueError(f"{path} names {len(rows) - len(order):,} images twice: get it again")
    return rows[order]


def _read_names(path: Path, rows: _Rows, numbers: NDArray[np.int64]) -> dict[int, str]:
    """Return the known names of people by position in `numbers`."""
    of_images = dict(zip(map(_stem, rows.names.tolist()), rows.identity.tolist(), strict=True))
    place = {str(number): at for at, number in enumerate(numbers)}
    known: dict[int, str] = {}
    for _, line in read_lines(path, "lines IMAGE NAME or IDENTITY NAME"):
        key, *name = re.split(r"[\s,]+", line, maxsplit=1)
        at = place.get(str(of_images.get(_stem(key), key)))
        if at is not None and name and name_key(name[0]):
            known.setdefault(at, name[0].strip())
    if not known:
        raise ValueError(
            f"{path} names no one in CelebA: "
            "its lines have to be IMAGE NAME or IDENTITY NAME, such as '000001.jpg Jane Doe'"
        )
    return known


def _find_excluded(path: Path, known: dict[int, str], split_of_identity: NDArray[np.intp]) -> list[int]:
    """Return the training and validation people that are in the list at `path`."""
    tested = SPLITS.index("test")
    unnamed = sum(split != tested and at not in known for at, split in enumerate(split_of_identity.tolist()))
    if unnamed:
        warnings.warn(
            f"{unnamed:,} training and validation people have no name: whether {path} holds them cannot be told",
            stacklevel=3,
        )
    listed = {name_key(name) for name in read_people(path)}
    if not any(name_key(name) in listed for name in known.values()):
        warnings.warn(f"{path} names no one of this copy of CelebA: no one is excluded", stacklevel=3)
    return [at for at, name in sorted(known.items()) if split_of_identity[at] != tested and name_key(name) in listed]
