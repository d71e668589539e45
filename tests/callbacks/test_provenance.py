"""The hashes of a fingerprint change with what they stand for and with nothing else, such as the machine."""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deocc.callbacks.provenance import build, package_versions, source_hash, template_hash, training_data_hash
from deocc.data import FolderFaces, MaskedFaceDataModule, OrlFaces
from deocc.geometry import TEMPLATES
from deocc.networks import create_teacher
from tests.conftest import draw_folder


def test_the_hash_of_a_template_is_that_of_its_size_and_points() -> None:
    canonical = TEMPLATES["canonical"]
    points = "((124.5, 149.5), (224.5, 149.5), (174.5, 205.8), (129.9, 259.5), (219.1, 259.5))"
    assert template_hash(canonical) == hashlib.sha256(f"(350, {points})".encode()).hexdigest()[:16]
    moved = replace(canonical, points=((124.5, 149.6), *canonical.points[1:]))
    assert len({template_hash(each) for each in (canonical, moved, replace(canonical, size=351))}) == 3


def test_the_hash_of_the_code_follows_names_and_contents_of_python_files_wherever_they_lie(tmp_path: Path) -> None:
    first = tmp_path / "first"
    (first / "room").mkdir(parents=True)
    (first / "a.py").write_text("1")
    (first / "room" / "b.py").write_text("2")
    known = source_hash(first)
    assert known == hashlib.sha256(b"a.py\x001\x001room/b.py\x001\x002").hexdigest()[:16]
    second = Path(shutil.copytree(first, tmp_path / "second"))
    (second / "notes.txt").write_text("3")
    assert source_hash(second) == known
    (second / "room" / "b.py").write_text("4")
    changed = source_hash(second)
    (second / "room" / "b.py").rename(second / "b.py")
    assert len({known, changed, source_hash(second)}) == 3


def test_the_hash_of_a_folder_is_the_same_wherever_and_whenever_it_was_copied(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "here")
    faces = FolderFaces(str(folder))
    known = training_data_hash(faces)
    there = tmp_path / "there"
    shutil.copytree(folder, there)
    for path in there.rglob("*.png"):
        os.utime(path, (1, 1))
    assert training_data_hash(FolderFaces(str(there))) == known
    trained, tested = (faces.names[int(faces.indices(split)[0])] for split in ("train", "test"))
    with (there / tested).open("ab") as file:
        file.write(b"more")
    assert training_data_hash(FolderFaces(str(there))) == known, "test people are nothing to a training"
    with (there / trained).open("ab") as file:
        file.write(b"more")
    longer = training_data_hash(FolderFaces(str(there)))
    (there / trained).rename(there / f"{trained}.renamed.png")
    renamed = training_data_hash(FolderFaces(str(there)))
    assert len({known, longer, renamed, training_data_hash(FolderFaces(str(folder), aligned="facenet"))}) == 4


def test_the_fingerprint_of_the_present_state_is_made_of_what_a_test_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    data, teacher = MaskedFaceDataModule(size=64, seed=5, kinds=["box"]), create_teacher("dlib_resnet")
    before = torch.get_rng_state()
    found, reported = build(data, teacher), data.provenance()
    assert torch.equal(torch.get_rng_state(), before)
    assert (found["masks"], found["training_data"]) == (reported["manifest_hash"], reported["training_data_hash"])
    assert (found["size"], found["face_set"], found["seeds"]) == (
        64,
        reported["credit"],
        {"seed_everything": 3, "data": 5},
    )
    assert found["packages"]["torch"] == torch.__version__ and found["template"]["teacher"] == template_hash(
        teacher.template
    )
    next(teacher.parameters())[0] += 1e-6
    other = build(data, teacher)
    assert {field for field, value in found.items() if value != dict(other)[field]} == {"teacher"}


def test_nobody_to_train_or_test_on_has_no_hash() -> None:
    faces = OrlFaces()
    faces.split_of_person = dict.fromkeys(faces.split_of_person, "val")
    found = build(MaskedFaceDataModule(faces, size=64), None)
    assert (found["training_data"], found["masks"], found["teacher"], found["template"]["teacher"]) == (None,) * 4


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deocc.callbacks.provenance.PACKAGES", ("torch", "no-such-package"))
    assert package_versions() | {"python": ""} == {"python": "", "torch": torch.__version__, "no-such-package": None}
