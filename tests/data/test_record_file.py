"""Record files:

read as an independent writer wrote them, split by people, cheap to hand to workers, refused in one line if damaged.
"""

import pickle
from pathlib import Path

import numpy as np
import pytest

from deocc.data import MaskedFaceDataModule
from deocc.data import insightface_rec as record_io
from deocc.data.insightface_rec import RecordFaces
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


def test_images_and_people_are_those_written_and_label_records_are_no_images(rec: Path) -> None:
    faces = _faces(rec)
    assert len(faces) == 36
    assert faces.identity.tolist() == [person for person in range(12) for _ in range(3)]
    assert list(faces.names[:4]) == ["0/1", "0/2", "0/3", "1/4"]
    assert len(set(faces.names)) == 36
    for index in (0, 17, 35):
        np.testing.assert_array_equal(faces.image(index), decoded(jpeg(*divmod(index, 3))))


def test_single_labels_gaps_in_the_numbers_and_no_header_record_are_read(tmp_path: Path) -> None:
    people = [7, 300_000, 7, 5, 12]
    rec = write_records(tmp_path / "faces", {key: labelled([people[key]], jpeg(key, 0)) for key in range(5)})
    faces = RecordFaces(str(rec), train=1.0, val=0.0)
    assert faces.identity.tolist() == people
    assert set(faces.split_of_identity) == {5, 7, 12, 300_000}


def test_records_that_hold_the_magic_number_are_joined_from_their_parts(tmp_path: Path) -> None:
    image = jpeg(0, 0)
    comment = b"\xff\xfe" + (4 * 5 + 2).to_bytes(2, "big") + b"ab" + MAGIC * 2 + b"cdef" + MAGIC + b"gh"[:2]
    commented = image[:2] + comment + image[2:]
    data = labelled([3], commented)
    assert [place % 4 for place in range(len(data)) if data.startswith(MAGIC, place)] == [0, 0, 0]
    rec = write_records(tmp_path / "faces", {1: data, 2: labelled([3, 1], jpeg(1, 0))})
    assert len(set(rec.read_bytes().split(MAGIC))) > 4
    faces = RecordFaces(str(rec), train=1.0, val=0.0)
    assert faces.identity.tolist() == [3, 3]
    assert faces._file.image_bytes(0) == commented
    np.testing.assert_array_equal(faces.image(1), decoded(jpeg(1, 0)))


def test_reading_in_many_chunks_gives_the_same_index(
    rec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = _faces(rec)
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(record_io, "_CHUNK", 5)
    assert list(_faces(rec).names) == list(whole.names)


def test_labels_are_collected_once_and_anew_for_other_files(
    rec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = _faces(rec)
    with monkeypatch.context() as patch:
        patch.setattr(record_io, "_scan", None)
        assert list(_faces(rec).names) == list(first.names)
        with pytest.raises(TypeError):
            _faces(write_record_file(tmp_path / "more", people=13))
    cached = next((tmp_path / "cache").rglob("*.npz"))
    cached.write_bytes(cached.read_bytes()[:100])
    assert list(_faces(rec).names) == list(first.names)


def test_a_cache_that_cannot_be_written_is_a_warning(
    rec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="labels cannot be kept in .*: set DEOCC_CACHE"):
        assert len(_faces(rec)) == 36


def test_people_split_by_their_number_alone(rec: Path, tmp_path: Path) -> None:
    faces, more = _faces(rec), _faces(write_record_file(tmp_path / "more", people=20))
    assert set(faces.split_of_identity.values()) == {"train", "val"}
    assert {person: more.split_of_identity[person] for person in range(12)} == faces.split_of_identity
    assert set(RecordFaces(str(rec), train=1.0, val=0.0).split_of_identity.values()) == {"train"}
    assert set(_faces(rec, 0.4, 0.3).split_of_identity.values()) == {"train", "val", "test"}


def test_landmarks_are_the_template_scaled_to_the_images_and_take_no_memory(tmp_path: Path) -> None:
    faces = _faces(write_record_file(tmp_path / "faces", side=56))
    expected = (np.array(TEMPLATES["arcface"].points) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(faces.landmarks, np.stack([expected] * 36), atol=1e-4)
    assert faces.landmarks.strides[0] == 0


def test_a_worker_gets_neither_images_nor_landmarks_and_reads_the_same(rec: Path) -> None:
    faces = _faces(rec)
    faces.image(0)
    pickled = pickle.dumps(faces)
    assert len(pickled) < 6_000 < rec.stat().st_size
    copy = pickle.loads(pickled)
    np.testing.assert_array_equal(copy.image(5), faces.image(5))
    np.testing.assert_array_equal(copy.landmarks, faces.landmarks)
    assert copy.fingerprint("train") == faces.fingerprint("train")


def test_the_data_module_trains_on_records(rec: Path) -> None:
    module = MaskedFaceDataModule(_faces(rec), size=56, batch_size=4)
    batch = next(iter(module.train_dataloader()))
    assert batch["face"].shape == (4, 3, 56, 56)
    assert float(batch["face"].std()) > 0.1
    assert 0 <= int(batch["identity"].min()) <= int(batch["identity"].max()) < module.num_identities
    assert module.provenance()["data"] == "RecordFaces"


def test_the_fingerprint_changes_with_images_people_and_split(rec: Path, tmp_path: Path) -> None:
    faces = _faces(rec)
    others = [_faces(write_record_file(tmp_path / f"{count}", images=count)) for count in (2, 4)]
    prints = [faces.fingerprint("train"), faces.fingerprint("val"), *(other.fingerprint("train") for other in others)]
    assert len(set(prints)) == 4
    assert _faces(rec).fingerprint("train") == prints[0]


@pytest.mark.parametrize("missing", ["train.rec", "train.idx"])
def test_a_missing_file_is_named(rec: Path, missing: str) -> None:
    (rec.parent / missing).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"1 of 2 record files is missing in .*faces \({missing}\): get both files"
    ):
        _faces(rec)


def test_a_cut_record_file_is_refused(rec: Path) -> None:
    content = rec.read_bytes()
    rec.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=r"of 49 records of .*train\.idx lie outside .*train\.rec of .* the file is cut short"
    ) as error:
        _faces(rec)
    assert "\n" not in str(error.value)


def test_a_file_that_ends_within_its_last_record_is_refused(tmp_path: Path) -> None:
    rec = write_records(tmp_path / "faces", {1: labelled([0], jpeg(0, 0))})
    rec.write_bytes(rec.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"train\.rec has .* bytes, but a record reaches to byte .*: the file is cut short"
    ):
        RecordFaces(str(rec), train=1.0, val=0.0)


def test_an_index_shorter_than_the_header_promises_is_refused_with_what_is_missing(rec: Path) -> None:
    lines = rec.with_suffix(".idx").read_text().splitlines(keepends=True)
    rec.with_suffix(".idx").write_text("".join(lines[:33]))
    with pytest.raises(
        FileNotFoundError,
        match=r"4 of 36 images of train\.idx are missing .*\(record 33, record 34, record 35, \.\.\.\)",
    ):
        _faces(rec)


@pytest.mark.parametrize(
    ("offset", "message"), [(10**9, "lie outside"), (-4, "lie outside"), (4, "no record begins at byte 4 of")]
)
def test_an_offset_where_no_record_begins_is_refused(rec: Path, offset: int, message: str) -> None:
    with rec.with_suffix(".idx").open("a") as file:
        file.write(f"99\t{offset}\n")
    with pytest.raises(ValueError, match=message) as error:
        _faces(rec)
    assert "\n" not in str(error.value)


def test_an_offset_into_a_later_part_of_a_record_is_refused(tmp_path: Path) -> None:
    rec = write_records(tmp_path / "faces", {1: labelled([3], b"abcd" + MAGIC + b"efgh")})
    rec.with_suffix(".idx").write_text(f"1\t{8 + 24 + 4}\n")
    with pytest.raises(ValueError, match="no record begins at byte 36 of"):
        RecordFaces(str(rec), train=1.0, val=0.0)


def test_a_wrong_magic_number_is_refused(rec: Path) -> None:
    content = bytearray(rec.read_bytes())
    content[0] ^= 1
    rec.write_bytes(bytes(content))
    with pytest.raises(
        ValueError,
        match=r"no record begins at byte 0 of .*train\.rec: the file is damaged or the index belongs to another",
    ):
        _faces(rec)


@pytest.mark.parametrize("text", ["", "1 2 3\n4 5 6\n", "one\ttwo\n", "\x00\xff"])
def test_a_file_that_is_no_index_is_refused(rec: Path, text: str) -> None:
    rec.with_suffix(".idx").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"train\.idx is no index of a record file.* KEY tab OFFSET") as error:
        _faces(rec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [0.5, -1.0, float("nan")])
def test_labels_that_number_no_one_are_refused(tmp_path: Path, label: float) -> None:
    rec = write_records(tmp_path / "faces", {1: labelled([label], jpeg(0, 0))})
    with pytest.raises(ValueError, match="holds no images with people's numbers as labels"):
        RecordFaces(str(rec), train=1.0, val=0.0)


def test_images_of_another_shape_or_none_are_named(tmp_path: Path) -> None:
    records = {1: labelled([0], jpeg(0, 0)), 2: labelled([0], jpeg(0, 1, 56)), 3: labelled([1], b"not an image")}
    faces = RecordFaces(str(write_records(tmp_path / "faces", records)), train=1.0, val=0.0)
    with pytest.raises(
        ValueError, match=r"image 0/2 of .*train\.rec has 56 x 56 pixels, but the first image 112 x 112"
    ):
        faces.image(1)
    with pytest.raises(ValueError, match=r"cannot read image 1/3 of .*train\.rec as an image"):
        faces.image(2)


@pytest.mark.parametrize(("train", "val"), [(0.0, 0.5), (0.9, 0.2), (0.5, -0.1)])
def test_impossible_shares_are_refused(rec: Path, train: float, val: float) -> None:
    with pytest.raises(ValueError, match="choose train above 0, val from 0, and a sum of 1 at most"):
        _faces(rec, train, val)


def test_a_share_that_no_one_falls_into_is_refused(rec: Path) -> None:
    with pytest.raises(
        ValueError, match=r"of 12 people none falls into val \(train 0\.99, val 0\.01, seed 0\): .* or set val to 0"
    ):
        RecordFaces(str(rec))
