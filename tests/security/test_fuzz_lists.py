"""Damaged lists, indices and tables are read as what they are, or refused in one line."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from deocc.data.celeba import CelebaFaces
from deocc.data.face_set import read_people
from deocc.data.insightface import RecordFaces
from deocc.data.pairs import PairListFaces
from deocc.inference.batch import Outcome, OutcomeFile
from tests.fake_sets.celeba import write_celeba
from tests.fake_sets.pair_list import write_pair_list
from tests.fake_sets.record_file import write_record_file
from tests.security.fuzzing import MANY, damaged, for_each


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "cache"))


@MANY
def test_a_damaged_list_of_pairs(examples: int, tmp_path: Path) -> None:
    root = tmp_path / "set"
    files = [write_pair_list(root, form, people=2, size=8).read_bytes() for form in ("paths", "folds", "numbered")]
    files += [b"2 1\n" + files[2], files[0].replace(b" ", b","), files[1].replace(b"person00/", b"../person00\\")]
    path = tmp_path / "pairs.txt"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        faces = PairListFaces(str(root), str(path), aligned="arcface")
        assert faces.landmarks.shape == (len(faces.names), 5, 2) and len(faces.identity) == len(faces.names)
        assert all((root / name).resolve().is_relative_to(root.resolve()) for name in faces.names)

    for_each(examples, damaged(files), read)


@MANY
@pytest.mark.parametrize("suffix", [".rec", ".idx"])
def test_damaged_records_and_their_index(examples: int, suffix: str, tmp_path: Path) -> None:
    path = write_record_file(tmp_path, people=2, images=2, side=16).with_suffix(suffix)
    whole = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # NumPy's, of an index that is blank
            faces = RecordFaces(str(path.with_suffix(".rec")), train=1.0, val=0.0)
        for index in range(len(faces)):
            assert faces.image(index).shape == (faces._size, faces._size, 3)

    for_each(examples, damaged([whole]), read)


@MANY
@pytest.mark.parametrize("layout", ["official", "csv"])
@pytest.mark.parametrize("number", range(3))
def test_damaged_lists_of_celeba(examples: int, layout: str, number: int, tmp_path: Path) -> None:
    root = write_celeba(tmp_path, people=4, images=1, layout=layout)  # type: ignore[arg-type]
    path = sorted(path for path in root.rglob("*") if path.suffix in (".txt", ".csv"))[number]
    whole = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of people in several splits
            faces = CelebaFaces(str(root))
        assert faces.landmarks.shape == (len(faces.names), 5, 2) and np.isfinite(faces.landmarks).all()

    for_each(examples // 2, damaged([whole]), read)


@MANY
def test_a_damaged_list_of_people(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "people.txt"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        assert all(name.strip() for name in read_people(path))

    for_each(examples, damaged(["10\nAda_Lovelace\t3\nPenélope Cruz 1\n".encode()]), read)


@MANY
def test_a_damaged_table_of_outcomes(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    table = OutcomeFile(path)
    table.replace("a.png", [Outcome("a.png", "", 1, "b.png", {"similarity": -0.5}), Outcome("a.png", "", 2, "=c.png")])
    table.write()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        assert all(row.face is None or isinstance(row.face, int) for row in OutcomeFile(path).all_rows())

    for_each(examples, damaged([path.read_bytes()]), read)
