"""Record files: read as an independent writer wrote them, split by people, refused in one line if damaged."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deocc.data import MaskedFaceDataModule
from deocc.data import insightface as record_io
from deocc.data.insightface import RecordFaces
from deocc.geometry import TEMPLATES
from tests.fake_sets.record_file import MAGIC, decoded, jpeg, labelled, write_record_file, write_records


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rec(tmp_path: Path) -> Path:
    """12 people x 3 images in insightface's layout."""
    return write_record_file(tmp_path / "faces")


def _faces(rec: Path, train: float = 0.7, val: float = 0.3) -> RecordFaces:
    return RecordFaces(str(rec), train=train, val=val)


def test_images_and_people(rec: Path) -> None:
    faces = _faces(rec)
    assert len(faces) == 36
    assert faces.identity.tolist() == [person for person in range(12) for _ in range(3)]
    assert list(faces.names[:4]) == ["0/1", "0/2", "0/3", "1/4"]
    assert len(set(faces.names)) == 36
    for index in (0, 17, 35):
        np.testing.assert_array_equal(faces.image(index), decoded(jpeg(*divmod(index, 3))))


def test_single_labels_and_no_header(tmp_path: Path) -> None:
    people = [7, 300_000, 7, 5, 12]
    rec = write_records(tmp_path / "faces", {key: labelled([people[key]], jpeg(key, 0)) for key in range(5)})
    faces = RecordFaces(str(rec), train=1.0, val=0.0)
    assert faces.identity.tolist() == people
    assert set(faces.split_of_identity) == {5, 7, 12, 300_000}


def test_record_in_parts_is_joined(tmp_path: Path) -> None:
    image = jpeg(0, 0)
    comment = b"\xff\xfe" + (4 * 5 + 2).to_bytes(2, "big") + b"ab" + MAGIC * 2 + b"cdef" + MAGIC + b"gh"[:2]
    commented = image[:2] + comment + image[2:]
    data = labelled([3], commented)
    assert [place % 4 for place in range(len(data)) if data.startswith(MAGIC, place)] == [0, 0, 0]
    rec = write_records(tmp_path / "faces", {1: data, 2: labelled([3, 1], jpeg(1, 0))})
    assert len(set(rec.read_bytes().split(MAGIC))) > 4
    faces = RecordFaces(str(rec), train=1.0, val=0.0)
    assert faces.identity.tolist() == [3, 3]
    assert record_io._read_record(faces._data, 0, rec) == commented
    np.testing.assert_array_equal(faces.image(1), decoded(jpeg(1, 0)))


def test_chunks_give_the_same_index(rec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = _faces(rec)
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(record_io, "_CHUNK", 5)
    assert list(_faces(rec).names) == list(whole.names)


def test_labels_are_collected_once(rec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = _faces(rec)
    with monkeypatch.context() as patch:
        patch.setattr(record_io, "_scan", None)
        assert list(_faces(rec).names) == list(first.names)
        with pytest.raises(TypeError):
            _faces(write_record_file(tmp_path / "more", people=13))
    cached = next((tmp_path / "cache").rglob("*.npy"))
    cached.write_bytes(cached.read_bytes()[:100])
    assert list(_faces(rec).names) == list(first.names)


def test_relabelled_file_of_equal_size_is_read(tmp_path: Path) -> None:
    for labels in ([0, 0, 1, 1], [0, 0, 0, 0]):
        records = {key: labelled([label], jpeg(key, 0)) for key, label in enumerate(labels)}
        rec = write_records(tmp_path / "faces", records)
        os.utime(rec, (1, 1 + labels[-1]))
        assert RecordFaces(str(rec), train=1.0, val=0.0).identity.tolist() == labels


def test_unwritable_cache_is_a_warning(rec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot keep records in .*: set DEOCC_CACHE"):
        assert len(_faces(rec)) == 36


def test_split_depends_on_number_alone(rec: Path, tmp_path: Path) -> None:
    faces, more = _faces(rec), _faces(write_record_file(tmp_path / "more", people=20))
    assert set(faces.split_of_identity.values()) == {"train", "val"}
    assert {person: more.split_of_identity[person] for person in range(12)} == faces.split_of_identity
    assert set(RecordFaces(str(rec), train=1.0, val=0.0).split_of_identity.values()) == {"train"}
    assert set(_faces(rec, 0.4, 0.3).split_of_identity.values()) == {"train", "val", "test"}


def test_landmarks_take_no_memory(tmp_path: Path) -> None:
    faces = _faces(write_record_file(tmp_path / "faces", side=56))
    expected = (np.array(TEMPLATES["arcface"].points) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(faces.landmarks, np.stack([expected] * 36), atol=1e-4)
    assert faces.landmarks.strides[0] == 0


def test_pickled_set_is_small(rec: Path) -> None:
    faces = _faces(rec)
    faces.image(0)
    pickled = pickle.dumps(faces)
    assert len(pickled) < 6_000 < rec.stat().st_size
    copy = pickle.loads(pickled)
    np.testing.assert_array_equal(copy.image(5), faces.image(5))
    np.testing.assert_array_equal(copy.landmarks, faces.landmarks)
    assert copy.fingerprint("train") == faces.fingerprint("train")


def test_datamodule_trains_on_records(rec: Path) -> None:
    module = MaskedFaceDataModule(_faces(rec), size=56, batch_size=4)
    batch = next(iter(module.train_dataloader()))
    assert batch["face"].shape == (4, 3, 56, 56)
    assert float(batch["face"].std()) > 0.1
    assert 0 <= int(batch["identity"].min()) <= int(batch["identity"].max()) < module.num_identities
    assert module.provenance()["data"] == "RecordFaces"


def test_fingerprint_depends_on_data(rec: Path, tmp_path: Path) -> None:
    faces = _faces(rec)
    others = [_faces(write_record_file(tmp_path / f"{count}", images=count)) for count in (2, 4)]
    prints = [faces.fingerprint("train"), faces.fingerprint("val"), *(other.fingerprint("train") for other in others)]
    assert len(set(prints)) == 4
    assert _faces(rec).fingerprint("train") == prints[0]


@pytest.mark.parametrize("missing", ["train.rec", "train.idx"])
def test_missing_file_is_named(rec: Path, missing: str) -> None:
    (rec.parent / missing).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"1 of 2 record files is missing in .*faces \({missing}\): get both files"
    ):
        _faces(rec)


def _halve(rec: Path) -> None:
    rec.write_bytes(rec.read_bytes()[: rec.stat().st_size // 2])


def _flip_magic(rec: Path) -> None:
    content = bytearray(rec.read_bytes())
    content[0] ^= 1
    rec.write_bytes(bytes(content))


def _append_offset(offset: int) -> Callable[[Path], object]:
    return lambda rec: rec.with_suffix(".idx").write_text(f"{rec.with_suffix('.idx').read_text()}99\t{offset}\n")


def _write_index(text: str) -> Callable[[Path], object]:
    return lambda rec: rec.with_suffix(".idx").write_text(text, encoding="latin-1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_halve, r"of 49 records of .*train\.idx lie outside .*train\.rec of .* the file is cut short"),
        (
            _flip_magic,
            r"no record begins at byte 0 of .*train\.rec: the file is damaged or the index belongs",
        ),
        (_append_offset(10**9), "lie outside"),
        (_append_offset(-4), "lie outside"),
        (_append_offset(4), "no record begins at byte 4 of"),
        *(
            (_write_index(text), r"train\.idx is no index of a record file.* KEY tab OFFSET")
            for text in ("", "1 2 3\n4 5 6\n", "one\ttwo\n", "\x00\xff")
        ),
    ],
)
def test_damaged_files_are_refused(rec: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(rec)
    with pytest.raises(ValueError, match=message) as error:
        _faces(rec)
    assert "\n" not in str(error.value)


def test_file_cut_in_last_record(tmp_path: Path) -> None:
    rec = write_records(tmp_path / "faces", {1: labelled([0], jpeg(0, 0))})
    rec.write_bytes(rec.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"train\.rec has .* bytes, but a record reaches to byte .*: the file is cut short"
    ):
        RecordFaces(str(rec), train=1.0, val=0.0)


def test_short_index_names_missing_records(rec: Path) -> None:
    lines = rec.with_suffix(".idx").read_text().splitlines(keepends=True)
    rec.with_suffix(".idx").write_text("".join(lines[:33]))
    with pytest.raises(
        FileNotFoundError,
        match=r"4 of 36 images of train\.idx are missing .*\(record 33, record 34, record 35, \.\.\.\)",
    ):
        _faces(rec)


def test_offset_into_later_part_is_refused(tmp_path: Path) -> None:
    rec = write_records(tmp_path / "faces", {1: labelled([3], b"abcd" + MAGIC + b"efgh")})
    rec.with_suffix(".idx").write_text(f"1\t{8 + 24 + 4}\n")
    with pytest.raises(ValueError, match="no record begins at byte 36 of"):
        RecordFaces(str(rec), train=1.0, val=0.0)


@pytest.mark.parametrize("label", [0.5, -1.0, float("nan")])
def test_labels_without_people_are_refused(tmp_path: Path, label: float) -> None:
    rec = write_records(tmp_path / "faces", {1: labelled([label], jpeg(0, 0))})
    with pytest.raises(ValueError, match="holds no images with people's numbers as labels"):
        RecordFaces(str(rec), train=1.0, val=0.0)


def test_bad_images_are_named(tmp_path: Path) -> None:
    records = {1: labelled([0], jpeg(0, 0)), 2: labelled([0], jpeg(0, 1, 56)), 3: labelled([1], b"not an image")}
    faces = RecordFaces(str(write_records(tmp_path / "faces", records)), train=1.0, val=0.0)
    with pytest.raises(
        ValueError, match=r"image 0/2 of .*train\.rec has 56 x 56 pixels: expected 112 x 112, since all crops .* square"
    ):
        faces.image(1)
    with pytest.raises(ValueError, match=r"cannot read image 1/3 of .*train\.rec as an image"):
        faces.image(2)


@pytest.mark.parametrize(("train", "val"), [(0.0, 0.5), (0.9, 0.2), (0.5, -0.1)])
def test_impossible_shares_are_refused(rec: Path, train: float, val: float) -> None:
    with pytest.raises(ValueError, match="choose train above 0, val from 0, and a sum of 1 at most"):
        _faces(rec, train, val)


def test_empty_share_is_refused(rec: Path) -> None:
    with pytest.raises(
        ValueError, match=r"of 12 people none falls into val \(train 0\.99, val 0\.01, seed 0\): set seed to \d+$"
    ):
        RecordFaces(str(rec))
