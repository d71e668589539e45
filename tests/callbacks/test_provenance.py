"""Every checkpoint has a fingerprint; one that does not fit is refused or causes a warning when it is loaded."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning.trainer.states import TrainerFn

from deocc import runs
from deocc.callbacks import provenance
from deocc.callbacks.provenance import FINGERPRINT, FingerprintCallback, build, compare, package_versions
from deocc.data import FolderFaces, MaskedFaceDataModule, OrlFaces
from deocc.geometry import TEMPLATES
from deocc.networks import create_teacher
from tests.conftest import SMALL, draw_folder, run_deocc

FEW = ["--data.kinds", "[surgical]", "--data.test_seeds", "[1]", "--trainer.limit_test_batches", "4"]


def test_template_hash_is_of_size_and_points(monkeypatch: pytest.MonkeyPatch) -> None:
    canonical, data, found = TEMPLATES["canonical"], MaskedFaceDataModule(size=64), []
    moved = replace(canonical, points=((124.5, 149.6), *canonical.points[1:]))
    for template in (canonical, moved, replace(canonical, size=351)):
        monkeypatch.setitem(TEMPLATES, "canonical", template)
        found.append(build(data, None)["template"]["canonical"])
    assert found[0] == "4e4f3d394cc035c8"  # of checkpoints that exist
    assert len(set(found)) == 3


def test_folder_hash_does_not_depend_on_place_or_time(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "here")
    faces = FolderFaces(str(folder))
    known = faces.fingerprint("train")
    there = tmp_path / "there"
    shutil.copytree(folder, there)
    for path in there.rglob("*.png"):
        os.utime(path, (1, 1))
    assert FolderFaces(str(there)).fingerprint("train") == known
    trained, tested = (faces.names[int(faces.indices(split)[0])] for split in ("train", "test"))
    with (there / tested).open("ab") as file:
        file.write(b"more")
    assert FolderFaces(str(there)).fingerprint("train") == known, "test identities do not matter to a training"
    with (there / trained).open("ab") as file:
        file.write(b"more")
    longer = FolderFaces(str(there)).fingerprint("train")
    (there / trained).rename(there / f"{trained}.renamed.png")
    renamed = FolderFaces(str(there)).fingerprint("train")
    aligned = FolderFaces(str(folder), aligned="facenet").fingerprint("train")
    assert len({known, longer, renamed, aligned}) == 4


def test_build_agrees_with_reported_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    data, teacher = MaskedFaceDataModule(size=64, seed=5, kinds=["box"]), create_teacher("dlib_resnet")
    before = torch.get_rng_state()
    found, reported = build(data, teacher), data.provenance()
    assert torch.equal(torch.get_rng_state(), before)
    assert (found["masks"], found["training_data"]) == (reported["manifest_hash"], reported["training_data_hash"])
    assert (found["size"], found["face_set"]) == (64, reported["credit"])
    assert found["seeds"] == {"seed_everything": 3, "data": 5}
    assert found["packages"]["torch"] == version("torch")
    assert found["template"] == {"canonical": "4e4f3d394cc035c8", "teacher": "6462d391da8f00ee"}
    next(teacher.parameters())[0] += 1e-6
    other = build(data, teacher)
    assert {field for field, value in found.items() if value != other[field]} == {"teacher"}


def test_empty_splits_have_no_hash() -> None:
    faces = OrlFaces()
    faces.split_of_identity = dict.fromkeys(faces.split_of_identity, "val")
    found = build(MaskedFaceDataModule(faces, size=64), None)
    assert (found["training_data"], found["masks"], found["teacher"], found["template"]["teacher"]) == (None,) * 4


def test_missing_package_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    assert package_versions() | {"python": ""} == {"python": "", "torch": version("torch"), "no-such-package": None}


def test_commit_is_that_of_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (Path(provenance.__file__).parents[2] / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{12,}(-dirty)?", str(provenance._git_commit()))
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path / "site-packages" / "deocc")
    assert provenance._git_commit() is None


def fingerprint(**changes: Any) -> dict[str, Any]:
    values = {
        "version": 1,
        "config": "data: {}",
        "commit": "0",
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
    return values | changes


OTHER: dict[str, Any] = {
    "config": "data: {size: 9}",
    "commit": "9",
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
    ("changes", "resuming", "expected"),
    [
        ({}, True, SEEDED | {"masks": "warn"}),
        ({}, False, {"training_data": "warn", "masks": "warn"}),
        ({"face_set": "LFW"}, False, {}),
        ({"face_set": "LFW"}, True, SEEDED | {"masks": "warn"}),
        ({"training_data": None, "masks": None}, False, {}),
        ({"masks": None}, True, SEEDED),
    ],
)
def test_severity_depends_on_action(changes: dict[str, Any], resuming: bool, expected: dict[str, str]) -> None:
    found = compare(fingerprint(), fingerprint(**OTHER | changes), resuming)
    assert {each.field: each.severity for each in found} == ALWAYS | expected
    assert compare(fingerprint(), fingerprint(), resuming) == []


@pytest.mark.parametrize("saved", [None, {}, fingerprint(version=2)])
def test_unknown_format_is_one_warning(saved: dict[str, Any] | None) -> None:
    (found,) = compare(saved, fingerprint(), resuming=True)
    assert (found.field, found.severity) == ("fingerprint", "warn")


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The present state, which a test may change."""
    state = fingerprint()
    monkeypatch.setattr(provenance, "build", lambda *_: state)
    return state


def trainer(**changes: Any) -> Any:
    strategy = SimpleNamespace(broadcast=lambda found: found)
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    known = {"strategy": strategy, "state": state, "is_global_zero": True, "ckpt_path": "last.ckpt", "datamodule": None}
    return SimpleNamespace(**known | changes)


def load(callback: FingerprintCallback, saved: Any, **changes: Any) -> None:
    module: Any = SimpleNamespace()
    callback.setup(trainer(**changes), module, "fit")
    callback.on_load_checkpoint(trainer(**changes), module, {FINGERPRINT: saved})


def test_mismatch_is_refused_or_reported(present: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    present |= {"size": 64, "teacher": "t9", "packages": {"python": "3.11", "torch": "2.13.0", "timm": None}}
    with pytest.raises(ValueError, match=r"^last\.ckpt does not fit: ") as error:
        load(FingerprintCallback(), fingerprint())
    for part in ("size 112 -> 64 ", "set data.size", "; teacher t0 -> t9 ", "--fingerprint.mismatch warn continues"):
        assert part in str(error.value)
    packages = (
        "last.ckpt: packages torch 2.12.0 -> 2.13.0, timm 1.0 -> None (saved -> present): "
        "other versions may give other figures"
    )
    assert caplog.messages == [packages]
    caplog.clear()
    load(FingerprintCallback("warn"), fingerprint())
    assert caplog.messages[0] == packages and len(caplog.messages) == 3
    assert "size 112 -> 64 (saved -> present): embeddings are not comparable" in caplog.messages[1]


def test_other_ranks_refuse_silently(present: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    found = [provenance.Difference("size", 112, 64, "refuse")]
    with pytest.raises(ValueError, match="size 112"):
        load(FingerprintCallback(), None, is_global_zero=False, strategy=SimpleNamespace(broadcast=lambda _: found))
    assert caplog.messages == []


def test_accepted_differences_stay_in_checkpoints(present: dict[str, Any]) -> None:
    earlier = {"field": "code.hash", "saved": "b", "present": "c0", "severity": "warn"}
    present["seeds"] = {"seed_everything": 0, "data": 1}
    callback, checkpoint = FingerprintCallback("warn"), dict[str, Any]()
    load(callback, fingerprint(resumed=[earlier]))
    callback.on_save_checkpoint(trainer(), SimpleNamespace(), checkpoint)  # type: ignore[arg-type]
    accepted = {"field": "seeds.data", "saved": 0, "present": 1, "severity": "refuse"}
    assert checkpoint[FINGERPRINT]["resumed"] == [earlier, accepted]


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


@pytest.fixture
def tampered(stage2: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Makes a copy of the stage-2 run with a changed checkpoint."""

    def make(change: Callable[[dict[str, Any]], object]) -> Path:
        run = tmp_path / "run"
        shutil.copytree(stage2, run)
        content = torch.load(last(run), weights_only=True)
        change(content)
        torch.save(content, last(run))
        return run

    return make


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings, except that of a package that is edited during the tests."""
    found = [record.getMessage() for record in caplog.records if record.name == provenance.__name__]
    return [line for line in found if ": code hash " not in line]


def test_checkpoint_has_every_field(stage1: Path, stage2: Path) -> None:
    for run in (stage1, stage2):
        found = torch.load(last(run), weights_only=True)[FINGERPRINT]
        assert found.keys() == fingerprint().keys() and json.loads(json.dumps(found)) == found
        assert not [field for field, value in found.items() if value is None and field != "commit"]
        assert yaml.safe_load(found["config"]) == yaml.safe_load((run / runs.CONFIG).read_text())
        assert found["size"] == 64 and found["seeds"] == {"seed_everything": 0, "data": 0} and found["resumed"] == []


@pytest.mark.slow
def test_fitting_test_reports_fingerprint(stage1: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = torch.load(last(stage1), weights_only=True)[FINGERPRINT]
    run_deocc("test", "--checkpoint", str(stage1), "--run", str(tmp_path), *SMALL, "--trainer.limit_test_batches", "1")
    assert warnings_of(caplog) == []
    results = json.loads((tmp_path / runs.RESULTS).read_text())
    saved.pop("config")
    assert results[FINGERPRINT] == {"checkpoint": saved, "differences": []}
    assert results["manifest_hash"] == saved["masks"]


@pytest.mark.slow
def test_other_masks_and_packages_warn(
    tampered: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tampered(lambda content: content[FINGERPRINT]["packages"].update(torch="0.1"))
    run_deocc("test", "--checkpoint", str(run), "--run", str(tmp_path / "out"), *SMALL, *FEW)
    packages, masks = warnings_of(caplog)
    assert f"packages torch 0.1 -> {torch.__version__} " in packages and " masks " in masks
    differences = json.loads((tmp_path / "out" / runs.RESULTS).read_text())[FINGERPRINT]["differences"]
    found = [(each["field"], each["severity"]) for each in differences]
    assert found == [("packages.torch", "warn"), ("masks", "warn")]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["test", "fit"])
def test_refusal_ends_the_command(
    command: str, tampered: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    field = "teacher" if command == "test" else "training_data"
    run = tampered(lambda content: content[FINGERPRINT].update({field: "0" * 16}))
    argv = ["test", "--checkpoint", str(run)]
    if command == "fit":
        argv = ["fit", "--resume", str(run), "--trainer.max_epochs", "2"]
    with pytest.raises(SystemExit) as stopped:
        run_deocc(*argv)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    expected = f"deocc: {last(run)} does not fit: {field.replace('_', ' ')} 0000000000000000 -> "
    assert stopped.value.code == 2 and error.startswith(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "argv", "expected"),
    [
        (lambda content: content.pop(FINGERPRINT), [], "fingerprint None -> 1 "),
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
