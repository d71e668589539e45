import csv
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deocc.commands.mask import main, mask_photo
from deocc.inference import faces
from deocc.inference.faces import FaceFinder
from deocc.inference.photos import read_photo
from deocc.masking import list_kinds
from tests.scenes import ONE, ROTATED, TWO, Pasted, draw_scene, read_pixels

OUT = Path("out")


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder(64, every=True)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one photo in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    draw_scene(ONE).save("in/one.png")
    return Path("in")


def read_rows(out: Path = OUT) -> list[dict[str, str]]:
    with (out / "masks.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_files(out: Path = OUT) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.png"))}


@pytest.mark.parametrize("pasted", [ONE, TWO, ROTATED], ids=["one", "two", "rotated"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_mask_photo_covers_mouths(finder: FaceFinder, pasted: Sequence[Pasted], mode: str) -> None:
    photo = read_photo(draw_scene(pasted).convert(mode))
    found = finder.find(photo)
    masked = mask_photo(photo, found, "surgical", list(range(len(found))))
    assert len(masked.covered) == len(pasted)
    for face in pasted:
        points = face.landmarks()
        points = np.concatenate([points, points[3:].mean(0, keepdims=True)])  # the middle of the mouth
        covered = [int(masked.mask[round(y), round(x)]) for x, y in points]
        assert covered[:2] == [0, 0]
        assert covered[3:] == [1, 1, 1]
    np.testing.assert_array_equal(masked.photo[masked.mask == 0], photo[masked.mask == 0])
    assert (masked.photo != photo).any(2)[masked.mask == 1].mean() > 0.9
    if mode == "L":
        assert (masked.photo == masked.photo[..., :1]).all()  # grey stays grey


@pytest.mark.parametrize("kind", list_kinds())
def test_mask_photo_stays_near_the_face(finder: FaceFinder, kind: str) -> None:
    photo = np.asarray(draw_scene((Pasted(2, 700, 100, 120),), 1600, 900))
    masked = mask_photo(photo, finder.find(photo), kind, [3])
    rows, columns = np.nonzero(masked.mask)
    assert columns.min() > 450  # 2.8 eye distances to each side, and 3.1 down
    assert columns.max() < 1070
    assert rows.max() < 430
    np.testing.assert_array_equal(masked.photo[masked.mask == 0], photo[masked.mask == 0])


def test_mask_photo_is_as_sharp_as_the_photo(finder: FaceFinder) -> None:
    small, large = (np.asarray(draw_scene((Pasted(0, 30 * k, 10 * k, 100 * k),), 160 * k, 150 * k)) for k in (1, 6))
    (face,) = finder.find(large)
    linear, shift = face.matrix[:, :2], face.matrix[:, 2:]
    shift = shift + linear @ torch.full((2, 1), 2.5)  # the centre of pixel 0 is at 2.5 pixels of the large photo
    smaller = replace(face, matrix=torch.cat([6 * linear, shift], 1))
    fine = mask_photo(large, [face], "surgical", [5]).mask
    coarse = mask_photo(small, [smaller], "surgical", [5]).mask
    reached = fine.reshape(150, 6, 160, 6).max((1, 3))  # small pixels that the mask of the large photo touches
    assert float((reached & coarse).sum() / (reached | coarse).sum()) > 0.9  # the same shape
    edges = [np.abs(np.diff(mask.astype(int), axis=1)).sum() for mask in (fine, coarse)]
    assert 5 < edges[0] / edges[1] < 8  # an edge in each row of the finer photo


def test_mask_writes_copy_mask_crops_row(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["in", "--out", "out", "--crops"]) == 0
    clean, mask = read_pixels(photos / "one.png"), read_pixels(OUT / "masks/one-surgical.png")
    masked = read_pixels(OUT / "masked_photos/one-surgical.png")
    assert set(np.unique(mask)) == {0, 255}
    assert mask.shape == clean.shape[:2]
    np.testing.assert_array_equal(masked[mask == 0], clean[mask == 0])
    crop, crop_mask = (read_pixels(OUT / f"crops/one-surgical-1{end}.png") for end in ("", "-mask"))
    assert crop.shape == (256, 256, 3)
    assert crop_mask.shape == (256, 256)
    assert set(np.unique(crop_mask)) == {0, 255}
    assert (crop_mask[190, 128], crop_mask[109, 91]) == (255, 0)  # the mouth, an eye
    (row,) = read_rows()
    columns = ("photo", "face", "status", "kind", "detector")
    assert [row[name] for name in columns] == ["in/one.png", "1", "done", "surgical", "mtcnn"]
    assert int(row["covered_pixels"]) == (mask == 255).sum()
    assert all((OUT / row[name]).is_file() for name in ("output", "mask", "crop"))
    assert capsys.readouterr().out == "deocc mask: 1 of 1 done: see out/masks.csv\n"


def test_mask_leaves_out_bad_photos(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "text.jpg").write_text("no image")
    (photos / "cut.png").write_bytes((photos / "one.png").read_bytes()[:2000])
    Image.new("RGB", (1, 1)).save(photos / "dot.png")
    assert main(["gone.jpg", "in", "--out", "out"]) == 1
    by_name = {Path(row["photo"]).name: row for row in read_rows()}
    assert {name for name, row in by_name.items() if row["status"] == "done"} == {"one.png"}
    needles = {"gone.jpg": "no photo", "text.jpg": "not an image", "cut.png": "cannot read", "dot.png": "no face found"}
    assert all(needle in by_name[name]["reason"] for name, needle in needles.items())
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 4
    assert "1 of 5 done, 4 left out" in told.out


def test_mask_all_faces_at_random(photos: Path) -> None:
    draw_scene(TWO).save(photos / "two.png")
    argv = ["in/two.png", "--kind", "random", "--all", "--out"]
    assert main([*argv, "out"]) == 0
    assert main([*argv, "out2", "--seed", "1"]) == 0
    rows = read_rows()
    assert [row["face"] for row in rows] == ["1", "2"]
    assert {row["kind"] for row in rows} <= set(list_kinds())
    assert read_files()["masks/two-random.png"] != read_files(Path("out2"))["masks/two-random.png"]


def test_mask_numbers_equal_names(photos: Path) -> None:
    for name in ("a/x.png", "b/x.png"):
        (photos / name).parent.mkdir()
        shutil.copy(photos / "one.png", photos / name)
    assert main(["in/a/x.png", "in/b/x.png", "in", "--out", "in/out"]) == 0
    names = {name for name in read_files(photos / "out") if name.startswith("masks/")}
    assert names == {"masks/x-surgical.png", "masks/x-2-surgical.png", "masks/one-surgical.png"}


def test_mask_resumes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_scene(ROTATED).save(photos / "rotated.png")
    argv = ["in", "--kind", "cloth", "--out", "out"]
    assert main(argv) == 0
    before, rows = read_files(), read_rows()
    (OUT / "masks/rotated-cloth.png").unlink()
    searched: list[str] = []
    find = FaceFinder.find

    def record(self: FaceFinder, photo: NDArray[np.uint8], name: str) -> object:
        searched.append(Path(name).name)
        return find(self, photo, name)

    monkeypatch.setattr(FaceFinder, "find", record)
    assert main(argv) == 0
    assert searched == ["rotated.png"]
    assert (read_files(), read_rows()) == (before, rows)
    (OUT / "masks.csv").unlink()  # a lost table is restored, without a conflict with the files
    assert main(argv) == 0
    assert (read_files(), read_rows()) == (before, rows)


@pytest.mark.usefixtures("photos")
def test_mask_adds_a_kind() -> None:
    for kind in ("cloth", "box"):
        assert main(["in", "--kind", kind, "--out", "out"]) == 0
    assert [row["kind"] for row in read_rows()] == ["cloth", "box"]


def test_mask_never_overwrites(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["in", "--out", "out"]) == 0
    before = read_files()
    assert main(["in", "--out", "out", "--seed", "7"]) == 1
    draw_scene(ROTATED).save(photos / "one.png")
    assert main(["in", "--out", "out"]) == 1
    assert read_files() == before
    lines = capsys.readouterr().err.splitlines()
    message = "made from another photo or with other settings: choose another --out"
    assert len(lines) == 2
    assert all(message in line for line in lines)
    assert [row["status"] for row in read_rows()] == ["done", "left out"]


def test_mask_aligned_crops(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "create_detector", None)
    Image.fromarray(np.full((112, 112, 3), 130, np.uint8)).save(photos / "crop.png")
    assert main(["in", "--aligned", "arcface112", "--kind", "surgical", "--out", "out"]) == 1
    left_out, done = sorted(read_rows(), key=lambda row: row["status"], reverse=True)
    assert "one.png is 640 x 420 pixels, arcface112 crops have the shape 112 x 112" in left_out["reason"]
    mask = read_pixels(OUT / done["mask"])
    assert [mask[92, 42], mask[92, 56], mask[92, 70]] == [255] * 3
    assert [mask[51, 38], mask[51, 73]] == [0, 0]


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        ("in --kind veil --out out", "'veil': choose from surgical"),
        ("in", "--out"),
        ("--out out", "PHOTOS"),
        ("in --out in", "is the folder of the photos"),
        ("in --out in/one.png", "is a file: choose a folder"),
        ("in --out out --aligned vgg", "arcface112"),
        ("in --out out --detector retina", "dlib"),
        ("in --out out --detector yunet", "needs weights"),
        ("in --out out --seed x", "--seed"),
    ],
)
def test_mask_refuses(arguments: str, needle: str) -> None:
    with pytest.raises(ValueError, match=needle) as error:
        main(arguments.split())
    assert "\n" not in str(error.value)
    assert not OUT.exists()
