"""Archives, pickles and arrays that lie about their size are not unpacked beyond it."""

import pickle
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from deocc.data import insightface as pickle_scan
from deocc.data.images import ImageStore
from deocc.data.insightface import BinFaces
from deocc.inference.outputs import read_rows
from deocc.networks.embedders.dlib import read_layers
from deocc.networks.weights import read_checkpoint, read_state_dict
from tests.security.fuzzing import within_memory

_LITTLE = 100 * 2**20
_MUCH = 150 * 2**20


def test_zip_that_lies_about_its_sizes(tmp_path: Path) -> None:
    path = tmp_path / "faces.zip"
    for method, size in {zipfile.ZIP_DEFLATED: _MUCH, zipfile.ZIP_BZIP2: 2**20, zipfile.ZIP_LZMA: 2**20}.items():
        with zipfile.ZipFile(path, "w", method, compresslevel=1) as packed:
            packed.writestr("1.png", bytes(size))
        path.write_bytes(path.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", 1000)))
        reason = "File is not a zip|Bad CRC-32" if method == zipfile.ZIP_DEFLATED else f"packed by method {method}"
        with within_memory(_LITTLE), pytest.raises(ValueError, match=rf"cannot read .*faces\.zip/1\.png \(({reason})"):
            ImageStore(path, "faces").read("1.png")


def _repeated(spelling: str) -> bytes:
    """A pickle of few bytes that asks for a megabyte two thousand times."""
    text = b"a" * 2**20
    if spelling == "text":
        one = b"X" + struct.pack("<I", len(text)) + text + b"q\x01"
        call = b"c_codecs\nencode\nh\x01X\x06\0\0\0latin1\x86R"
    else:
        one = b"\x96" + struct.pack("<Q", len(text)) + text + b"q\x01"
        call = b"cnumpy.core.numeric\n_frombuffer\nh\x01cnumpy\ndtype\nX\x02\0\0\0u1\x85R\x86R"
    return b"\x80\x05" + one + b"](" + call * 2000 + b"e](e\x86."


@pytest.mark.parametrize("spelling", ["text", "bytearray"])
def test_pickle_that_multiplies_its_bytes(spelling: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(_repeated(spelling))
    with within_memory(_LITTLE), pytest.raises(ValueError, match="more bytes asked for than the file has"):
        BinFaces(str(tmp_path / "a.bin"))


def test_pickle_of_other_opcodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    monkeypatch.setattr(pickle_scan, "MOST_OPCODES", 50)
    for data, message in {
        b"\x80\x02Nr\xff\xff\xff\x10.": "place 285212671 of the memo after 3 opcodes",
        pickle.dumps({1: 2}): "opcode EMPTY_DICT",
        pickle.dumps([1] * 100): "more than 50 opcodes",
    }.items():
        path.write_bytes(data)
        with within_memory(_LITTLE), pytest.raises(ValueError, match=message):
            BinFaces(str(path))


def test_compressed_checkpoint_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2**22)}, "hyper_parameters": {}}, tmp_path / "whole.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "whole.ckpt") as whole,
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    assert (tmp_path / "bomb.ckpt").stat().st_size < 2**17
    for read in (read_checkpoint, read_state_dict):
        with pytest.raises(ValueError, match=r"it unpacks to 16,7.* bytes, more than it has"):
            read(tmp_path / "bomb.ckpt")


def test_arrays_larger_than_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(2**24))
    monkeypatch.setattr("deocc.files._MOST_UNPACKED", 2**20)
    with within_memory(_LITTLE), pytest.raises(ValueError, match=r"unpacks to 134,217,\d+ bytes"):
        read_rows(path, {"a": ("f", 1)}, tuple, "a")
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|V0", "fortran_order": False, "shape": (2**62,)})
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a.npy", header.getvalue())
    with pytest.raises(ValueError, match="announces 4,611,686,018,427,387,904 numbers in"):
        read_rows(path, {"a": ("f", 1)}, tuple, "a")
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_rows(path, {"a": ("f", 1)}, tuple, "a")


def test_file_larger_than_dlibs_network(tmp_path: Path) -> None:
    with (tmp_path / "network.dat").open("wb") as file:
        file.truncate(2**31)  # a hole, which takes no place on the disk
    with within_memory(_LITTLE), pytest.raises(ValueError, match=r"network\.dat is damaged .*2,147,483,648 bytes"):
        read_layers(tmp_path / "network.dat")
