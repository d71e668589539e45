"""Small pair lists of either form, with images in a folder a person."""

from pathlib import Path
from typing import Literal

from tests.fake_sets.faces import save_face


def write_pair_list(
    root: Path,
    form: Literal["paths", "folds", "numbered"] = "paths",
    people: int = 4,
    separator: str = " ",
    size: int = 112,
) -> Path:
    """Draw two images of each person below `root`, and a list of one same and one different pair a person.

    Args:
        root: where.
        form: "paths" and a label, the same with two "folds" in a fourth column, or "numbered" as in LFW and MFR2.
        people: 2-40.
        separator: between the columns.
        size: of the images in pixels.

    Returns:
        The list, `pairs.txt` in `root`.
    """
    lines = []
    for person in range(people):
        here, there = f"person{person:02d}", f"person{(person + 1) % people:02d}"
        for image in (0, 1):
            save_face(root / here / f"{here}_{image + 1:04d}.png", person, image, size, size)
        if form == "numbered":
            lines += [[here, "1", "2"], [here, "1", there, "2"]]
        else:
            first, second, other = f"{here}/{here}_0001.png", f"{here}/{here}_0002.png", f"{there}/{there}_0002.png"
            fold = [str(person % 2 + 1)] if form == "folds" else []
            lines += [[first, second, "1", *fold], [first, other, "0", *fold]]
    path = root / "pairs.txt"
    path.write_text("".join(separator.join(line) + "\n" for line in lines))
    return path
