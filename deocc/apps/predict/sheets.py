"""Contact sheets: crop of the photo, predicted mask and completed face of everyone, a page for every twelve."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from deocc.apps.notices import printable
from deocc.apps.photos import OutputError, read_mark, save_png
from deocc.apps.predict.embeddings import EmbeddedFace
from deocc.data.images import read_image
from deocc.evaluation import panel_image

SHEETS: Final = "contact_sheets"
_ROWS: Final = 12
_LONGEST: Final = 16  # characters of a label beside a row
_OURS: Final = "contact sheet "


def write_sheets(out: Path, faces: Sequence[EmbeddedFace], columns: Mapping[str, str]) -> list[Path]:
    """Write `contact_sheets/001.png`, ... of the faces whose files are there; pages that show the same faces already stay.

    Args:
        out: the folder for everything.
        faces: in the order to show them.
        columns: by title, the folder below `out` where a face's `NAME.png` lies.

    Returns:
        The pages.

    Raises:
        OutputError: a page cannot be written, or a file that is none is in its place.
    """
    shown = [face for face in faces if all((out / folder / f"{face.name}.png").is_file() for folder in columns.values())]
    pages = []
    for number, start in enumerate(range(0, len(shown), _ROWS), 1):
        pages.append(out / SHEETS / f"{number:03}.png")
        _write_page(pages[-1], out, shown[start : start + _ROWS], columns)
    return pages


def _write_page(path: Path, out: Path, faces: Sequence[EmbeddedFace], columns: Mapping[str, str]) -> None:
    key = repr([(face.name, face.mark) for face in faces]).encode(errors="surrogateescape")
    mark = _OURS + hashlib.sha256(key).hexdigest()[:32]
    present = read_mark(path)
    if path.exists() and not (present or "").startswith(_OURS):
        raise OutputError(f"{path} exists and is no contact sheet of an earlier run: choose another --out")
    if present == mark:
        return
    images = {title: torch.stack([_pixels(out / folder / f"{face.name}.png") for face in faces]) for title, folder in columns.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names in scripts that the font lacks show as boxes
        save_png(path, panel_image(images, [_label(face.name) for face in faces]), mark)


def _pixels(path: Path) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1).float() / 127.5 - 1


def _label(name: str) -> str:
    """The end of the name, which tells faces apart; "$" would start a formula."""
    text = printable(name)
    short = text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"
    return short.replace("$", r"\$")
