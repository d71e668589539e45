"""The data sets that lie where the configurations look for them, and a folder of one's own."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from deocc.apps.doctor.finding import NEEDED, Check, Finding

_CELEBA_PARTS: Final = ("img_align_celeba", "img_celeba", "identity_CelebA", "list_eval_partition", "Anno")


def checks(given: Path | None) -> list[Check]:
    """A check for each usual folder that is there, and for the one that was given."""
    look: dict[str, Callable[[Path], Iterator[Finding]]] = {"celeba": _look_at_celeba, "lfw": _look_at_lfw, "ar": _look_at_ar}
    usual = {name: Path("data") / name for name in look}
    there = [
        Check(f"data set {path}", partial(look[name], path), (NEEDED,), f"put a whole copy there, or remove {path}")
        for name, path in usual.items()
        if path.is_dir()
    ]
    if not there:
        there = [Check("data sets", partial(_none, list(usual.values())))]
    if given is not None:
        there.append(Check(f"--data {given}", partial(_look_at_given, given), (NEEDED,), "give the folder that holds the set"))
    return there


def is_celeba(folder: Path) -> bool:
    """Whether something of CelebA's names lies in the folder."""
    return any(path.name.startswith(_CELEBA_PARTS) for path in folder.iterdir())


def _none(looked: list[Path]) -> Iterator[Finding]:
    places = ", ".join(str(path) for path in looked)
    yield Finding("OK", f"no data sets below data/ (looked for {places}): the embedded faces need none")


def _look_at_celeba(folder: Path) -> Iterator[Finding]:
    from deocc.data import CelebaFaces

    faces = CelebaFaces(str(folder))
    yield Finding("OK", f"{folder}: CelebA, {len(faces):,} images of {len(faces.split_of_person):,} people")


def _look_at_lfw(folder: Path) -> Iterator[Finding]:
    """Its lists and files; its landmarks are left alone, since to find them takes a detector minutes."""
    import numpy as np

    from deocc.data import LfwFaces
    from deocc.data.landmark_cache import FoundLandmarks

    class Listed(LfwFaces):
        def _find_landmarks(self, names: Sequence[str], detector: str, weights: str | None) -> FoundLandmarks:
            return FoundLandmarks(names, np.zeros((len(names), 5, 2)), np.ones((len(names), 2), np.int64))

    faces = Listed(str(folder))
    yield Finding("OK", f"{folder}: LFW, {len(faces):,} images of {len(faces.split_of_person):,} people")


def _look_at_ar(folder: Path) -> Iterator[Finding]:
    """Only whether there are images: all else comes with the landmarks, which take a detector minutes."""
    from deocc.data.images import IMAGE_SUFFIXES

    number = sum(path.suffix.lower() in IMAGE_SUFFIXES | {".raw"} for path in folder.rglob("*"))
    if number == 0:
        raise FileNotFoundError(f"no image below {folder.absolute()}")
    yield Finding("OK", f"{folder}: {number:,} images; whether AR is whole, `deocc test --config configs/paper/ar.yaml` tells")


def _look_at_given(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder.absolute()}")
    if is_celeba(folder):
        yield from _look_at_celeba(folder)
        return
    from deocc.data.folder_listing import list_folder

    listing = list_folder(folder)
    yield Finding("OK", f"{folder}: {len(listing.names):,} images of {len(listing.people):,} people")
