import csv
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deocc.commands.identify import Identifier, main
from deocc.inference import gallery, outputs
from deocc.inference.batch import FoundPhoto, Outcome
from deocc.inference.faces import FaceFinder
from deocc.inference.gallery import GalleryFace, read_gallery
from deocc.inference.outputs import lock_out
from tests.fake_sets.faces import save_face
from tests.real_model import cover
from tests.scenes import TWO, draw_scene

PHOTOS = ["in/20.png", "in/25.png", "in/35.png"]


def save(path: str, person: int, image: int) -> None:
    save_face(Path(path), person, image, 230, 280)


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_detector: None) -> None:
    """The working directory: people 20 and 25 in `gallery`, photos of 20, 25 and 35 in `in`."""
    monkeypatch.chdir(tmp_path)
    save("gallery/anna/1.png", 20, 0)
    save("gallery/anna/old/2.png", 20, 1)
    save("gallery/bob.png", 25, 0)
    for person, image in ((20, 4), (25, 1), (35, 0)):
        save(f"in/{person}.png", person, image)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of photos that were searched for faces."""
    names: list[str] = []
    detect = FaceFinder._detect

    def record(self: FaceFinder, photo: NDArray[np.uint8], name: str) -> object:
        names.append(name)
        return detect(self, photo, name)

    monkeypatch.setattr(FaceFinder, "_detect", record)
    return names


def run(model: Path, *argv: str) -> int:
    return main(["gallery", "in", "--checkpoint", str(model), "--detector", "dlib", *argv])


def read_rows(path: str = "identified.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("index", ["Flat", "HNSW32"])
def test_identify_known_and_unknown(model: Path, capsys: pytest.CaptureFixture[str], index: str) -> None:
    assert run(model, "--index", index) == 0
    rows = read_rows()
    answers = [(row["photo"], row["answer"], row["person"]) for row in rows]
    assert answers == [("in/20.png", "known", "anna"), ("in/25.png", "known", "bob"), ("in/35.png", "unknown", "")]
    assert [row["person_2"] for row in rows[:2]] == ["bob", "anna"]
    assert "person_3" not in rows[0]
    assert rows[1]["gallery_photo"] == "gallery/bob.png"
    columns = ("condition", "same_from", "false_accept_rate", "gallery_false_accept_rate")
    assert [rows[0][name] for name in columns] == ["clean-clean", "0.7", "0.03", "0.09"]
    told = capsys.readouterr()
    printed = told.out + told.err
    limit = (
        "known from 0.700, calibrated for one false accept in 100 comparisons (0.03 on test people); against 3 faces"
    )
    bound = "at most 0.09 of unknown people may pass, more than the 0.01 wanted"
    summary = ("gallery: 2 people, 3 faces", "deocc identify: 3 of 3 done", "│ anna ", "│ (unknown) ")
    for part in (*summary, limit, bound):
        assert part in printed


def test_identify_by_the_most_similar_photo(model: Path) -> None:
    shutil.copy("gallery/anna/old/2.png", "in/20.png")
    assert run(model, "--top", "1") == 0
    row = read_rows()[0]
    assert row["gallery_photo"] == "gallery/anna/old/2.png"
    assert float(row["similarity"]) == pytest.approx(1, abs=1e-3)
    assert "person_2" not in row


def test_identify_all_faces(model: Path) -> None:
    shutil.rmtree("in")
    Path("in").mkdir()
    draw_scene(TWO).save("in/two.png")
    save("gallery/carl.png", 0, 1)
    assert run(model, "--all") == 0
    answers = [(row["face"], row["answer"], row["person"]) for row in read_rows()]
    assert answers == [("1", "unknown", ""), ("2", "known", "carl")]


def test_identify_covered_faces(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cover(monkeypatch, 0.05)
    assert run(model) == 0
    assert {(row["answer"], row["person"]) for row in read_rows()} == {("not sure", "")}


def test_identify_by_covered_gallery_faces(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_covered(*arguments: object) -> tuple[list[GalleryFace], list[Outcome]]:
        known, problems = read_gallery(*arguments)  # type: ignore[arg-type]
        return [replace(face, covered=0.95) for face in known], problems

    monkeypatch.setattr("deocc.inference.gallery.read_gallery", read_covered)
    assert run(model) == 0
    assert {row["answer"] for row in read_rows()} == {"not sure"}


def test_identify_leaves_out_bad_photos(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_scene(()).save("gallery/anna/empty.png")
    Path("gallery/anna/text.jpg").write_text("no image")
    draw_scene(()).save("in/empty.png")
    assert main(["gallery", "in", "gone", "--checkpoint", str(model), "--detector", "dlib"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "deocc: gallery: 2 people, 3 faces"
    assert len(lines) == 5
    assert sum(line.startswith("deocc: gallery: ") for line in lines[1:]) == 2
    rows = read_rows()
    assert {row["photo"] for row in rows if row["status"] == "done"} == set(PHOTOS)
    left_out = {row["photo"] for row in rows if row["status"] == "left out"}
    assert left_out == {"gallery/anna/empty.png", "gallery/anna/text.jpg", "in/empty.png", "gone"}


def test_identify_replaces_the_table(model: Path) -> None:
    assert run(model, "--out", "table.csv") == 0
    Path("in/25.png").unlink()
    assert run(model, "--out", "table.csv") == 0
    assert [row["photo"] for row in read_rows("table.csv")] == ["in/20.png", "in/35.png"]


def test_identify_caches_embeddings(model: Path, searched: list[str], tmp_path: Path) -> None:
    def search_gallery(model: Path, *argv: str) -> list[str]:
        searched.clear()
        assert run(model, "--save-index", "cache.npz", *argv) == 0
        return [name for name in searched if name not in PHOTOS]

    assert search_gallery(model) == ["gallery/anna/1.png", "gallery/anna/old/2.png", "gallery/bob.png"]
    rows, content = read_rows(), Path("cache.npz").read_bytes()
    assert search_gallery(model, "--all") == []
    assert read_rows() == rows
    assert Path("cache.npz").read_bytes() == content
    os.utime("gallery/bob.png", (1, 1))
    assert search_gallery(model) == ["gallery/bob.png"]
    assert read_rows() == rows
    Path("gallery/bob.png").unlink()
    save("gallery/dora.png", 25, 2)
    assert search_gallery(model) == ["gallery/dora.png"]
    assert read_rows()[1]["person"] == "dora"
    with np.load("cache.npz") as cache:
        assert [Path(name).name for name in cache["photo"]] == ["1.png", "2.png", "dora.png"]
    assert search_gallery(model) == []
    assert search_gallery(model, "--face", "2") == []
    other = Path(shutil.copytree(model, tmp_path / "other"))
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"student_input": "completed"', '"student_input": "masked"'))
    assert len(search_gallery(other)) == 3


def test_identify_keeps_other_files(model: Path) -> None:
    Path("cache.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"cache\.npz exists and holds no gallery"):
        run(model, "--save-index", "cache.npz")
    Path("identified.csv").write_text("name,age\n")
    with pytest.raises(ValueError, match="is no list of an earlier run"):
        run(model)
    assert Path("cache.npz").read_bytes() == b"PK\x03\x04"
    assert Path("identified.csv").read_text() == "name,age\n"


@pytest.mark.parametrize(
    ("argv", "needle"),
    [
        (["gallery"], "PHOTOS"),
        (["nowhere", "in"], "no gallery at nowhere"),
        (["gallery/bob.png", "in"], r"no gallery at gallery/bob\.png: give a folder"),
        (["empty", "in"], r"no face in the gallery empty \(no photo in empty"),
        (["gallery", "in", "--top", "0"], "--top 0"),
        (["gallery", "in", "--false-accept-rate", "0"], "--false-accept-rate 0"),
        (["gallery", "in", "--index", "tree"], "unknown index 'tree'"),
        (
            ["gallery", "in", "--out", "in/20.png/a.csv"],
            r"--out in/20\.png/a\.csv: nothing can be written into .*20.png",
        ),
        (["gallery", "in", "--save-index", "in/20.png/a"], r"--save-index in/20\.png/a: nothing can be written into"),
    ],
)
def test_identify_refuses(model: Path, argv: list[str], needle: str, searched: list[str]) -> None:
    Path("empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=needle) as error:
        main([*argv, "--checkpoint", str(model), "--detector", "dlib"])
    assert "\n" not in str(error.value)
    assert not Path("identified.csv").exists()
    assert searched == []


def test_identify_chooses_faces_of_photos_only(model: Path) -> None:
    shutil.rmtree("in")
    Path("in").mkdir()
    draw_scene(TWO).save("in/two.png")
    draw_scene(TWO).save("gallery/anna/two.png")
    save("gallery/carl.png", 0, 1)
    assert run(model, "--face", "2") == 1
    left_out, done = read_rows()
    assert (left_out["photo"], done["photo"], done["person"]) == ("gallery/anna/two.png", "in/two.png", "carl")
    assert left_out["reason"].endswith(": crop the photo")


@pytest.mark.parametrize(("photo", "kept"), [("20", PHOTOS), ("25", ["in/20.png"])])
def test_identify_keeps_the_table_until_a_result(
    photo: str, kept: list[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on it holds no rows about another gallery."""
    assert run(model) == 0
    before, call = Path("identified.csv").read_bytes(), Identifier.__call__

    def interrupt(self: Identifier, found: FoundPhoto) -> list[Outcome]:
        if found.name == photo:
            raise KeyboardInterrupt
        return call(self, found)

    monkeypatch.setattr(Identifier, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(model)
    assert [row["photo"] for row in read_rows()] == kept
    assert (Path("identified.csv").read_bytes() == before) == (kept == PHOTOS)


def test_identify_is_alone_with_its_table(model: Path, searched: list[str]) -> None:
    with lock_out(Path("identified.csv")), pytest.raises(ValueError, match=r"another deocc writes to identified\.csv"):
        run(model)
    assert searched == []


def test_identify_ignores_its_results(model: Path) -> None:
    for _ in range(2):
        argv = ["gallery", "gallery", "--out", "gallery/found.csv", "--save-index", "gallery/anna/cache.npz"]
        assert main([*argv, "--checkpoint", str(model), "--detector", "dlib"]) == 0
        assert len(read_rows("gallery/found.csv")) == 3


@pytest.mark.parametrize("by_link", [False, True])
def test_identify_reports_a_photo_of_two_people(model: Path, by_link: bool) -> None:
    """Also if the photos to identify are those of the gallery."""
    if by_link:
        Path("gallery/carl.png").symlink_to("bob.png")
    else:
        shutil.copy("gallery/bob.png", "gallery/carl.png")
    assert main(["gallery", "gallery", "--checkpoint", str(model), "--detector", "dlib"]) == 1
    left_out = [row for row in read_rows() if row["status"] == "left out"]
    assert [row["photo"] for row in left_out] == ["gallery/bob.png", "gallery/carl.png"]
    assert all(
        "gallery/bob.png (bob)" in row["reason"] and "gallery/carl.png (carl)" in row["reason"] for row in left_out
    )
    assert sum(row["photo"] == "gallery/bob.png" for row in read_rows()) == 2


def test_identify_saves_embeddings_on_interrupt(
    model: Path, searched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = FaceFinder.find_single

    def interrupt(self: FaceFinder, photo: NDArray[np.uint8], name: str = "", **choice: bool) -> object:
        if name == "gallery/bob.png":
            raise KeyboardInterrupt
        return find(self, photo, name, **choice)

    with monkeypatch.context() as patch:
        patch.setattr(gallery, "_BATCH", 1)
        patch.setattr(FaceFinder, "find_single", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(model, "--save-index", "cache.npz")
    searched.clear()
    assert run(model, "--save-index", "cache.npz") == 0
    assert searched == ["gallery/bob.png", *PHOTOS]


def test_identify_saves_embeddings_meanwhile(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "_BATCH", 1)
    monkeypatch.setattr(gallery, "_SAVE_INTERVAL", 0.0)
    monkeypatch.setattr(outputs, "_PAUSE", 0)
    saved, find = [], FaceFinder.find_single

    def record(self: FaceFinder, photo: NDArray[np.uint8], name: str = "", **choice: bool) -> object:
        saved.append(len(np.load("cache.npz")["photo"]) if Path("cache.npz").exists() else 0)
        return find(self, photo, name, **choice)

    monkeypatch.setattr(FaceFinder, "find_single", record)
    assert run(model, "--save-index", "cache.npz") == 0
    assert saved == [0, 1, 2]


def test_identify_without_thresholds_or_faiss(untested_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="has no thresholds to tell unknown people by"):
        run(untested_model)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="faiss-cpu"):
        run(untested_model)


def test_identify_prints_no_empty_table(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("nothing")

    monkeypatch.setattr(Identifier, "__call__", fail)
    assert run(model) == 1
    assert "│" not in capsys.readouterr().out
