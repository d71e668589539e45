"""Every checkpoint has a fingerprint; one that does not fit is refused or causes a warning when it is loaded."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml

from deocc import runs
from deocc.callbacks.provenance import (
    FINGERPRINT,
    Action,
    Difference,
    Fingerprint,
    FingerprintCallback,
    build,
    compare,
    describe,
    package_versions,
    refuse,
    source_hash,
    template_hash,
    training_data_hash,
)
from deocc.data import FolderFaces, MaskedFaceDataModule, OrlFaces
from deocc.geometry import TEMPLATES
from deocc.networks import create_teacher
from tests.conftest import SMALL, draw_folder, run_deocc

FEW = ["--data.kinds", "[surgical]", "--data.test_seeds", "[1]", "--trainer.limit_test_batches", "4"]
LOGGER = "deocc.callbacks.provenance"


def test_template_hash_is_of_size_and_points() -> None:
    canonical = TEMPLATES["canonical"]
    points = "((124.5, 149.5), (224.5, 149.5), (174.5, 205.8), (129.9, 259.5), (219.1, 259.5))"
    assert template_hash(canonical) == hashlib.sha256(f"(350, {points})".encode()).hexdigest()[:16]
    moved = replace(canonical, points=((124.5, 149.6), *canonical.points[1:]))
    assert len({template_hash(each) for each in (canonical, moved, replace(canonical, size=351))}) == 3


def test_source_hash_is_of_python_files(tmp_path: Path) -> None:
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


def test_folder_hash_does_not_depend_on_place_or_time(tmp_path: Path) -> None:
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
    assert training_data_hash(FolderFaces(str(there))) == known, "test identities do not matter to a training"
    with (there / trained).open("ab") as file:
        file.write(b"more")
    longer = training_data_hash(FolderFaces(str(there)))
    (there / trained).rename(there / f"{trained}.renamed.png")
    renamed = training_data_hash(FolderFaces(str(there)))
    assert len({known, longer, renamed, training_data_hash(FolderFaces(str(folder), aligned="facenet"))}) == 4


def test_build_agrees_with_reported_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    data, teacher = MaskedFaceDataModule(size=64, seed=5, kinds=["box"]), create_teacher("dlib_resnet")
    before = torch.get_rng_state()
    found, reported = build(data, teacher), data.provenance()
    assert torch.equal(torch.get_rng_state(), before)
    assert (found["masks"], found["training_data"]) == (reported["manifest_hash"], reported["training_data_hash"])
    assert (found["size"], found["face_set"]) == (64, reported["credit"])
    assert found["seeds"] == {"seed_everything": 3, "data": 5}
    assert found["packages"]["torch"] == torch.__version__
    assert found["template"]["teacher"] == template_hash(teacher.template)
    next(teacher.parameters())[0] += 1e-6
    other: dict[str, Any] = {**build(data, teacher)}
    assert {field for field, value in found.items() if value != other[field]} == {"teacher"}


def test_empty_splits_have_no_hash() -> None:
    faces = OrlFaces()
    faces.split_of_identity = dict.fromkeys(faces.split_of_identity, "val")
    found = build(MaskedFaceDataModule(faces, size=64), None)
    assert (found["training_data"], found["masks"], found["teacher"], found["template"]["teacher"]) == (None,) * 4


def test_missing_package_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deocc.callbacks.provenance.PACKAGES", ("torch", "no-such-package"))
    assert package_versions() | {"python": ""} == {"python": "", "torch": torch.__version__, "no-such-package": None}


def fingerprint(**changes: Any) -> Fingerprint:
    values: dict[str, Any] = {
        "version": 1,
        "config": "data: {}",
        "code": {"version": "1.0", "hash": "c0"},
        "packages": {"python": "3.11", "torch": "2.12.0", "timm": "1.0"},
        "seeds": {"seed_everything": 0, "data": 0},
        "face_set": "ORL",
        "training_data": "d0",
        "template": {"canonical": "a0", "teacher": "a1"},
        "size": 112,
        "masks": "m0",
        "teacher": "t0",
        "resumed": [],
    }
    return cast(Fingerprint, values | changes)


OTHER: dict[str, Any] = {
    "config": "data: {size: 9}",
    "code": {"version": "1.0", "hash": "c9"},
    "packages": {"python": "3.11", "torch": "2.13.0", "numpy": "2.0"},
    "seeds": {"seed_everything": 0, "data": 9},
    "training_data": "d9",
    "template": {"canonical": "a9", "teacher": "a1"},
    "size": 64,
    "masks": "m9",
    "teacher": "t9",
    "resumed": [{"field": "size"}],
}
ALWAYS = dict.fromkeys(["teacher", "template.canonical", "size"], "refuse")
ALWAYS |= dict.fromkeys(["code.hash", "packages.torch", "packages.timm", "packages.numpy"], "warn")
SEEDED = {"training_data": "refuse", "seeds.data": "refuse"}


@pytest.mark.parametrize(
    ("changes", "action", "expected"),
    [
        ({}, "fit", SEEDED | {"masks": "warn"}),
        ({}, "test", {"training_data": "warn", "masks": "warn"}),
        ({}, "validate", {"training_data": "warn"}),
        ({}, "predict", {"training_data": "warn"}),
        ({"face_set": "LFW"}, "test", {}),
        ({"face_set": "LFW", "training_data": None}, "test", {}),
        ({"face_set": "LFW"}, "fit", SEEDED | {"masks": "warn"}),
        ({"training_data": None, "masks": None}, "test", {}),
        ({"masks": None}, "fit", SEEDED),
    ],
)
def test_severity_depends_on_action(changes: dict[str, Any], action: Action, expected: dict[str, str]) -> None:
    found = compare(fingerprint(), fingerprint(**OTHER | changes), action)
    assert {each.field: each.severity for each in found} == ALWAYS | expected


@pytest.mark.parametrize("action", ["fit", "validate", "test", "predict"])
def test_equal_fingerprints_have_no_difference(action: Action) -> None:
    assert compare(fingerprint(), fingerprint(), action) == []
    assert compare(fingerprint(masks=None), fingerprint(), action) == []


@pytest.mark.parametrize("saved", [None, {}, "text", fingerprint(version=2)])
def test_unknown_format_is_one_warning(saved: object) -> None:
    (found,) = compare(saved, fingerprint(), "fit")
    assert (found.field, found.severity) == ("fingerprint", "warn")


def test_description_has_a_line_per_field() -> None:
    changed = {"packages": {"python": "3.11", "torch": "2.13.0", "timm": None}, "masks": "m9"}
    assert describe(compare(fingerprint(), fingerprint(**changed), "test")) == [
        "packages torch 2.12.0 -> 2.13.0, timm 1.0 -> none (saved -> present): other versions may give other figures",
        "evaluation masks m0 -> m9 (saved -> present): figures are not comparable with those under the run's masks",
    ]
    assert len(describe(compare(fingerprint(), fingerprint(**OTHER), "fit"))) == 8


def test_refusal_names_all_remedies() -> None:
    found = compare(fingerprint(), fingerprint(size=64, teacher="t9"), "test")
    assert refuse(found) == (
        "crop size 112 -> 64, teacher t0 -> t9 (saved -> present): set data.size as it was; "
        "give the teacher that it was trained with; --fingerprint.mismatch warn continues anyway"
    )


def trainer(action: str, **changes: Any) -> Any:
    strategy = SimpleNamespace(broadcast=lambda found: found)
    state = SimpleNamespace(fn=SimpleNamespace(value=action))
    settings = {"strategy": strategy, "state": state, "is_global_zero": True, "ckpt_path": "last.ckpt", **changes}
    return SimpleNamespace(**settings)


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> Fingerprint:
    """The present state, which a test may change."""
    state = fingerprint()
    monkeypatch.setattr("deocc.callbacks.provenance.build", lambda *_: state)
    return state


def load(callback: FingerprintCallback, action: str, saved: Any) -> None:
    given: Any = trainer(action, datamodule=None)
    module: Any = SimpleNamespace()
    callback.setup(given, module, action)
    callback.on_load_checkpoint(given, module, {FINGERPRINT: saved})


def test_mismatch_is_refused_or_reported(present: Fingerprint, caplog: pytest.LogCaptureFixture) -> None:
    present["size"], present["code"] = 64, {"version": "1.0", "hash": "c9"}
    refusal = r"^last\.ckpt does not fit: crop size 112 -> 64 .*--fingerprint\.mismatch warn"
    with pytest.raises(ValueError, match=refusal):
        load(FingerprintCallback(), "test", fingerprint())
    (line,) = caplog.messages
    assert line.startswith("last.ckpt: code hash c0 -> c9 ")
    caplog.clear()
    load(FingerprintCallback("warn"), "test", fingerprint())
    assert len(caplog.messages) == 2
    assert "crop size 112 -> 64 (saved -> present): embeddings are not comparable" in caplog.messages[1]


def test_other_ranks_refuse_silently(present: Fingerprint, caplog: pytest.LogCaptureFixture) -> None:
    load(FingerprintCallback(), "test", fingerprint())
    found = [Difference("size", 112, 64, "refuse")]
    other = trainer("test", is_global_zero=False, strategy=SimpleNamespace(broadcast=lambda _: found))
    with pytest.raises(ValueError, match="crop size"):
        FingerprintCallback().on_load_checkpoint(other, SimpleNamespace(), {})  # type: ignore[arg-type]
    assert caplog.messages == []


def test_accepted_differences_stay_in_checkpoints(present: Fingerprint) -> None:
    earlier = asdict(Difference("code.hash", "b", "c0", "warn"))
    present["seeds"] = {"seed_everything": 0, "data": 1}
    callback, checkpoint = FingerprintCallback("warn"), dict[str, Any]()
    load(callback, "fit", fingerprint(resumed=[earlier]))
    callback.on_save_checkpoint(trainer("fit"), SimpleNamespace(), checkpoint)  # type: ignore[arg-type]
    assert checkpoint[FINGERPRINT]["resumed"] == [earlier, asdict(Difference("seeds.data", 0, 1, "refuse"))]


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def keep_code(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore changes of the package since the run."""
    known = content[FINGERPRINT]["code"]["hash"]
    monkeypatch.setattr("deocc.callbacks.provenance.source_hash", lambda: known)


@pytest.fixture
def tampered(
    stage2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Makes a copy of the stage-2 run with a changed checkpoint."""

    def make(change: Callable[[dict[str, Any]], object]) -> Path:
        run = tmp_path / "run"
        shutil.copytree(stage2, run)
        content = torch.load(last(run), weights_only=True)
        keep_code(content, monkeypatch)
        change(content)
        torch.save(content, last(run))
        return run

    return make


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def test_checkpoint_has_every_field(stage1: Path, stage2: Path) -> None:
    for run in (stage1, stage2):
        found = torch.load(last(run), weights_only=True)[FINGERPRINT]
        assert set(found) == Fingerprint.__required_keys__ and json.loads(json.dumps(found)) == found
        assert not [field for field, value in found.items() if value is None] and found["resumed"] == []
        assert yaml.safe_load(found["config"]) == yaml.safe_load((run / runs.CONFIG).read_text())
        assert found["size"] == 64 and found["seeds"] == {"seed_everything": 0, "data": 0}


@pytest.mark.slow
def test_fitting_test_reports_fingerprint(
    stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = torch.load(last(stage1), weights_only=True)
    keep_code(content, monkeypatch)
    run_deocc("test", "--checkpoint", str(stage1), "--run", str(tmp_path), *SMALL, "--trainer.limit_test_batches", "1")
    assert warnings_of(caplog) == []
    results = json.loads((tmp_path / runs.RESULTS).read_text())
    saved = {key: value for key, value in content[FINGERPRINT].items() if key != "config"}
    assert results[FINGERPRINT] == {"checkpoint": saved, "differences": []}
    assert results["manifest_hash"] == saved["masks"]


@pytest.mark.slow
def test_other_masks_and_packages_warn(
    tampered: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tampered(lambda content: content[FINGERPRINT]["packages"].update(torch="0.1"))
    run_deocc("test", "--checkpoint", str(run), "--run", str(tmp_path / "out"), *SMALL, *FEW)
    packages, masks = warnings_of(caplog)
    assert f"packages torch 0.1 -> {torch.__version__} " in packages and "evaluation masks" in masks
    differences = json.loads((tmp_path / "out" / runs.RESULTS).read_text())[FINGERPRINT]["differences"]
    found = [(each["field"], each["severity"]) for each in differences]
    assert found == [("packages.torch", "warn"), ("masks", "warn")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "change", "expected"),
    [
        ("test", {"teacher": "0" * 16}, "teacher 0000000000000000 -> "),
        ("fit", {"training_data": "0" * 16}, "training data 0000000000000000 -> "),
    ],
)
def test_refusal_ends_the_command(
    command: str,
    change: dict[str, Any],
    expected: str,
    tampered: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tampered(lambda content: content[FINGERPRINT].update(change))
    argv = ["test", "--checkpoint", str(run)]
    if command == "fit":
        argv = ["fit", "--config", str(run / runs.CONFIG), "--ckpt_path", str(last(run))]
        argv += ["--run", str(run), "--trainer.max_epochs", "2"]
    with pytest.raises(SystemExit) as stopped:
        run_deocc(*argv)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and error.startswith(f"deocc: {last(run)} does not fit: {expected}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "argv", "expected"),
    [
        (lambda content: content.pop(FINGERPRINT), [], "fingerprint none -> 1 "),
        (
            lambda content: content[FINGERPRINT].update(teacher="t0"),
            ["--fingerprint.mismatch", "warn"],
            "teacher t0 -> ",
        ),
    ],
)
def test_accepted_mismatch_is_one_warning(
    change: Callable[[dict[str, Any]], object],
    argv: list[str],
    expected: str,
    tampered: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = tampered(change)
    run_deocc("validate", "--checkpoint", str(run), "--trainer.limit_val_batches", "2", *argv)
    (line,) = warnings_of(caplog)
    assert line.startswith(f"{last(run)}: {expected}")
