"""A small CelebA, laid out as the release or one of its copies, with ORL's faces in place of the set's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from numpy.typing import NDArray

from tests.fake_sets.faces import save_face

Layout = Literal["official", "zip", "csv", "in_the_wild"]

POINTS = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
_COLUMNS = [f"{point}_{axis}" for point in POINTS for axis in "xy"]


def write_celeba(root: Path, people: int = 8, images: int = 4, layout: Layout = "official") -> Path:
    """Write images `000001.jpg` onwards and their lists below `root`, which is returned.

    As in the release, the partition follows the image number (half of the people train, a quarter validates, the rest
    test), and the images of a split's people are mixed. Identity numbers fall as image numbers rise: 1000 for ORL's
    person 0, 993 for 1, and so on.

    Args:
        root: the folder, made where it is not there.
        people: 4-40.
        images: a person, 1-10.
        layout: "official" has Anno/, Eval/ and Img/; "zip" all in `root`, the images zipped; "csv" lists with commas
            and the images in a nested folder, identities added by hand; "in_the_wild" photos of several sizes instead
            of 178 x 218 crops.
    """
    kind = "img_celeba" if layout == "in_the_wild" else "img_align_celeba"
    folder = (
        root / {"official": f"Img/{kind}", "zip": kind, "csv": f"{kind}/{kind}", "in_the_wild": f"Img/{kind}"}[layout]
    )
    names: list[str] = []
    identities, partition, landmarks = [], [], []
    for split, group in enumerate(np.split(np.arange(people), [people // 2, people - people // 4])):
        for image in range(images):
            for person in group.tolist():
                names.append(f"{len(names) + 1:06d}.jpg")
                width, height = (260 + 20 * image, 300 - 10 * image) if layout == "in_the_wild" else (178, 218)
                landmarks.append(save_face(folder / names[-1], person, image, width, height).round().astype(int))
                identities.append([1000 - 7 * person])
                partition.append([split])
    lists = root if layout in ("zip", "csv") else root / "Anno"
    _write(lists / "identity_CelebA.txt", names, identities)
    _write_points(
        lists / f"list_landmarks_{kind.removeprefix('img_')}.{'csv' if layout == 'csv' else 'txt'}", names, landmarks
    )
    if layout == "csv":
        _write(root / "list_eval_partition.csv", names, partition, "image_id,partition\n", ",")
    else:
        _write(root / ("" if layout == "zip" else "Eval") / "list_eval_partition.txt", names, partition)
    if layout == "zip":
        _pack(folder)
    return root


def _write_points(path: Path, names: Sequence[str], landmarks: Sequence[NDArray[np.int64]]) -> None:
    comma = path.suffix == ".csv"
    head = f"{','.join(['image_id', *_COLUMNS])}\n" if comma else f"{len(names)}\n{' '.join(_COLUMNS)} \n"
    _write(path, names, [points.reshape(-1).tolist() for points in landmarks], head, "," if comma else "  ")


def _write(path: Path, names: Sequence[str], rows: Sequence[Sequence[int]], head: str = "", between: str = " ") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        head + "".join(f"{between.join(map(str, (name, *row)))}\n" for name, row in zip(names, rows, strict=True))
    )


def _pack(folder: Path) -> None:
    """Move a folder's files into a zip of its name beside it."""
    with ZipFile(folder.with_name(f"{folder.name}.zip"), "w", ZIP_DEFLATED) as packed:
        packed.mkdir(folder.name)
        for path in sorted(folder.iterdir()):
            packed.write(path, f"{folder.name}/{path.name}")
            path.unlink()
    folder.rmdir()
