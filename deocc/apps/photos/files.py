"""Which photos a command line means, and what their results are called."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deocc.apps.photos.outcomes import Outcome
from deocc.data.images import IMAGE_SUFFIXES

PHOTO_SUFFIXES: Final = IMAGE_SUFFIXES | {".avif", ".gif", ".heic", ".heif", ".jfif"}


@dataclass(frozen=True)
class FoundPhoto:
    """A file to work on.

    Attributes:
        path: where it lies.
        name: what its results are called: the path within the folder that was given, without suffix, with "/"; of a file that was given by
            itself the file's name. Equal names are numbered from the second on, `x`, `x-2`, so that none overwrites another's results.
    """

    path: Path
    name: str


def find_photos(paths: Sequence[Path], outside: Path | None = None) -> tuple[list[FoundPhoto], list[Outcome]]:
    """The files as given, and the photos in the given folders and theirs, sorted by path.

    In folders, hidden files and files without an image's suffix are no photos. A file that is met twice counts once.

    Args:
        paths: files and folders, in the order of the command line.
        outside: a folder whose content is never taken: where results go, lest they be taken for photos next time.

    Returns:
        The photos, and a row for each path or folder that gave none: it is missing, empty, or may not be read.
    """
    photos: list[FoundPhoto] = []
    problems: list[Outcome] = []
    seen: set[Path] = set()
    names: set[str] = set()
    for given in paths:
        files, errors = _look(given, outside)
        problems += errors
        for file in files:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                name = file.relative_to(given) if file != given else Path(file.name)
                photos.append(FoundPhoto(file, _free(name.with_suffix("").as_posix(), names)))
    return photos, problems


def _look(given: Path, outside: Path | None) -> tuple[list[Path], list[Outcome]]:
    try:
        folder = given.is_dir()
        if not folder and not given.exists():
            return [], [Outcome(str(given), f"no photo or folder at {given}: check the path")]
    except OSError as error:
        return [], [_unreadable(given, error)]
    return _walk(given, outside) if folder else ([given], [])


def _walk(folder: Path, outside: Path | None) -> tuple[list[Path], list[Outcome]]:
    errors: list[OSError] = []
    avoided = None if outside is None else outside.resolve()
    files: list[Path] = []
    met = {avoided, folder.resolve()}  # links are followed, but never in a circle
    for root, folders, names in os.walk(folder, onerror=errors.append, followlinks=True):
        inner = {Path(root) / name: (Path(root) / name).resolve() for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [path.name for path, real in inner.items() if real not in met]
        met.update(inner.values())
        files += [Path(root) / name for name in names if _is_photo(name)]
    problems = [_unreadable(Path(error.filename or folder), error) for error in errors]
    if not files and not problems:
        problems.append(Outcome(str(folder), f"no photo in {folder}: looked for the endings {_endings(PHOTO_SUFFIXES)}"))
    return sorted(files), problems


def _is_photo(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in PHOTO_SUFFIXES


def _endings(suffixes: Iterable[str]) -> str:
    return ", ".join(sorted(suffixes))


def _unreadable(path: Path, error: OSError) -> Outcome:
    return Outcome(str(path), f"cannot read {path} ({error.strerror or error}): check its permissions")


def _free(name: str, taken: set[str]) -> str:
    """The name, numbered where it is taken; some file systems do not tell upper from lower case."""
    number, free = 1, name
    while free.casefold() in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free.casefold())
    return free
