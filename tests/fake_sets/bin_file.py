"""A small insightface verification file, spelt as Python 2, Python 3 or NumPy would pickle it."""

import pickle
import struct
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from tests.fake_sets.faces import orl_face

Spelling = Literal["python2", "bytes", "latin1", "array", "array5"]
_PROTOCOLS: dict[Spelling, int] = {"python2": 2, "bytes": 4, "latin1": 2, "array": 4, "array5": 5}


class _Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings."""

    def _save_string(self: Any, data: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(data)

    dispatch: ClassVar[Any] = pickle._Pickler.dispatch | {bytes: _save_string}


def write_bin_file(path: Path, pairs: int = 20, spelling: Spelling = "python2", size: int = 112) -> list[bool]:
    """Draw a file of pairs, same and different in turn.

    Args:
        path: the file.
        pairs: how many, up to 40.
        spelling: "python2" is what the published files have.
        size: of the crops in pixels.

    Returns:
        Whether each pair shows one person.
    """
    same = [pair % 2 == 0 for pair in range(pairs)]
    people = [(pair, pair if alike else (pair + 1) % 40) for pair, alike in enumerate(same)]
    images = [_jpeg(person, image, size) for pair in people for image, person in enumerate(pair)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickler: Any = (_Python2Pickler if spelling == "python2" else pickle.Pickler)(file, _PROTOCOLS[spelling])
        arrays = spelling.startswith("array")
        pickler.dump(
            ([np.frombuffer(image, np.uint8) for image in images], np.array(same)) if arrays else (images, same)
        )
    return same


def _jpeg(person: int, image: int, size: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(orl_face(person, image, size, size, share=1.0)[0]).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
