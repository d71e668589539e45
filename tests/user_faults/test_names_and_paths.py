"""`~`, relative folders, Unicode forms and backslashes are understood; tables are about the photos of this call."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deocc.cli
from deocc import runs
from deocc.data import FolderFaces, PairListFaces
from deocc.data.folder import list_folder
from deocc.inference.batch import FoundPhoto, Outcome, OutcomeFile, find_photos, process_photos
from deocc.inference.gallery import person_of
from deocc.inference.outputs import EmbeddedFace, EmbeddingFile

_NFC, _NFD = "Jos\u00e9", "Jose\u0301"


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((112, 112, 3), np.uint8)).save(path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and an empty working directory."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_home_is_expanded_in_all_arguments(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(deocc.cli, "_run", seen.extend)
    deocc.cli.main(["fit", "--run=~/a", "--resume", "~/b", "--data.face_set.init_args.root=~", "~x", "a~/b", "--k=v~/"])
    assert seen == [
        "fit",
        f"--run={home}/a",
        "--resume",
        f"{home}/b",
        f"--data.face_set.init_args.root={home}",
        "~x",
        "a~/b",
        "--k=v~/",
    ]


def test_home_is_expanded_in_settings(home: Path) -> None:
    for number in range(20):
        draw(home / f"faces/p{number}/1.png")
    assert FolderFaces("~/faces").root == home / "faces"
    (home / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=str(home)):
        runs.find_checkpoint("~/run")


def test_expand_paths_makes_existing_paths_absolute(home: Path) -> None:
    cwd = Path.cwd()
    for name in ("faces", "arcface", "pairs.txt"):
        (cwd / name).mkdir()
    (home / "w").mkdir(parents=True)
    settings = {"root": "faces", "aligned": "arcface", "pairs": "pairs.txt", "detector_weights": "~/w", "idx": None}
    lists, lfw = (
        {"class_path": "PairListFaces", "init_args": {**settings}},
        {"class_path": "LfwFaces", "init_args": {**settings}},
    )
    runs.expand_paths(lists)
    runs.expand_paths(lfw)
    runs.expand_paths(None)
    expanded = {"root": f"{cwd}/faces", "detector_weights": f"{home}/w"}
    assert lists["init_args"] == {**settings, **expanded, "pairs": f"{cwd}/pairs.txt"}
    assert lfw["init_args"] == {**settings, **expanded, "pairs": "pairs.txt"}


def test_unicode_forms_are_one_person(tmp_path: Path) -> None:
    for name in (_NFC, _NFD, "Anna"):
        draw(tmp_path / name / f"{len(name)}.png")
    listing = list_folder(tmp_path)
    assert listing.people == ["Anna", _NFC] and listing.identity.tolist() == [0, 1, 1]
    people = {person_of(tmp_path / name, tmp_path) for name in (f"{_NFC}/1.png", f"{_NFD}/2.png", f"{_NFD}.jpg")}
    assert people == {_NFC}


def test_lists_find_files_of_the_other_form(tmp_path: Path) -> None:
    for name in (f"{_NFD}/1.png", f"{_NFD}/2.png", "Anna/1.png"):
        draw(tmp_path / "faces" / name)
    (tmp_path / "pairs.txt").write_text(f"{_NFC}/1.png {_NFC}/2.png 1\n{_NFC}\\2.png Anna\\1.png 0\n")
    faces = PairListFaces(str(tmp_path / "faces"), str(tmp_path / "pairs.txt"), aligned="arcface")
    names = [unicodedata.normalize("NFC", name) for name in faces.names]
    assert sorted(names) == ["Anna/1.png", f"{_NFC}/1.png", f"{_NFC}/2.png"]
    assert sorted(faces.identity_names or ()) == ["Anna", _NFC]


def test_rows_of_other_photos_go(tmp_path: Path) -> None:
    def work(photo: FoundPhoto) -> list[Outcome]:
        return [Outcome(str(photo.path), output=f"{photo.name}.png")]

    for name in ("a", "b", "c"):
        draw(tmp_path / f"in/{name}.png")
    assert process_photos("predict", find_photos([tmp_path / "in"]), OutcomeFile(tmp_path / "t.csv"), work) == 0
    (tmp_path / "in/a.png").unlink()
    (tmp_path / "in/b.png").rename(tmp_path / "in/d.png")
    assert process_photos("predict", find_photos([tmp_path / "in"]), OutcomeFile(tmp_path / "t.csv"), work) == 0
    assert [Path(row.photo).name for row in OutcomeFile(tmp_path / "t.csv").all_rows()] == ["c.png", "d.png"]


def test_embeddings_of_other_photos_go(tmp_path: Path) -> None:
    embeddings = EmbeddingFile(tmp_path / "e.npz", "model")
    for name in ("a-1", "b-1"):
        embeddings.put(EmbeddedFace(name, f"{name}.png", 1, "mark", np.ones(3, np.float32)))
    embeddings.write()
    again = EmbeddingFile(tmp_path / "e.npz", "model")
    again.keep({"b-1"})
    again.write()
    assert [face.name for face in EmbeddingFile(tmp_path / "e.npz", "model").faces] == ["b-1"]
    again.keep(())
    again.write()
    assert not (tmp_path / "e.npz").exists()
