import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deocc.commands import predict
from deocc.commands.arguments import PARSERS
from deocc.commands.model import detection_of
from deocc.commands.predict import main
from deocc.inference import model_folder
from deocc.inference.faces import FaceFinder
from deocc.inference.network import FaceNetwork, FaceOutput
from deocc.inference.photos import read_photo
from deocc.inference.pipeline import Pipeline
from deocc.networks import Deoccluder
from tests.real_model import DIFFERENT, SIZE, cover
from tests.scenes import ONE, TWO, draw_scene, read_pixels

pytestmark = pytest.mark.usefixtures("shared_detector")
OUT = Path("out")


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo of one person and one of two, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    draw_scene(ONE).save("in/one.png")
    draw_scene(TWO).save("in/two.png")
    return Path("in")


def run(model: Path, *argv: str) -> int:
    return main([*argv, "--out", "out", "--checkpoint", str(model), "--detector", "dlib"])


def read_rows() -> list[dict[str, str]]:
    with (OUT / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_files() -> dict[str, bytes]:
    return {path.relative_to(OUT).as_posix(): path.read_bytes() for path in sorted(OUT.rglob("*")) if path.is_file()}


def test_predict_writes_the_models_results(
    model: Path, pipeline: Pipeline, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cover(monkeypatch, 0.5)
    assert run(model, "in/one.png") == 0
    (face,) = FaceFinder(SIZE, "dlib").find(read_photo(photos / "one.png"))
    expected = pipeline.process_faces(face.face[None])
    mask = read_pixels(OUT / "masks/one-1.png")
    assert mask.shape == (SIZE, SIZE)
    assert (mask[: SIZE // 2] == 0).all()
    assert (mask[SIZE // 2 :] == 255).all()
    for folder, image in (("faces", face.face), ("completed", expected.completed_face[0])):
        written = torch.from_numpy(read_pixels(OUT / folder / "one-1.png").copy()).permute(2, 0, 1) / 127.5 - 1
        assert (written - image).abs().max() <= 0.5 / 127.5 + 1e-6
    with np.load(OUT / "embeddings.npz") as content:
        np.testing.assert_allclose(content["embedding"], expected.embedding.numpy(), atol=1e-6)
        names = [content[name].tolist() for name in ("name", "face", "photo")]
        assert names == [["one-1"], [1], ["in/one.png"]]
    (row,) = read_rows()
    assert [row[name] for name in ("status", "face", "masked", "embedding")] == ["done", "1", "yes", "one-1"]
    assert 0.2 < float(row["visible"]) < 0.7
    assert all((OUT / row[name]).is_file() for name in ("output", "mask", "completed_face"))


def test_predict_writes_soft_masks(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deoccluder, "predict_mask", lambda _, face: torch.full_like(face[:, :1], 0.25))
    assert run(model, "in/one.png") == 0
    assert (read_pixels(OUT / "masks/one-1.png") == 64).all()
    assert read_rows()[0]["visible"] == "0.75"


def test_predict_changes_masked_pixels_only(model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cover(monkeypatch, 0.5)
    assert run(model, "in/one.png") == 0
    before, after = read_pixels(photos / "one.png"), read_pixels(OUT / "completed_photos/one.png")
    assert after.shape == before.shape
    (face,) = FaceFinder(SIZE, "dlib").find(before)
    rows, columns = np.indices(before.shape[:2])
    matrix = face.matrix.numpy()
    u, v = (matrix[axis, 0] * columns + matrix[axis, 1] * rows + matrix[axis, 2] for axis in (0, 1))
    inside = (u > 0) & (u < SIZE - 1) & (v > SIZE / 2) & (v < SIZE - 1)
    outside = (u < -1) | (u > SIZE) | (v < SIZE / 2 - 1) | (v > SIZE)
    np.testing.assert_array_equal(after[outside], before[outside])
    assert (after[inside] != before[inside]).any(1).mean() > 0.95
    shown = read_pixels(OUT / "completed/one-1.png")[v[inside].round().astype(int), u[inside].round().astype(int)]
    assert np.abs(shown.astype(int) - after[inside]).mean() < 10  # the nearest pixel of the crop


def test_predict_keeps_uncovered_photos(model: Path, photos: Path) -> None:
    assert run(model, "in") == 0
    for name in ("one.png", "two.png"):
        np.testing.assert_array_equal(read_pixels(OUT / "completed_photos" / name), read_pixels(photos / name))
    assert {(row["masked"], row["visible"]) for row in read_rows()} == {("no", "1.0")}


def test_predict_all_faces_to_parquet(model: Path) -> None:
    import pyarrow.parquet

    assert run(model, "in", "--all", "--parquet") == 0
    with np.load(OUT / "embeddings.npz") as content:
        names, embeddings = content["name"].tolist(), content["embedding"]
    assert names == ["one-1", "two-1", "two-2"]
    assert embeddings.shape == (3, 128)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    similarity = embeddings @ embeddings.T
    assert similarity[0, 2] > 0.9  # the smaller face of the second photo is the person of the first one
    assert similarity[0, 1] < DIFFERENT
    table = pyarrow.parquet.read_table(OUT / "embeddings.parquet")
    assert table.column("name").to_pylist() == names
    assert table.column("face").to_pylist() == [1, 1, 2]
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist(), np.float32), embeddings)


def test_predict_resumes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(model, "in", "--all") == 0
    before = read_files()
    (OUT / "masks/two-2.png").unlink()
    batches: list[int] = []
    forward = FaceNetwork.forward

    def record(self: FaceNetwork, face: torch.Tensor, mask: torch.Tensor | None = None) -> FaceOutput:
        batches.append(len(face))
        return forward(self, face, mask)

    monkeypatch.setattr(FaceNetwork, "forward", record)
    assert run(model, "in", "--all") == 0
    assert batches == [2]
    after = read_files()
    assert {name for name in before if after[name] != before[name]} <= {"embeddings.npz"}
    (OUT / "embeddings.npz").unlink()
    assert run(model, "in", "--all") == 0
    assert batches == [2, 1, 2]
    assert (OUT / "embeddings.npz").is_file()


def test_predict_keeps_results_on_interrupt(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = FaceFinder.find

    def interrupt(self: FaceFinder, photo: NDArray[np.uint8], name: str = "") -> object:
        if name.endswith("two.png"):
            raise KeyboardInterrupt
        return find(self, photo, name)

    monkeypatch.setattr(FaceFinder, "find", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(model, "in")
    with np.load(OUT / "embeddings.npz") as content:
        assert content["name"].tolist() == ["one-1"]
    assert [row["embedding"] for row in read_rows()] == ["one-1"]


def test_predict_by_the_default_detector_named(model: Path) -> None:
    argv = ["in/one.png", "--out", "out", "--checkpoint", str(model)]
    assert main(argv) == 0
    before = read_files()
    assert main([*argv, "--detector", "mtcnn"]) == 0
    assert read_files() == before


def test_detection_depends_on_the_content_of_weights() -> None:
    found = []
    for name, content in (("a", b"1"), ("b", b"1"), ("a", b"2")):
        Path(name).write_bytes(content)
        argv = ["in", "--out", "out", "--detector", "dlib", "--detector-weights", name]
        found.append(detection_of(PARSERS["predict"]().parse_args(argv)))
    assert found[0] == found[1] != found[2]


def test_predict_removes_an_old_parquet_file(model: Path) -> None:
    assert run(model, "in/one.png", "--parquet") == 0
    assert run(model, "in/one.png", "--parquet") == 0
    assert (OUT / "embeddings.parquet").is_file()
    assert run(model, "in/two.png") == 0
    assert not (OUT / "embeddings.parquet").exists()


def test_predict_never_overwrites(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "in/two.png") == 0
    before = read_files()
    assert run(model, "in/two.png", "--all") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "was made from another photo, model or setting: choose another --out" in line
    after = read_files()
    assert {name for name in before if after[name] != before[name]} == {"predictions.csv"}
    other = Path(shutil.copytree(model, tmp_path / "other"))
    content = (other / "config.json").read_text()
    (other / "config.json").write_text(content.replace('"student_input": "completed"', '"student_input": "masked"'))
    with pytest.raises(ValueError, match="embeddings of another model"):
        run(other, "in")


def test_sheets_hold_twelve_faces(model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    face = FaceFinder(SIZE, "dlib").find(read_photo(photos / "one.png"))[0].face
    crop = Image.fromarray(((face.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())
    for photo in photos.iterdir():
        photo.unlink()
    for number in range(13):
        crop.point([min(255, value + number) for value in range(256)] * 3).save(photos / f"{number:02}.png")
    argv = ["in", "--out", "out", "--checkpoint", str(model), "--aligned", "canonical"]
    assert main(argv) == 0
    pages = sorted((OUT / "contact_sheets").iterdir())
    assert [page.name for page in pages] == ["001.png", "002.png"]
    first, second = map(read_pixels, pages)
    assert first.shape == (12 * (SIZE + 4) + 24, 3 * (SIZE + 4) + 110, 3)
    assert second.shape[0] == SIZE + 4 + 24
    for column, folder in enumerate(("faces", "masks", "completed")):
        left = 110 + 2 + column * (SIZE + 4)
        for page, row, name in ((first, 0, "00-1"), (first, 11, "11-1"), (second, 0, "12-1")):
            top = 24 + 2 + row * (SIZE + 4)
            picture = np.asarray(Image.open(OUT / folder / f"{name}.png").convert("RGB"))
            np.testing.assert_array_equal(page[top : top + SIZE, left : left + SIZE], picture)
    monkeypatch.setattr(predict, "panel_image", lambda *_: pytest.fail("drew a page again"))
    assert main(argv) == 0


def test_sheets_keep_other_files(model: Path) -> None:
    (OUT / "contact_sheets").mkdir(parents=True)
    Image.new("RGB", (3, 3)).save(OUT / "contact_sheets/001.png")
    with pytest.raises(OSError, match="is no contact sheet of an earlier run"):
        run(model, "in")
    assert read_pixels(OUT / "contact_sheets/001.png").shape == (3, 3, 3)


@pytest.mark.parametrize("name", ["price$1$.png", "中文.png", b"caf\xe9.png".decode("utf-8", "surrogateescape")])
def test_predict_keeps_unusual_names(model: Path, photos: Path, name: str) -> None:
    (photos / "one.png").rename(photos / name)
    (photos / "two.png").unlink()
    assert run(model, "in", "--parquet") == 0
    with np.load(OUT / "embeddings.npz") as content:
        assert content["name"].tolist() == [f"{name.removesuffix('.png')}-1"]
    assert (OUT / "completed_photos" / name).is_file()
    assert (OUT / "contact_sheets/001.png").is_file()
    assert run(model, "in") == 0


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_predict_keeps_other_files(model: Path, content: bytes) -> None:
    OUT.mkdir()
    (OUT / "embeddings.npz").write_bytes(content)
    with pytest.raises(ValueError, match="holds no embeddings of an earlier run"):
        run(model, "in")
    assert (OUT / "embeddings.npz").read_bytes() == content


def test_predict_by_an_untested_model(untested_model: Path) -> None:
    assert run(untested_model, "in/one.png") == 0
    (row,) = read_rows()
    assert row["visible"] == "1.0"
    assert "masked" not in row


def test_predict_without_pyarrow(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pyarrow: pip install \"deocc\[parquet\]\""):
        run(model, "in", "--parquet")
    assert not OUT.exists()


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        ("in", "--out"),
        ("--out out", "PHOTOS"),
        ("in --out in", "is the folder of the photos"),
        ("in --out in/one.png", "is a file: choose a folder"),
        ("in --out out --device quantum", "--device quantum cannot be used"),
        ("in --out out --checkpoint nowhere", "no model at nowhere"),
        ("in --out out", "no pretrained model"),
    ],
)
def test_predict_refuses(arguments: str, needle: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model_folder, "PRETRAINED", tmp_path / "pretrained")
    with pytest.raises((ValueError, FileNotFoundError), match=needle) as error:
        main(arguments.split())
    assert "\n" not in str(error.value)
    assert not OUT.exists()
