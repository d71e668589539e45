"""Result files: whole or not there, marked with what they were made from."""

import errno
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deocc.data.images import open_image

_MARK: Final = "deocc"


class OutputError(OSError):
    """A result cannot be written: the disk is full, or the folder may not be written to. The message is one line."""


@contextmanager
def writing_to(path: Path, draft: Path) -> Iterator[None]:
    """While this is open, write `draft`, which lies in the folder of `path`; it becomes `path` at the end, or goes away after an error.

    Raises:
        OutputError: anything that the system refuses.
        ValueError: the path's name is too long for the disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"the name {path.name} is too long for this disk: rename the photo") from error
        raise OutputError(f"cannot write {path} ({error.strerror or error}): make room or choose another --out") from error


def save_png(path: Path, image: NDArray[np.uint8], mark: str = "") -> None:
    """Write an image, (H, W, 3) RGB or (H, W) grey, as PNG with its folders.

    Args:
        path: where to; an existing file is replaced, so ask `read_mark` first.
        image: the pixels.
        mark: a word that is kept in the file, from which `read_mark` tells what the file was made from.

    Raises:
        OutputError: it cannot be written; then there is no half file.
    """
    note = PngInfo()
    note.add_text(_MARK, mark)
    draft = path.with_name(f".{uuid.uuid4().hex}.tmp")
    with writing_to(path, draft):
        Image.fromarray(image).save(draft, format="PNG", pnginfo=note)


def read_mark(path: Path) -> str | None:
    """The word that `save_png` put into a file; None where there is none, or no such file."""
    try:
        with open_image(path, ("PNG",)) as image:
            mark = image.info.get(_MARK)
    except Exception:  # a damaged file makes Pillow fail in any way, and is not ours
        return None
    return mark if isinstance(mark, str) else None
