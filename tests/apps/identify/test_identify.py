"""`deocc identify GALLERY PHOTOS`: real people are found and strangers are not, every input has its row, unchanged photos are kept."""

import csv
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deocc.commands.identify import main
from deocc.inference.faces import FaceFinder
from deocc.inference.gallery import Gallery, Identifier
from tests.apps.photos.scenes import TWO, draw_scene
from tests.apps.real_model import cover
from tests.fake_sets.faces import orl_face


def _save(path: Path, person: int, image: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(orl_face(person, image, 230, 280)[0]).save(path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: persons 20 and 25 in `gallery`, one in a folder with two photos, and photos of 20, 25 and 35 in `in`."""
    monkeypatch.chdir(tmp_path)
    _save(Path("gallery/anna/1.png"), 20, 0)
    _save(Path("gallery/anna/old/2.png"), 20, 1)
    _save(Path("gallery/bob.png"), 25, 0)
    for person, image in ((20, 4), (25, 1), (35, 0)):
        _save(Path(f"in/{person}.png"), person, image)
    return tmp_path


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of photos in which faces were looked for."""
    names: list[str] = []
    find = FaceFinder.find

    def noting(self: FaceFinder, photo: NDArray[np.uint8], name: str = "") -> object:
        names.append(name)
        return find(self, photo, name)

    monkeypatch.setattr(FaceFinder, "find", noting)
    return names


def _run(model: Path, *words: str) -> int:
    return main(["gallery", "in", "--checkpoint", str(model), "--detector", "dlib", *words])


def _rows(path: str = "identified.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_known_people_are_named_and_a_stranger_is_not(
    model: Path, place: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    assert _run(model, "--index", kind) == 0
    rows = _rows()
    assert [(row["photo"], row["answer"], row["person"]) for row in rows] == [
        ("in/20.png", "known", "anna"),
        ("in/25.png", "known", "bob"),
        ("in/35.png", "unknown", ""),
    ]
    assert [row["person_2"] for row in rows[:2]] == ["bob", "anna"] and "person_3" not in rows[0]
    assert rows[1]["gallery_photo"] == "gallery/bob.png" and rows[0]["condition"] == "clean-clean"
    assert (rows[0]["same_from"], rows[0]["false_accept_rate"], rows[0]["gallery_false_accept_rate"]) == (
        "0.5",
        "0.03",
        "0.09",
    )
    said = capsys.readouterr().out
    assert "gallery: 2 people, 3 faces" in said and "deocc identify: 3 of 3 done" in said
    assert "│ anna " in said and "│ (unknown) " in said
    assert (
        "known from 0.500, calibrated for one false accept in 100 comparisons (0.03 on test people); against 3 faces"
        in said
    )
    assert "at most 0.09 of unknown people may pass, more than the 0.01 wanted" in said


def test_of_a_persons_photos_the_most_similar_counts(model: Path, place: Path) -> None:
    shutil.copy("gallery/anna/old/2.png", "in/20.png")
    assert _run(model, "--top", "1") == 0
    row = _rows()[0]
    assert row["gallery_photo"] == "gallery/anna/old/2.png" and float(row["similarity"]) == pytest.approx(1, abs=1e-3)
    assert "person_2" not in row


def test_all_faces_of_a_photo_have_rows(model: Path, place: Path) -> None:
    shutil.rmtree("in")
    Path("in").mkdir()
    draw_scene(TWO).save("in/two.png")
    _save(Path("gallery/carl.png"), 0, 1)
    assert _run(model, "--all") == 0
    assert [(row["face"], row["answer"], row["person"]) for row in _rows()] == [
        ("1", "unknown", ""),
        ("2", "known", "carl"),
    ]


def test_too_little_of_a_face_is_not_decided_on(model: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cover(monkeypatch, 0.05)
    assert _run(model) == 0
    assert {(row["answer"], row["person"]) for row in _rows()} == {("not sure", "")}


def test_photos_without_a_face_are_told_of_and_the_rest_is_done(
    model: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_scene(()).save("gallery/anna/empty.png")
    Path("gallery/anna/text.jpg").write_text("no image")
    draw_scene(()).save("in/empty.png")
    assert main(["gallery", "in", "gone", "--checkpoint", str(model), "--detector", "dlib"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("deocc: gallery: ") for line in lines) == 2 and len(lines) == 4
    done = {row["photo"] for row in _rows() if row["status"] == "done"}
    left_out = {row["photo"] for row in _rows() if row["status"] == "left out"}
    assert done == {"in/20.png", "in/25.png", "in/35.png"}
    assert left_out == {"gallery/anna/empty.png", "gallery/anna/text.jpg", "in/empty.png", "gone"}


def test_rows_about_another_gallery_do_not_stay(model: Path, place: Path) -> None:
    assert _run(model, "--out", "table.csv") == 0
    Path("in/25.png").unlink()
    assert _run(model, "--out", "table.csv") == 0
    assert [row["photo"] for row in _rows("table.csv")] == ["in/20.png", "in/35.png"]


def test_kept_embeddings_are_taken_for_unchanged_photos_only(
    model: Path, place: Path, looked: list[str], tmp_path: Path
) -> None:
    photos = ["in/20.png", "in/25.png", "in/35.png"]

    def looked_at(*words: str) -> list[str]:
        looked.clear()
        assert _run(model, "--save-index", "kept.npz", *words) == 0
        return [name for name in looked if name not in photos]

    assert looked_at() == ["gallery/anna/1.png", "gallery/anna/old/2.png", "gallery/bob.png"]
    rows, content = _rows(), Path("kept.npz").read_bytes()
    assert looked_at("--all") == [] and _rows() == rows and Path("kept.npz").read_bytes() == content
    os.utime("gallery/bob.png", (1, 1))
    assert looked_at() == ["gallery/bob.png"] and _rows() == rows
    Path("gallery/bob.png").unlink()
    _save(Path("gallery/dora.png"), 25, 2)
    assert looked_at() == ["gallery/dora.png"] and _rows()[1]["person"] == "dora"
    with np.load("kept.npz") as kept:
        assert [Path(name).name for name in kept["photo"]] == ["1.png", "2.png", "dora.png"]
    other = Path(shutil.copytree(model, tmp_path / "other"))
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"student_input": "completed"', '"student_input": "masked"'))
    model = other
    assert len(looked_at()) == 3


def test_a_file_that_holds_no_gallery_is_not_touched(model: Path, place: Path) -> None:
    Path("kept.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"kept\.npz exists and holds no gallery"):
        _run(model, "--save-index", "kept.npz")
    Path("identified.csv").write_text("name,age\n")
    with pytest.raises(ValueError, match="is no list of an earlier run"):
        _run(model)
    assert Path("kept.npz").read_bytes() == b"PK\x03\x04" and Path("identified.csv").read_text() == "name,age\n"


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["gallery"], "PHOTOS"),
        (["nowhere", "in"], "no gallery at nowhere"),
        (["gallery/bob.png", "in"], r"no gallery at gallery/bob\.png: give a folder"),
        (["empty", "in"], r"no face in the gallery empty \(no photo in empty"),
        (["gallery", "in", "--top", "0"], "--top 0"),
        (["gallery", "in", "--false-accept-rate", "0"], "--false-accept-rate 0"),
        (["gallery", "in", "--index", "tree"], "flat"),
    ],
)
def test_wrong_words_are_one_line_and_write_nothing(model: Path, place: Path, words: list[str], needle: str) -> None:
    Path("empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=needle) as error:
        main([*words, "--checkpoint", str(model), "--detector", "dlib"])
    assert "\n" not in str(error.value) and not Path("identified.csv").exists()


def test_a_model_without_thresholds_and_a_missing_package_are_refused(
    untested_model: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="has no thresholds to tell unknown people by"):
        _run(untested_model)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="faiss-cpu"):
        _run(untested_model)


def test_an_empty_result_prints_no_table(
    model: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Identifier, "__call__", lambda *_: (_ for _ in ()).throw(ValueError("nothing")))
    assert _run(model) == 1
    assert "│" not in capsys.readouterr().out


def test_nobody_is_known_by_a_gallery_face_of_which_hardly_anything_is_in_view(
    place: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Identifier._details

    def hidden(self: Identifier, *face: Any) -> dict[str, object]:
        self._gallery = Gallery([replace(known, covered=0.95) for known in self._gallery.faces])
        return original(self, *face)

    assert _run(model) == 0 and "known" in {row["answer"] for row in _rows()}
    monkeypatch.setattr(Identifier, "_details", hidden)
    assert _run(model) == 0 and {row["answer"] for row in _rows()} == {"not sure"}
