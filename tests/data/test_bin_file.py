"""insightface's verification files: every spelling reads alike, and nothing that a pickle asks for is run."""

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from deocc.data.insightface import BinFaces
from deocc.evaluation.protocol import ListedPairs
from deocc.geometry import TEMPLATES
from tests.fake_sets.bin_file import Spelling, write_bin_file
from tests.fake_sets.faces import orl_face


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lfw.bin"


@pytest.mark.parametrize("spelling", get_args(Spelling))
def test_every_spelling_is_read(path: Path, spelling: Spelling) -> None:
    same = write_bin_file(path, 6, spelling)
    faces = BinFaces(str(path))
    assert isinstance(faces.protocol, ListedPairs)
    assert faces.protocol.first.tolist() == [0, 2, 4, 6, 8, 10]
    assert faces.protocol.second.tolist() == [1, 3, 5, 7, 9, 11]
    assert faces.protocol.same.tolist() == same
    drawn = orl_face(1, 0, 112, 112, share=1.0)[0].astype(int)
    assert np.abs(faces.image(2).astype(int) - drawn).mean() < 3  # JPEG
    if spelling == "bytes":
        images, _ = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps((images, [np.bool_(label) for label in same])))
        assert BinFaces(str(path)).protocol.same.tolist() == same  # type: ignore[attr-defined]


def test_same_pair_shares_an_identity(path: Path) -> None:
    write_bin_file(path, 4)  # same, different, same, different
    faces = BinFaces(str(path))
    assert faces.identity.tolist() == [0, 0, 1, 2, 3, 3, 4, 5]
    assert faces.indices("test").tolist() == list(range(8))
    assert len(set(faces.names)) == 8


def test_landmarks_and_fingerprint(path: Path) -> None:
    write_bin_file(path, 3)
    faces = BinFaces(str(path))
    np.testing.assert_allclose(faces.landmarks, np.stack([np.array(TEMPLATES["arcface"].points)] * 6), atol=1e-4)
    before = faces.fingerprint("test")
    write_bin_file(path, 3, "array")
    assert BinFaces(str(path)).fingerprint("test") == before
    data = path.read_bytes()
    place = data.rindex(b"\xff\xd9") - 9
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert BinFaces(str(path)).fingerprint("test") != before


class _Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["whole", "image", "label"])
def test_malicious_pickle_does_not_run(path: Path, protocol: int, place: str) -> None:
    trap = path.with_name("ran")
    attack = _Call(os.mkdir, str(trap))
    content: Any = {"whole": attack, "image": ([b"a", attack], [True]), "label": ([b"a", b"b"], [attack])}[place]
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(
        ValueError, match=r"lfw\.bin asks for '(posix|nt)\.mkdir', which no verification file needs, so it was not run"
    ) as error:
        BinFaces(str(path))
    assert "\n" not in str(error.value)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists()  # the trap works: a free unpickler would have sprung it


def _global(module: str, name: str, *, stack: bool) -> bytes:
    """A pickle of nothing but a name, in the old or the new opcode."""
    if stack:
        words = (b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
        return pickle.PROTO + b"\x04" + b"".join(words) + b"\x93."
    return f"c{module}\n{name}\n.".encode()


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("os", "system"),
        ("_codecs", "decode"),
        ("_codecs", "encode.__globals__"),
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.f2py", "ndarray"),
        ("numpy_evil", "dtype"),
        ("deocc.data.bin_file", "_Data"),
        ("os", "system" * 20),
    ],
)
def test_unneeded_name_is_refused(path: Path, module: str, name: str, stack: bool) -> None:
    path.write_bytes(_global(module, name, stack=stack))
    shown = f"{module}.{name}"[:80]
    with pytest.raises(ValueError, match=rf"asks for '{shown}', which no verification file needs"):
        BinFaces(str(path))


def test_name_in_message_is_escaped(path: Path) -> None:
    path.write_bytes(_global("os", "x\n\x1b[2J", stack=True))
    with pytest.raises(ValueError, match=r"asks for 'os\.x\\n\\x1b\[2J', which"):
        BinFaces(str(path))


def test_attribute_of_a_stand_in_does_not_outlive_the_file(path: Path) -> None:
    # BUILD with a state of (None, {"__defaults__": (1,)}) sets attributes of whatever stands below it.
    path.write_bytes(b"cnumpy\ndtype\nN}V__defaults__\nI1\n\x85s\x86b.")
    with pytest.raises(ValueError, match="cannot read"):
        BinFaces(str(path))
    write_bin_file(path, 3, "array")
    assert len(BinFaces(str(path))) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (([], []), "holds 0 images and 0 labels: expected two images a label"),
        (([b"a"] * 3, [True]), "holds 3 images and 1 labels"),
        (([b"a", 5], [True]), "expected encoded images as bytes"),
        (([b"a", b"b"], [2]), "labels other than true and false"),
        (([np.zeros(3, np.float64)] * 2, [True]), "expected arrays of uint8 or bool, got 'f8'"),
        (([b"a", b"b"], [True], 3), "too many values to unpack"),
        (OrderedDict(a=1), "opcode SETITEM, which no such file needs"),
        (([b"no image"] * 2, [True]), r"cannot read image 0 of .*lfw\.bin as an image"),
    ],
)
def test_other_pickle_is_refused(path: Path, content: object, message: str) -> None:
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        BinFaces(str(path))
    assert "\n" not in str(error.value)


_DAMAGED = {
    "empty": b"",
    "text": b"no pickle",
    "nothing on the stack": b"\x80\x04.",
    "more bytes announced than memory has": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "a memo of four thousand million": b"\x80\x02r" + b"\xff" * 4 + b".",
    "cut short": None,
}


@pytest.mark.parametrize("content", _DAMAGED.values(), ids=_DAMAGED)
def test_damaged_file_is_refused(path: Path, content: bytes | None) -> None:
    write_bin_file(path, 3)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ValueError, match=r"cannot read .* as an insightface verification file"):
        BinFaces(str(path))


def test_crops_of_another_size_are_refused(path: Path) -> None:
    write_bin_file(path, 3, size=96)
    with pytest.raises(ValueError, match=r"image 0 of .*lfw\.bin is 96 x 96 pixels: expected insightface's 112 x 112"):
        BinFaces(str(path))


def test_missing_file_is_named(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no verification file at .*lfw\.bin"):
        BinFaces(str(path))
