"""`deocc predict PHOTOS`: the files are what the model gives, all else of a photo is bit-equal, every input has its row."""

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deocc.commands import predict as sheets
from deocc.commands.predict import main
from deocc.inference.faces import FaceFinder
from deocc.inference.network import FaceNetwork, FaceOutput
from deocc.inference.photos import read_photo
from deocc.inference.pipeline import Pipeline
from deocc.networks import Deoccluder
from tests.apps.photos.scenes import ONE, TWO, draw_scene
from tests.apps.real_model import SIZE, cover


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of one photo of one person and one of two."""
    (tmp_path / "in").mkdir()
    draw_scene(ONE).save(tmp_path / "in/one.png")
    draw_scene(TWO).save(tmp_path / "in/two.png")
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def _run(model: Path, out: Path, *words: Path | str) -> int:
    return main([*map(str, words), "--out", str(out), "--checkpoint", str(model), "--detector", "dlib"])


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def _files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_the_files_of_a_face_are_what_the_model_gives(
    model: Path, pipeline: Pipeline, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cover(monkeypatch, 0.5)
    assert _run(model, out, photos / "one.png") == 0
    (face,) = FaceFinder(SIZE, "dlib").find(read_photo(photos / "one.png"))
    expected = pipeline.process_faces(face.face[None])
    mask = _pixels(out / "masks/one-1.png")
    assert (mask[: SIZE // 2] == 0).all() and (mask[SIZE // 2 :] == 255).all() and mask.shape == (SIZE, SIZE)
    for folder, image in (("faces", face.face), ("completed", expected.completed_face[0])):
        written = torch.from_numpy(_pixels(out / folder / "one-1.png").copy()).permute(2, 0, 1) / 127.5 - 1
        assert (written - image).abs().max() <= 0.5 / 127.5 + 1e-6
    with np.load(out / "embeddings.npz") as content:
        np.testing.assert_allclose(content["embedding"], expected.embedding.numpy(), atol=1e-6)
        assert (content["name"].tolist(), content["face"].tolist()) == (["one-1"], [1])
        assert content["photo"].tolist() == [str(photos / "one.png")]
    (row,) = _rows(out)
    assert (row["status"], row["face"], row["masked"], row["embedding"]) == ("done", "1", "yes", "one-1")
    assert 0.2 < float(row["visible"]) < 0.7
    assert all((out / row[name]).is_file() for name in ("output", "mask", "completed_face"))


def test_a_soft_mask_is_written_in_grey(model: Path, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deoccluder, "predict_mask", lambda _, face: torch.full_like(face[:, :1], 0.25))
    assert _run(model, out, photos / "one.png") == 0
    assert (_pixels(out / "masks/one-1.png") == 64).all() and _rows(out)[0]["visible"] == "0.75"


def test_the_completed_photo_changes_where_the_mask_is_and_nowhere_else(
    model: Path, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cover(monkeypatch, 0.5)
    assert _run(model, out, photos / "one.png") == 0
    before, after = _pixels(photos / "one.png"), _pixels(out / "completed_photos/one.png")
    assert after.shape == before.shape
    (face,) = FaceFinder(SIZE, "dlib").find(before)
    rows, columns = np.indices(before.shape[:2])
    matrix = face.matrix.numpy()
    u, v = (matrix[axis, 0] * columns + matrix[axis, 1] * rows + matrix[axis, 2] for axis in (0, 1))
    inside = (u > 0) & (u < SIZE - 1) & (v > SIZE / 2) & (v < SIZE - 1)
    outside = (u < -1) | (u > SIZE) | (v < SIZE / 2 - 1) | (v > SIZE)
    np.testing.assert_array_equal(after[outside], before[outside])
    assert (after[inside] != before[inside]).any(1).mean() > 0.95
    shown = _pixels(out / "completed/one-1.png")[v[inside].round().astype(int), u[inside].round().astype(int)]
    assert np.abs(shown.astype(int) - after[inside]).mean() < 10  # the nearest pixel of a crop as fine as the photo


def test_a_face_of_which_nothing_is_covered_leaves_the_photo_as_it_is(model: Path, photos: Path, out: Path) -> None:
    assert _run(model, out, photos) == 0
    for name in ("one", "two"):
        np.testing.assert_array_equal(_pixels(out / f"completed_photos/{name}.png"), _pixels(photos / f"{name}.png"))
    assert {(row["masked"], row["visible"]) for row in _rows(out)} == {("no", "1.0")}


def test_all_faces_are_embedded_and_parquet_says_the_same(model: Path, photos: Path, out: Path) -> None:
    import pyarrow.parquet

    assert _run(model, out, photos, "--all", "--parquet") == 0
    with np.load(out / "embeddings.npz") as content:
        names, embeddings = content["name"].tolist(), content["embedding"]
    assert names == ["one-1", "two-1", "two-2"] and embeddings.shape == (3, 128)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    similarity = embeddings @ embeddings.T
    assert (
        similarity[0, 2] > 0.9 and similarity[0, 1] < 0.3
    )  # the person of the first photo is the smaller face of the second
    table = pyarrow.parquet.read_table(out / "embeddings.parquet")
    assert table.column("name").to_pylist() == names and table.column("face").to_pylist() == [1, 1, 2]
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist(), np.float32), embeddings)


def test_bad_photos_are_a_line_and_a_row_each_and_the_rest_is_done(
    model: Path, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "text.jpg").write_text("no image")
    draw_scene(ONE).save(photos / "cut.jpg")
    (photos / "cut.jpg").write_bytes((photos / "cut.jpg").read_bytes()[:2000])
    Image.new("RGB", (1, 1)).save(photos / "dot.png")
    draw_scene(()).save(photos / "empty.png")
    assert _run(model, out, photos, photos / "gone.png") == 1
    status = {Path(row["photo"]).name: row["status"] for row in _rows(out)}
    bad = dict.fromkeys(("text.jpg", "cut.jpg", "dot.png", "empty.png", "gone.png"), "left out")
    assert status == {"one.png": "done", "two.png": "done", **bad}
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 5
    assert "deocc predict: 2 of 7 done, 5 left out" in told.out and "embeddings of 2 faces" in told.out


def test_a_second_run_makes_only_what_is_missing(
    model: Path, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(model, out, photos, "--all") == 0
    before = _files(out)
    (out / "masks/two-2.png").unlink()
    seen: list[int] = []
    forward = FaceNetwork.forward

    def noting(self: FaceNetwork, face: torch.Tensor, mask: torch.Tensor | None = None) -> FaceOutput:
        seen.append(len(face))
        return forward(self, face, mask)

    monkeypatch.setattr(FaceNetwork, "forward", noting)
    assert _run(model, out, photos, "--all") == 0
    assert seen == [2]
    same = [name for name in before if name != "embeddings.npz"]
    assert {name: _files(out)[name] for name in same} == {name: before[name] for name in same}
    (out / "embeddings.npz").unlink()
    assert _run(model, out, photos, "--all") == 0
    assert seen == [2, 1, 2] and (out / "embeddings.npz").is_file()


def test_what_was_done_before_ctrl_c_is_kept(
    model: Path, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = FaceFinder.find

    def stopping(self: FaceFinder, photo: NDArray[np.uint8], name: str = "") -> object:
        if name.endswith("two.png"):
            raise KeyboardInterrupt
        return find(self, photo, name)

    monkeypatch.setattr(FaceFinder, "find", stopping)
    with pytest.raises(KeyboardInterrupt):
        _run(model, out, photos)
    with np.load(out / "embeddings.npz") as content:
        assert content["name"].tolist() == ["one-1"]
    assert [row["embedding"] for row in _rows(out)] == ["one-1"]


def test_results_of_other_photos_settings_or_models_are_never_overwritten(
    model: Path, photos: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(model, out, photos / "two.png") == 0
    before = _files(out)
    assert _run(model, out, photos / "two.png", "--all") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "was made from another photo, model or setting: choose another --out" in line
    changed = {name for name in before if _files(out)[name] != before[name]}
    assert changed == {"predictions.csv"}
    other = Path(shutil.copytree(model, tmp_path / "other"))
    content = (other / "config.json").read_text()
    (other / "config.json").write_text(content.replace('"student_input": "completed"', '"student_input": "masked"'))
    with pytest.raises(ValueError, match="embeddings of another model"):
        _run(other, out, photos)


def test_pages_hold_twelve_faces_and_are_drawn_again_only_where_they_changed(
    model: Path, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = FaceFinder(SIZE, "dlib").find(read_photo(photos / "one.png"))[0].face
    crop = Image.fromarray(((face.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())
    (photos / "one.png").unlink()
    (photos / "two.png").unlink()
    for number in range(13):
        crop.point([min(255, value + number) for value in range(256)] * 3).save(photos / f"{number:02}.png")
    words = [str(photos), "--out", str(out), "--checkpoint", str(model), "--aligned", "canonical"]
    assert main(words) == 0
    pages = sorted((out / "contact_sheets").iterdir())
    assert [page.name for page in pages] == ["001.png", "002.png"]
    first, second = map(_pixels, pages)
    assert first.shape == (12 * (SIZE + 4) + 24, 3 * (SIZE + 4) + 110, 3) and second.shape[0] == SIZE + 4 + 24
    for column, folder in enumerate(("faces", "masks", "completed")):
        left = 110 + 2 + column * (SIZE + 4)
        for page, row, name in ((first, 0, "00-1"), (first, 11, "11-1"), (second, 0, "12-1")):
            top = 24 + 2 + row * (SIZE + 4)
            picture = np.asarray(Image.open(out / folder / f"{name}.png").convert("RGB"))
            np.testing.assert_array_equal(page[top : top + SIZE, left : left + SIZE], picture)
    monkeypatch.setattr(sheets, "panel_image", lambda *_: pytest.fail("drew a page again"))
    assert main(words) == 0


def test_a_file_in_the_place_of_a_page_stays(model: Path, photos: Path, out: Path) -> None:
    (out / "contact_sheets").mkdir(parents=True)
    Image.new("RGB", (3, 3)).save(out / "contact_sheets/001.png")
    with pytest.raises(OSError, match="is no contact sheet of an earlier run"):
        _run(model, out, photos)
    assert _pixels(out / "contact_sheets/001.png").shape == (3, 3, 3)


@pytest.mark.parametrize("name", ["price$1$.png", "中文.png", b"caf\xe9.png".decode("utf-8", "surrogateescape")])
def test_a_name_that_is_no_ordinary_text_survives(model: Path, photos: Path, out: Path, name: str) -> None:
    (photos / "one.png").rename(photos / name)
    (photos / "two.png").unlink()
    assert _run(model, out, photos, "--parquet") == 0
    stem = name.removesuffix(".png")
    with np.load(out / "embeddings.npz") as content:
        assert content["name"].tolist() == [f"{stem}-1"]
    assert (out / f"completed_photos/{name}").is_file() and (out / "contact_sheets/001.png").is_file()
    assert _run(model, out, photos) == 0


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_a_file_that_holds_no_embeddings_is_not_touched(model: Path, photos: Path, out: Path, content: bytes) -> None:
    out.mkdir()
    (out / "embeddings.npz").write_bytes(content)
    with pytest.raises(ValueError, match="holds no embeddings of an earlier run"):
        _run(model, out, photos)
    assert (out / "embeddings.npz").read_bytes() == content


def test_an_untested_model_says_nothing_of_masked(untested_model: Path, photos: Path, out: Path) -> None:
    assert _run(untested_model, out, photos / "one.png") == 0
    (row,) = _rows(out)
    assert row["visible"] == "1.0" and "masked" not in row


def test_parquet_without_its_package_is_one_line_before_the_work(
    model: Path, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pyarrow: pip install \"deocc\[parquet\]\""):
        _run(model, out, photos, "--parquet")
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["in"], "--out"),
        (["--out", "out"], "PHOTOS"),
        (["in", "--out", "in"], "is the folder of the photos"),
        (["in", "--out", "in/one.png"], "is a file: choose a folder"),
        (["in", "--out", "out", "--device", "quantum"], "--device quantum cannot be used"),
        (["in", "--out", "out", "--checkpoint", "nowhere"], "no model at nowhere"),
        (["in", "--out", "out"], "no pretrained model"),
    ],
)
def test_wrong_words_are_one_line_and_write_nothing(
    words: list[str], needle: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    with pytest.raises((ValueError, FileNotFoundError), match=needle) as error:
        main(words)
    assert "\n" not in str(error.value)
    assert not Path("out").exists()
