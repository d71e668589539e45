"""AR: which files are shots, what they show, galleries, and messages for missing shots."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deocc.data import MaskedFaceDataModule, ar
from deocc.data.ar import ArFaces
from deocc.data.landmarks import FoundLandmarks
from deocc.evaluation.protocol import Galleries
from deocc.geometry import TEMPLATES
from deocc.masking import list_kinds
from tests.fake_sets.ar import ORIGINAL, write_ar


@pytest.fixture(autouse=True)
def _without_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landmarks of the template: what a detector finds has its own test."""

    def find(root: Path, names: Sequence[str], *_: object) -> FoundLandmarks:
        points = TEMPLATES["canonical"].tensor(120).double().numpy()
        return FoundLandmarks(names, np.stack([points] * len(names)), np.full((len(names), 2), 120))

    monkeypatch.setattr(ar, "find_landmarks", find)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ar(tmp_path_factory.mktemp("ar"))


def _gallery(faces: ArFaces, name: str) -> list[str]:
    assert isinstance(faces.protocol, Galleries)
    return [faces.names[index] for index in faces.protocol.galleries[name].tolist()]


def test_shots_people_and_occluders(root: Path) -> None:
    faces = ArFaces(str(root))
    bare, glasses, scarf = -1, list_kinds().index("sunglasses"), list_kinds().index("scarf")
    session = [bare] * 7 + [glasses] * 3 + [scarf] * 3
    assert faces.names[:26] == [f"m-001-{shot:02d}" for shot in range(1, 27)]
    assert faces.occluder is not None
    assert faces.occluder.tolist() == session * 2 * 3

    assert faces.identity_names == ["m-001", "m-002", "w-001"]
    assert faces.identity.tolist() == [person for person in range(3) for _ in range(26)]
    assert faces.split_of_identity == {0: "test", 1: "test", 2: "test"}
    assert faces.image(0).shape == (165, 120, 3)
    assert "78 of 78 shots of 3 people" in faces.credit


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("M-007-04.BMP", "m-007-04"),
        ("W-007-4.png", "w-007-04"),
        ("m-7-11.jpg", "m-007-11"),
        ("F-052-26.ppm", "w-052-26"),
        ("women/second session/w-007-14.tif", "w-007-14"),
    ],
)
def test_names_of_shots(tmp_path: Path, root: Path, file: str, name: str) -> None:
    person = name[:5]
    write_ar(tmp_path, (person,), [shot for shot in (1, 11, 24) if shot != int(name[-2:])])
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "m-001-01.bmp", tmp_path / file)
    assert name in ArFaces(str(tmp_path)).names


def test_other_files_are_no_shots(tmp_path: Path, root: Path) -> None:
    write_ar(tmp_path, ("m-001",), (1, 8))
    for other in ("m-001-27.bmp", "m-001-00.bmp", "x-001-02.bmp", "m-001-02-copy.bmp"):
        shutil.copy(root / "m-001-02.bmp", tmp_path / other)
    (tmp_path / "m-001-02.txt").write_text("neutral")
    assert ArFaces(str(tmp_path)).names == ["m-001-01", "m-001-08"]


def test_raw_files_equal_converted_images(tmp_path: Path) -> None:
    raw, bmp = (
        ArFaces(str(write_ar(tmp_path / suffix, people=("m-001",), shots=(1, 8), size=ORIGINAL, suffix=f".{suffix}")))
        for suffix in ("raw", "bmp")
    )
    assert raw.image(1).shape == (576, 768, 3)
    assert all(np.array_equal(raw.image(index), bmp.image(index)) for index in range(2))


def test_raw_file_of_another_size_is_named(tmp_path: Path) -> None:
    write_ar(tmp_path, ("m-001",), (1, 8), ORIGINAL, ".raw")
    (tmp_path / "m-001-01.raw").write_bytes(b"short")
    faces = ArFaces(str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"m-001-01\.raw has 5 bytes, but a \.raw file of AR has 1,327,104.*: copy it again, or convert",
    ):
        faces.image(0)


def test_galleries_of_both_protocols(root: Path) -> None:
    faces = ArFaces(str(root))
    assert isinstance(faces.protocol, Galleries)
    assert list(faces.protocol.galleries) == ["protocol2", "protocol1"]
    people = ("m-001", "m-002", "w-001")
    assert _gallery(faces, "protocol2") == [f"{person}-01" for person in people]
    assert _gallery(faces, "protocol1") == [f"{person}-{shot:02d}" for person in people for shot in (1, 5, 6, 7)]
    other = ArFaces(str(root), protocol1_shots=(2, 1, 14))
    assert _gallery(other, "protocol1")[:3] == ["m-001-01", "m-001-02", "m-001-14"]
    assert _gallery(other, "protocol2") == _gallery(faces, "protocol2")


@pytest.mark.parametrize("shots", [(), (1, 8), (24,), (0,), (27,)])
def test_bad_gallery_shots_are_refused(root: Path, shots: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"protocol1_shots is \[.*\]: choose bare shots, that is some of 1, 2, .*7, 14, .*20$"
    ):
        ArFaces(str(root), protocol1_shots=shots)


def test_other_session_replaces_missing_shots(tmp_path: Path) -> None:
    write_ar(tmp_path, ("m-001",), (1, 6, 8))
    write_ar(tmp_path, ("w-001",), range(14, 27))
    faces = ArFaces(str(tmp_path))
    assert _gallery(faces, "protocol2") == ["m-001-01", "w-001-14"]
    assert _gallery(faces, "protocol1") == ["m-001-01", "m-001-06", "w-001-14", "w-001-18", "w-001-19", "w-001-20"]
    assert "16 of 52 shots of 2 people" in faces.credit


def test_datamodule_embeds_bare_and_occluded(root: Path) -> None:
    faces = ArFaces(str(root))
    module = MaskedFaceDataModule(faces, size=32, eval_batch_size=8)
    clean, occluded = (
        [index for batch in loader for index in batch["index"].tolist()] for loader in module.test_dataloader()
    )
    assert faces.occluder is not None
    assert {faces.names[index] for index in clean} >= set(_gallery(faces, "protocol1"))
    assert (faces.occluder[clean] < 0).all()
    assert occluded == np.flatnonzero(faces.occluder >= 0).tolist()
    first = next(iter(module.test_dataloader()[1]))
    assert first["kind"].tolist() == faces.occluder[first["index"].numpy()].tolist()


def test_people_without_gallery_are_named(tmp_path: Path) -> None:
    write_ar(tmp_path, ("m-001", "m-002"), (1, 8))
    write_ar(tmp_path, ("w-003", "w-004"), (2, 8))
    expected = (
        r"^2 of 4 AR gallery images \(shot 1 or 14 of a person\) are missing in .* "
        r"\(w-003-01, w-004-01\): ask for access"
    )
    with pytest.raises(FileNotFoundError, match=expected) as error:
        ArFaces(str(tmp_path))
    assert "\n" not in str(error.value)


def test_set_without_probes_is_refused(tmp_path: Path) -> None:
    write_ar(tmp_path, ("m-001", "m-002"), (1, 2))
    with pytest.raises(
        FileNotFoundError,
        match=r"12 of 12 AR shots with sunglasses or scarf .* \(m-001-08, m-001-09, m-001-10, \.\.\.\)",
    ):
        ArFaces(str(tmp_path))


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_folder_without_shots_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=rf"no AR image below .*{folder}: looked for m-001-01\.bmp .*; ask for access"
    ):
        ArFaces(str(tmp_path / folder))


def test_same_shot_twice_is_refused(tmp_path: Path) -> None:
    write_ar(tmp_path, ("m-001",), (1, 8))
    write_ar(tmp_path / "more", ("M-001",), (8,), suffix=".png")
    with pytest.raises(
        ValueError, match=r"shot 8 of m-001 is there twice, .*m-001-08\.bmp and .*M-001-08\.png: keep one copy"
    ):
        ArFaces(str(tmp_path))


def test_fingerprint_depends_on_sizes(tmp_path: Path, root: Path) -> None:
    larger = write_ar(tmp_path, ("m-001", "m-002", "w-001"), size=(240, 330))
    assert (
        ArFaces(str(root)).fingerprint("test")
        == ArFaces(str(root)).fingerprint("test")
        != ArFaces(str(larger)).fingerprint("test")
    )
