"""Plain folders of aligned crops: who goes where, lazily read images, and errors that say what to do."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deocc.data import FolderFaces, MaskedFaceDataModule, folder
from deocc.data import landmarks as landmark_cache
from deocc.data.dataset import AlignedFaces
from deocc.data.face_set import SPLITS, split_people
from deocc.data.images import read_size
from deocc.data.loader import UnreadableImageError
from deocc.geometry import TEMPLATES
from tests.fake_sets.faces import orl_face, save_face

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """A function (people, images=2, size=(56, 56)) that draws random crops and returns their root."""

    def make(people: int, images: int = 2, size: tuple[int, int] = (56, 56)) -> Path:
        generator = np.random.default_rng(people)
        for person in range(people):
            folder = tmp_path / f"person{person:02d}"
            folder.mkdir(exist_ok=True)
            for number in range(images):
                Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
                    folder / f"{number}.png"
                )
        return tmp_path

    return make


def test_images_are_in_the_order_of_their_paths(make_folder: MakeFolder) -> None:
    root = make_folder(20)
    picture = (root / "person00" / "0.png").read_bytes()
    others = ("person 0/b.PNG", "person-0/a.x.png", "person00/A.png", "person00/.png", "person00/a.", "loose.png")
    for name in (*others, "person00/é/0.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(picture)
    (root / "person00" / "notes.txt").write_text("not an image")
    (root / "person00" / "gone.png").symlink_to(root / "nowhere.png")
    unused = r"3 files in .* are not used.*\(loose.png, person00/gone.png, person00/notes.txt\)"
    with pytest.warns(UserWarning, match=unused):
        faces = FolderFaces(str(root), seed=1)
    wanted = [path.relative_to(root) for path in root.glob("*/**/*") if path.is_file()]
    wanted = sorted(path for path in wanted if not path.name.startswith(".") and path.name != "notes.txt")
    assert list(faces.names) == [path.as_posix() for path in wanted]
    people = sorted({path.parts[0] for path in wanted})
    assert faces.identity.tolist() == [people.index(path.parts[0]) for path in wanted]
    np.testing.assert_array_equal(faces.image(10), np.asarray(Image.open(root / faces.names[10])))


def test_second_run_reads_no_unchanged_file(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(20)
    before = FolderFaces(str(root), seed=1)
    print_before, index = before.fingerprint("train"), int(before.indices("train")[0])
    assert before.fingerprint("test") != print_before
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)
        again = FolderFaces(str(root), seed=1)
        np.testing.assert_array_equal(again.landmarks, before.landmarks)
        assert again.fingerprint("train") == print_before
    with (root / again.names[index]).open("ab") as file:
        file.write(b"more")
    other = FolderFaces(str(root), seed=1)
    assert other.fingerprint("train") != print_before
    assert other.fingerprint("test") == before.fingerprint("test")


def test_fingerprint_is_that_of_a_copy(make_folder: MakeFolder, tmp_path_factory: pytest.TempPathFactory) -> None:
    faces = FolderFaces(str(make_folder(20)), seed=1)
    copy = FolderFaces(str(shutil.copytree(faces.root, tmp_path_factory.mktemp("copy") / "faces")), seed=1)
    assert copy.fingerprint("val") == faces.fingerprint("val")
    assert copy.quick_fingerprint("val") != faces.quick_fingerprint("val")


def test_unusable_cache_changes_nothing(
    make_folder: MakeFolder, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = str(make_folder(20)), tmp_path_factory.mktemp("kept") / "cache"
    monkeypatch.setenv("DEOCC_CACHE", str(cache))
    before = FolderFaces(root, seed=1)
    for kept in cache.rglob("*.npy"):
        kept.write_bytes(kept.read_bytes()[:20])
    np.testing.assert_array_equal(FolderFaces(root, seed=1).landmarks, before.landmarks)
    shutil.rmtree(cache)
    cache.write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match=r"cannot keep sides in .*: set DEOCC_CACHE"):
        again = FolderFaces(root, seed=1)
    np.testing.assert_array_equal(again.landmarks, before.landmarks)


def test_landmarks_are_the_scaled_template(make_folder: MakeFolder) -> None:
    root = make_folder(20)
    expected = (np.array(TEMPLATES["arcface"].points) + 0.5) / 2 - 0.5  # 112 to 56 pixels
    np.testing.assert_allclose(FolderFaces(str(root), seed=1).landmarks, np.stack([expected] * 40), atol=1e-4)
    assert not np.allclose(FolderFaces(str(root), aligned="dlib", seed=1).landmarks[0], expected, atol=0.5)


def test_adding_people_moves_no_one(make_folder: MakeFolder) -> None:
    before = _people(FolderFaces(str(make_folder(20)), seed=1))
    after = _people(FolderFaces(str(make_folder(60)), seed=1))
    assert set(after.values()) == set(SPLITS)
    assert before == {name: after[name] for name in before}
    assert 20 < sum(split == "train" for split in after.values()) < 50
    assert after != _people(FolderFaces(str(make_folder(60)), seed=2))


def _people(faces: FolderFaces) -> dict[str, str]:
    return {
        name.split("/")[0]: faces.split_of_identity[int(person)]
        for name, person in zip(faces.names, faces.identity, strict=True)
    }


def test_datamodule_takes_a_folder(make_folder: MakeFolder) -> None:
    module = MaskedFaceDataModule(FolderFaces(str(make_folder(20)), aligned="canonical", seed=1), size=56, batch_size=4)
    batch = next(iter(module.train_dataloader()))
    assert batch["face"].shape == (4, 3, 56, 56)
    clean = next(iter(module.reference_dataloader()))
    photograph = torch.tensor(module.face_set.image(int(clean["index"][0]))).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(clean["face"][0], photograph, atol=1e-2, rtol=0)  # same template and size: nothing moves


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_missing_or_empty_root(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty" / "person").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"no (folder at|image below) .*" + folder + r": (give|looked for PERSON/IMAGE)"
    ):
        FolderFaces(str(tmp_path / folder))


def test_empty_split_is_refused(make_folder: MakeFolder) -> None:
    root = str(make_folder(2))
    with pytest.raises(ValueError, match=r"of 2 people none falls into .*: at least 3 are needed: add people") as error:
        FolderFaces(root)
    assert "\n" not in str(error.value)
    root = str(make_folder(20))
    with pytest.raises(ValueError, match=r"none falls into val \(train 0\.6, val 0\.1, seed 0\): set seed to 1$"):
        FolderFaces(root)
    assert set(_people(FolderFaces(root, seed=1)).values()) == set(SPLITS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({"train": train, "val": val}, "choose shares above 0 whose sum is below 1")
            for train, val in [(0.9, 0.1), (0.0, 0.1), (0.5, 0.0), (1.2, -0.3)]
        ),
        ({"aligned": "mtcnn"}, "unknown face template 'mtcnn'"),
        ({"detector": "none", "seed": 1}, "unknown face detector 'none': choose one of dlib"),
    ],
)
def test_bad_settings_are_refused(make_folder: MakeFolder, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FolderFaces(str(make_folder(20)), **settings)


def test_image_that_is_not_square_is_named(make_folder: MakeFolder) -> None:
    root = make_folder(20)
    make_folder(1, images=1, size=(40, 56))
    with pytest.raises(ValueError, match=r"person00/0\.png is 40 x 56 pixels: aligned crops are square"):
        FolderFaces(str(root), seed=1)


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "truncated"])
def test_unreadable_file_is_named_when_it_is_read(content: bytes | None, make_folder: MakeFolder) -> None:
    path = make_folder(20) / "person07" / "1.png"
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    faces = FolderFaces(str(path.parents[1]), seed=1)
    with pytest.raises(ValueError, match=r"cannot read .*person07/1\.png as an image"):
        faces.image(15)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten people with three photographs each, 120 x 90 pixels, and a cache of their own."""
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "cache"))
    for person in range(10):
        for number in range(3):
            save_face(tmp_path / "photos" / f"person{person:02d}" / f"{number}.png", person, number, 120, 90)
    return tmp_path / "photos"


def _photo_faces(root: Path) -> FolderFaces:
    return FolderFaces(str(root), train=0.5, val=0.25, seed=1, detector="dlib")


def test_photos_are_detected_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dlib")
    faces = _photo_faces(photos)
    known = np.stack([orl_face(int(name[6:8]), int(name[9]), 120, 90)[1] for name in faces.names])
    assert len(faces) == 30 and np.abs(faces.landmarks - known).max() < 9
    people = sorted({name.split("/")[0] for name in faces.names})
    assert list(faces.split_of_identity.values()) == split_people(people, 0.5, 0.25, 1)  # as of crops
    monkeypatch.setattr(landmark_cache, "create_detector", None)  # a second set reads what the first one kept
    np.testing.assert_array_equal(_photo_faces(photos).landmarks, faces.landmarks)
    module = MaskedFaceDataModule(faces, size=64, batch_size=4)
    assert next(iter(module.train_dataloader()))["face"].shape == (4, 3, 64, 64)


def test_photos_without_face_are_only_tested(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dlib")
    splits = _people(_photo_faces(photos))
    chosen = {split: sorted(name for name in splits if splits[name] == split) for split in SPLITS}
    blank = [
        f"{chosen['train'][0]}/1.png",
        *(f"{chosen['train'][1]}/{number}.png" for number in range(3)),
        f"{chosen['val'][0]}/0.png",
    ]
    tested = f"{chosen['test'][0]}/2.png"
    for name in (*blank[:-1], tested):
        Image.new("RGB", (120, 90), (90, 120, 150)).save(photos / name)
    (photos / blank[-1]).write_bytes(b"no image")
    monkeypatch.setattr(landmark_cache, "MOST", 0.1)
    fingerprints = set()
    for _ in range(2):  # told again when the landmarks are in the cache
        with pytest.warns(UserWarning) as told:
            faces = _photo_faces(photos)
        unreadable, left_out, stands_in = (str(warning.message) for warning in told)
        assert unreadable.startswith(f"1 of 30 images cannot be read ({blank[-1]}; the first: cannot read ")
        fitted = 3 * (len(chosen["train"]) + len(chosen["val"])) - 1
        assert re.fullmatch(
            rf"no face found in 4 of {fitted} images \(\S+, \S+, \S+, \.\.\.\): they are left out of .*", left_out
        )
        assert stands_in == f"no face found in 1 of {29 - fitted} images ({tested}): a mean face's landmarks stand in"
        assert {path.relative_to(photos).as_posix() for path in photos.glob("*/*")} - {*faces.names} == {*blank}
        assert (
            chosen["train"][1] not in _people(faces)
            and len(faces.split_of_identity) == len(set(faces.identity.tolist())) == 9
        )
        assert {name: splits[name] for name in splits if name != chosen["train"][1]} == _people(faces)
        assert np.isfinite(faces.landmarks).all() and len(faces.landmarks) == len(faces.names) == 25
        np.testing.assert_array_equal(faces.image(len(faces) - 1), np.asarray(Image.open(photos / faces.names[-1])))
        assert MaskedFaceDataModule(faces, size=64).num_identities == len(chosen["train"]) - 1
        fingerprints.add((faces.quick_fingerprint("train"), faces.fingerprint("val")))
    assert len(fingerprints) == 1


def test_unreadable_crop_is_read_when_it_can_be(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read error is not remembered: neither the size of the crop nor that it has none."""
    root, read = str(make_folder(20)), read_size
    expected = FolderFaces(root, seed=1).landmarks

    def fail(path: Path) -> tuple[int, int]:
        if path.name == "1.png" and path.parent.name == "person03":
            raise ValueError("the disk fails")
        return read(path)

    monkeypatch.setenv("DEOCC_CACHE", str(Path(root) / ".cache"))
    monkeypatch.setattr(folder, "read_size", fail)
    for _ in range(2):  # then from the cache
        faces = FolderFaces(root, seed=1)
        assert np.flatnonzero(np.isnan(faces.landmarks).any((1, 2))).tolist() == [faces.names.index("person03/1.png")]
        with pytest.raises(UnreadableImageError, match=r"person03/1\.png: "):
            AlignedFaces(faces, 56, 1)(faces.names.index("person03/1.png"))
    monkeypatch.setattr(folder, "read_size", read)
    np.testing.assert_array_equal(FolderFaces(root, seed=1).landmarks, expected)


def test_occluded_people_without_bare_image(make_folder: MakeFolder) -> None:
    """Their probes would have no gallery face; the other people are tested."""
    root = make_folder(20, images=3)
    tested = sorted(name for name, split in _people(FolderFaces(str(root), seed=1)).items() if split == "test")
    for number in range(3):
        (root / tested[0] / f"{number}.png").rename(root / tested[0] / f"{number}_masked.png")
    (root / tested[1] / "0.png").rename(root / tested[1] / "0_masked.png")
    with pytest.warns(UserWarning, match=rf"3 occluded images of test people without a bare .*{tested[0]}/0_masked"):
        faces = FolderFaces(str(root), seed=1, occluded="*_masked.png")
    assert len(faces) == len(faces.landmarks) == len(faces.identity) == 57 and faces.occluder is not None
    assert [faces.names[index] for index in np.flatnonzero(faces.occluder >= 0)] == [f"{tested[1]}/0_masked.png"]
    assert tested[0] not in _people(faces) and faces.fingerprint("test")


def test_no_photo_with_a_face(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEOCC_CACHE", str(tmp_path / "cache"))
    blind = SimpleNamespace(detect=lambda photo: [])
    monkeypatch.setattr(landmark_cache, "create_detector", lambda *_: blind)
    with (
        pytest.warns(UserWarning, match="no face found in"),
        pytest.raises(ValueError, match=r"none falls into train and val"),
    ):
        FolderFaces(str(make_folder(20)), seed=1, detector="dlib")
