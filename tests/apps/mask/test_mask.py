"""`deocc mask`: masks sit on the faces, all else is bit-equal, every input has its row, and nothing is overwritten."""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deocc.commands.mask import main, mask_photo
from deocc.detection import Detector, create_detector
from deocc.inference import faces
from deocc.inference.faces import FaceFinder
from deocc.inference.photos import read_photo
from deocc.masking import list_kinds
from tests.apps.photos.scenes import ONE, TWO, Pasted, draw_scene

_TURNED = (Pasted(7, 180, 60, 220, -30),)


@pytest.fixture
def detector(dlib_detector: Detector) -> Detector:
    return dlib_detector


@pytest.fixture(autouse=True)
def _read_once(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector's 100 MB of weights are not read for every command."""

    def create(name: str, weights: str | None = None) -> Detector:
        return detector if (name, weights) == ("dlib", None) else create_detector(name, weights)

    monkeypatch.setattr(faces, "create_detector", create)


@pytest.fixture
def finder() -> FaceFinder:
    return FaceFinder(64, every=True)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of one photo."""
    (tmp_path / "in").mkdir()
    draw_scene(ONE).save(tmp_path / "in/one.png")
    return tmp_path / "in"


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "masks.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def _files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def _at(mask: NDArray[np.uint8], points: NDArray[np.float64]) -> list[int]:
    return [int(mask[round(y), round(x)]) for x, y in points]


@pytest.mark.parametrize("pasted", [ONE, TWO, _TURNED], ids=["one", "two", "turned"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_surgical_mask_covers_mouths_and_not_eyes(finder: FaceFinder, pasted: Sequence[Pasted], mode: str) -> None:
    photo = read_photo(draw_scene(pasted).convert(mode))
    found = finder.find(photo)
    masked = mask_photo(photo, found, "surgical", list(range(len(found))))
    assert len(masked.covered) == len(pasted) and masked.photo.shape == photo.shape
    for face in pasted:
        points = face.landmarks()
        assert _at(masked.mask, points)[:2] == [0, 0]
        assert _at(masked.mask, points)[3:] == [1, 1]
        assert _at(masked.mask, points[3:].mean(0, keepdims=True)) == [1]
    np.testing.assert_array_equal(masked.photo[masked.mask == 0], photo[masked.mask == 0])
    changed = (masked.photo != photo).any(2)
    assert changed[masked.mask == 1].mean() > 0.9
    if mode == "L":
        assert (masked.photo == masked.photo[..., :1]).all()  # grey stays grey


@pytest.mark.parametrize("kind", list_kinds())
def test_every_kind_stays_near_its_face(finder: FaceFinder, kind: str) -> None:
    photo = np.asarray(draw_scene((Pasted(2, 700, 100, 120),), 1600, 900))
    masked = mask_photo(photo, finder.find(photo), kind, [3])
    rows, columns = np.nonzero(masked.mask)
    assert (
        columns.min() > 450 and columns.max() < 1070 and rows.max() < 430
    )  # 2.8 eye distances to the sides and 3.1 down
    np.testing.assert_array_equal(masked.photo[masked.mask == 0], photo[masked.mask == 0])


def test_a_mask_is_as_sharp_as_its_photo(finder: FaceFinder) -> None:
    small, large = (np.asarray(draw_scene((Pasted(0, 30 * k, 10 * k, 100 * k),), 160 * k, 150 * k)) for k in (1, 6))
    fine = mask_photo(large, finder.find(large), "surgical", [5])
    coarse = mask_photo(small, finder.find(small), "surgical", [5])
    grown = np.kron(coarse.mask, np.ones((6, 6), np.uint8))
    both = float((grown & fine.mask).sum() / (grown | fine.mask).sum())
    assert both > 0.85  # the same shape
    edges = (
        np.abs(np.diff(fine.mask.astype(int), axis=1)).sum() / np.abs(np.diff(coarse.mask.astype(int), axis=1)).sum()
    )
    assert 5 < edges < 8  # and an edge for every row of the finer photo


def test_one_photo_gives_copy_mask_crops_and_row(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos.parent / "out"
    assert main([str(photos), "--out", str(out), "--crops"]) == 0
    clean, mask = _pixels(photos / "one.png"), _pixels(out / "masks/one-surgical.png")
    masked = _pixels(out / "masked_photos/one-surgical.png")
    assert set(np.unique(mask)) == {0, 255} and mask.shape == clean.shape[:2]
    np.testing.assert_array_equal(masked[mask == 0], clean[mask == 0])
    crop, crop_mask = _pixels(out / "crops/one-surgical-1.png"), _pixels(out / "crops/one-surgical-1-mask.png")
    assert crop.shape == (256, 256, 3) and crop_mask.shape == (256, 256) and set(np.unique(crop_mask)) == {0, 255}
    assert crop_mask[190, 128] == 255 and crop_mask[109, 91] == 0  # the mouth, an eye
    (row,) = _rows(out)
    assert (row["photo"], row["face"], row["status"], row["kind"]) == (str(photos / "one.png"), "1", "done", "surgical")
    assert int(row["covered_pixels"]) == (mask == 255).sum() and row["detector"] == "mtcnn"
    assert all((out / row[name]).is_file() for name in ("output", "mask", "crop"))
    assert capsys.readouterr().out == f"deocc mask: 1 of 1 done: see {out}/masks.csv\n"


def test_every_bad_input_has_its_row_and_the_rest_is_done(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "text.jpg").write_text("no image")
    (photos / "cut.png").write_bytes((photos / "one.png").read_bytes()[:2000])
    Image.new("RGB", (1, 1)).save(photos / "dot.png")
    out = photos.parent / "out"
    assert main([str(photos / "gone.jpg"), str(photos), "--out", str(out)]) == 1
    by_name = {Path(row["photo"]).name: row for row in _rows(out)}
    assert {name for name, row in by_name.items() if row["status"] == "done"} == {"one.png"}
    needles = {"gone.jpg": "no photo", "text.jpg": "not an image", "cut.png": "cannot read", "dot.png": "no face found"}
    assert all(needle in by_name[name]["reason"] for name, needle in needles.items())
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 4 and "1 of 5 done, 4 left out" in told.out


def test_all_faces_and_random_kinds(photos: Path) -> None:
    draw_scene(TWO).save(photos / "two.png")
    out = photos.parent / "out"
    words = [str(photos / "two.png"), "--kind", "random", "--all", "--out"]
    assert main([*words, str(out)]) == 0 and main([*words, str(out) + "2", "--seed", "1"]) == 0
    rows = _rows(out)
    assert [row["face"] for row in rows] == ["1", "2"] and {row["kind"] for row in rows} <= set(list_kinds())
    assert _files(out)["masks/two-random.png"] != _files(Path(str(out) + "2"))["masks/two-random.png"]


def test_equal_names_do_not_meet_and_folders_keep_their_shape(photos: Path) -> None:
    for name in ("a/x.png", "b/x.png"):
        (photos / name).parent.mkdir()
        shutil.copy(photos / "one.png", photos / name)
    out = photos / "out"
    assert main([str(photos / "a/x.png"), str(photos / "b/x.png"), str(photos), "--out", str(out)]) == 0
    names = {name for name in _files(out) if name.startswith("masks/")}
    assert names == {"masks/x-surgical.png", "masks/x-2-surgical.png", "masks/one-surgical.png"}


def test_a_second_run_makes_only_what_is_missing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_scene(_TURNED).save(photos / "turned.png")
    out = photos.parent / "out"
    words = [str(photos), "--kind", "cloth", "--out", str(out)]
    assert main(words) == 0
    before, rows = _files(out), _rows(out)
    (out / "masks/turned-cloth.png").unlink()
    looked: list[str] = []
    find = FaceFinder.find

    def noting(self: FaceFinder, photo: NDArray[np.uint8], name: str) -> object:
        looked.append(Path(name).name)
        return find(self, photo, name)

    monkeypatch.setattr(FaceFinder, "find", noting)
    assert main(words) == 0
    assert looked == ["turned.png"]
    assert _files(out) == before and _rows(out) == rows
    (out / "masks.csv").unlink()  # a list that was lost comes back, without a conflict with the files
    assert main(words) == 0
    assert _files(out) == before and _rows(out) == rows


def test_a_further_kind_joins_the_list(photos: Path) -> None:
    out = photos.parent / "out"
    for kind in ("cloth", "box"):
        assert main([str(photos), "--kind", kind, "--out", str(out)]) == 0
    assert [row["kind"] for row in _rows(out)] == ["cloth", "box"]


def test_files_of_other_photos_or_settings_are_never_overwritten(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = photos.parent / "out"
    assert main([str(photos), "--out", str(out)]) == 0
    before = _files(out)
    assert main([str(photos), "--out", str(out), "--seed", "7"]) == 1
    draw_scene(_TURNED).save(photos / "one.png")
    assert main([str(photos), "--out", str(out)]) == 1
    assert _files(out) == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(
        "made from another photo or with other settings: choose another --out" in line for line in lines
    )
    statuses = [row["status"] for row in _rows(out)]
    assert statuses == ["done", "left out"]


def test_aligned_crops_need_no_detector(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "create_detector", None)
    Image.fromarray(np.full((112, 112, 3), 130, np.uint8)).save(photos / "crop.png")
    out = photos.parent / "out"
    assert main([str(photos), "--aligned", "arcface112", "--kind", "surgical", "--out", str(out)]) == 1
    left_out, done = sorted(_rows(out), key=lambda row: row["status"], reverse=True)
    assert "one.png is 640 x 420 pixels, arcface112 crops have the shape 112 x 112" in left_out["reason"]
    mask = _pixels(out / done["mask"])
    assert mask[92, 42] == mask[92, 56] == mask[92, 70] == 255 and mask[51, 38] == mask[51, 73] == 0


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["in", "--kind", "veil", "--out", "out"], "'veil': choose from surgical"),
        (["in"], "--out"),
        (["--out", "out"], "PHOTOS"),
        (["in", "--out", "in"], "is the folder of the photos"),
        (["in", "--out", "in/one.png"], "is a file: choose a folder"),
        (["in", "--out", "out", "--aligned", "vgg"], "arcface112"),
        (["in", "--out", "out", "--detector", "retina"], "dlib"),
        (["in", "--out", "out", "--detector", "yunet"], "needs weights"),
        (["in", "--out", "out", "--seed", "x"], "--seed"),
    ],
)
def test_wrong_words_are_one_line_and_write_nothing(
    words: list[str], needle: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    with pytest.raises(ValueError, match=needle) as error:
        main(words)
    assert "\n" not in str(error.value)
    assert not Path("out").exists()
