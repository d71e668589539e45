"""A small LFW: the folders of its copies, `pairs.txt` and `people.txt`, with ORL's people under invented names."""

from pathlib import Path
from typing import Final, Literal

from tests.fake_sets.faces import PEOPLE, save_face

Copy = Literal["original", "funneled", "deepfunneled", "sklearn"]
_FOLDERS: Final[dict[Copy, str]] = {
    "original": "lfw",
    "funneled": "lfw_funneled",
    "deepfunneled": "lfw-deepfunneled",
    "sklearn": "lfw_home/lfw_funneled",
}


def write_lfw(root: Path, copy: Copy = "original", folds: int = 10, pairs: int = 3, size: int = 250) -> Path:
    """Draw the images in the pairs, and the lists beside their folder (scikit-learn's copy has no list of people).

    Args:
        root: where.
        copy: whose layout.
        folds: 1-10; one fold has the header of `pairsDevTest.txt`.
        pairs: same pairs a fold, and as many different ones, 1-18.
        size: of the images in pixels.

    Returns:
        The folder to give to `LfwFaces`.
    """
    images = root / _FOLDERS[copy]
    lines = [f"{folds}\t{pairs}" if folds > 1 else str(pairs)]
    for fold in range(folds):
        lines += ["\t".join(str(word) for word in pair) for pair in _fold_pairs(fold, folds, pairs)]
    for line in lines[1:]:
        for name, number in _images(line.split("\t")):
            path = images / name / f"{name}_{number:04d}.jpg"
            if not path.exists():
                save_face(path, int(name[-2:]), number - 1, size, size)
    suffix = ".txt" if folds > 1 else "DevTest.txt"
    (images.parent / f"pairs{suffix}").write_text("\n".join(lines) + "\n")
    if copy != "sklearn":
        (images.parent / f"people{suffix}").write_text("\n".join(_people_lines(images, folds)) + "\n")
    return images.parent


def _name(person: int) -> str:
    return f"Some_Person_{person:02d}"


def _fold_people(fold: int, folds: int) -> list[int]:
    each = PEOPLE // folds
    return list(range(fold * each, (fold + 1) * each))


def _fold_pairs(fold: int, folds: int, pairs: int) -> list[tuple[str | int, ...]]:
    people = _fold_people(fold, folds)
    places = [(place, place // len(people)) for place in range(pairs)]
    here = [_name(people[place % len(people)]) for place, _ in places]
    there = [_name(people[(place + 1) % len(people)]) for place, _ in places]
    same: list[tuple[str | int, ...]] = [(name, 1, 2 + turn) for name, (_, turn) in zip(here, places, strict=True)]
    return same + [(name, 1, other, 2 + turn) for name, other, (_, turn) in zip(here, there, places, strict=True)]


def _images(words: list[str]) -> list[tuple[str, int]]:
    return [(words[0], int(words[1])), (words[-2] if len(words) == 4 else words[0], int(words[-1]))]


def _people_lines(images: Path, folds: int) -> list[str]:
    lines = [str(folds)] if folds > 1 else []
    for fold in range(folds):
        names = [_name(person) for person in _fold_people(fold, folds)]
        lines += [str(len(names)), *(f"{name}\t{len(list((images / name).glob('*')))}" for name in names)]
    return lines
